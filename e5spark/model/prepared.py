"""A prepared model on disk: a checkpoint made ready once, with a manifest of what it is.

Nothing here loads an engine: a driver that plans a run needs only this.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Literal

from e5spark.errors import ModelError
from e5spark.model.digest import sha256
from e5spark.model.fingerprint import Weights

MANIFEST = "e5spark.json"
FORMAT = 2
MODEL, WEIGHTS = "model.xml", "model.bin"
EMBEDDINGS, TOKENIZER = "embeddings.npy", "tokenizer.json"

ARCHITECTURES = ("bert", "xlm-roberta")

Kind = Literal["float", "int8"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared model is made of; its directory also has the checkpoint's own small files.

    Attributes:
        kind: ``float``, which computes in fp32 or bf16, or ``int8``.
        source: The content of the checkpoint it was made of.
        engine: The engine that runs it, by its name in ``e5spark.model.engines``; openvino where a
            manifest does not name one.
        checkpoint: The published checkpoint that is, so that its prompts and limits are known;
            None for one of the user's own.
        pad_id: What fills up short rows.
        pad_position: The token that XLM-R leaves out when it numbers those of a row, from the next
            position on, even inside a text; None where tokens are numbered from 0.
        files: Name to sha256 of each file.
        needs_vnni: Whether its int8 sums may overflow on a CPU without VNNI.
        settings: What the engine needs to be told besides.
        quality: What was measured against fp32 when it was made; empty for ``float``.
        format: Version of this manifest and of the graph's inputs.
    """

    kind: Kind
    source: Weights
    pad_id: int
    pad_position: int | None
    engine: str = "openvino"
    checkpoint: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    needs_vnni: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    quality: Mapping[str, float | str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def weights(self) -> Weights:
        """Returns the identity of its vectors' weights: the checkpoint's own, unless quantised."""
        if self.kind == "float":
            return self.source
        return Weights(weights=self.files[WEIGHTS], tokenizer=self.source.tokenizer)


def can_prepare(directory: Path) -> bool:
    """Returns whether the checkpoint in a directory is of an architecture that can be prepared."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    return config.get("model_type") in ARCHITECTURES


def read(directory: Path) -> Manifest | None:
    """Returns the manifest of a prepared model; None for any other directory.

    Raises:
        ModelError: If it cannot be read, or has another format.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
        if data["format"] != FORMAT:
            raise ModelError(
                f"{path} has format {data['format']}; this e5spark reads {FORMAT}. Prepare it "
                "again, or install the release that prepared it."
            )
        known = {each.name for each in fields(Manifest)}
        data = {name: value for name, value in data.items() if name in known}
        return Manifest(**{**data, "source": Weights(**data["source"])})
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} is no manifest of a prepared model: {error}.") from error


def check(directory: Path, manifest: Manifest) -> None:
    """Raises unless every file is the one that was prepared.

    Raises:
        ModelError: If one is missing or was altered.
    """
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise ModelError(f"{directory} lacks {name} of its prepared model; prepare it again.")
        if sha256(path) != expected:
            raise ModelError(
                f"{path} has sha256 {sha256(path)}, but it was prepared with {expected}; prepare "
                "it again."
            )


def write(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest, with the hash of every file there is: what makes it a prepared model."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    hashes = {str(path.relative_to(directory)): sha256(path) for path in files}
    data = json.dumps(asdict(replace(manifest, files=hashes)), indent=2, sort_keys=True)
    (directory / MANIFEST).write_text(data + "\n", "utf-8")


def build(to: Path, fill: Callable[[Path], None]) -> None:
    """Makes a directory that is there whole or not at all: filled beside its place, then renamed.

    Args:
        to: The new directory.
        fill: Fills the directory that it is given.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        fill(temporary)
        temporary.chmod(0o755)
        temporary.rename(to)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock among the processes of this machine; one that dies lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        flock(file, LOCK_EX)
        yield
