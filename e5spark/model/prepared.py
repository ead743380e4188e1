"""A prepared model on disk: a checkpoint converted once, with a manifest of what it holds.

Nothing here loads an engine: a driver that plans a run needs only this.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from fcntl import LOCK_EX, flock
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from e5spark.errors import ModelError
from e5spark.model.architecture import read_config
from e5spark.model.digest import sha256
from e5spark.model.fingerprint import Weights

MANIFEST = "e5spark.json"
FORMAT = 2
# Formats of earlier releases that no longer run, each with the reason.
_UNREADABLE = {
    1: "its graph numbers the tokens itself, and gave texts that spell <pad> other vectors than "
    "transformers does"
}
MODEL, WEIGHTS = "model.xml", "model.bin"
EMBEDDINGS, TOKENIZER = "embeddings.npy", "tokenizer.json"

Kind = Literal["float", "int8"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared model holds; its directory also has the checkpoint's own small files.

    Attributes:
        kind: ``float``, which computes in fp32 or bf16, or ``int8``.
        source: The content of the checkpoint that was prepared.
        engine: The engine that runs it, by its name in ``e5spark.model.engines``; openvino if the
            manifest names none.
        checkpoint: The name of that checkpoint if it is a published one, so that its prompts and
            limits are known; None for the user's own.
        pad_id: The padding token.
        pad_position: The token that XLM-R leaves out, even inside a text, when it numbers the
            tokens of a row; the first position is the next number. None if tokens are numbered
            from 0.
        earlier_source: sha256 over the files of the weights and config.json of that checkpoint, by
            which e5spark 0.1.0 identified it; None in a manifest of 0.1.0, whose ``source`` has it.
        files: Name to sha256 of each file.
        needs_vnni: Whether its int8 sums may overflow on a CPU without VNNI.
        settings: Further settings of the engine.
        quality: How it compares with fp32, measured when it was prepared; empty for ``float``.
        format: Version of this manifest and of the graph's inputs. Older ones are read: a key
            that they lack has the default above.
    """

    kind: Kind
    source: Weights
    pad_id: int
    pad_position: int | None
    engine: str = "openvino"
    checkpoint: str | None = None
    earlier_source: str | None = None
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

    @property
    def earlier_weights(self) -> Weights:
        """Returns the identity that e5spark 0.1.0 would give it."""
        if self.kind == "float" and self.earlier_source is not None:
            return replace(self.source, weights=self.earlier_source)
        return self.weights


def read(directory: Path) -> Manifest | None:
    """Returns the manifest of a prepared model; None for any other directory.

    Raises:
        ModelError: If it is damaged, or this e5spark cannot run its format.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        return _manifest(path, json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{path} is not a manifest of a prepared model ({type(error).__name__}: {error}). "
            "Prepare the checkpoint again: e5spark prepare MODEL --to DIR."
        ) from error


def _manifest(path: Path, content: dict[str, Any]) -> Manifest:
    number = content["format"]
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"its format is {number!r}")
    if number > FORMAT:
        raise ModelError(
            f"{path} has format {number}; this e5spark reads formats up to {FORMAT}. Install the "
            "release that prepared it, or prepare it again with this one."
        )
    if number in _UNREADABLE:
        raise ModelError(
            f"{path} has format {number}, which no longer runs: {_UNREADABLE[number]}. Prepare the "
            "checkpoint again: e5spark prepare MODEL --to DIR."
        )
    names = {field.name for field in fields(Manifest)}
    values = {name: value for name, value in content.items() if name in names}
    manifest = Manifest(**{**values, "source": Weights(**values["source"])})
    if manifest.kind not in get_args(Kind):
        raise ValueError(f"its kind is {manifest.kind!r}")
    _check_values(manifest)
    return manifest


def _check_values(manifest: Manifest) -> None:
    """Raises TypeError or ValueError unless each value has its type, and each file its hash."""
    source, position = manifest.source, manifest.pad_position
    claims = {
        "source": isinstance(source.weights, str) and isinstance(source.tokenizer, str),
        "engine": isinstance(manifest.engine, str),
        "checkpoint": isinstance(manifest.checkpoint, str | None),
        "earlier_source": isinstance(manifest.earlier_source, str | None),
        "pad_id": type(manifest.pad_id) is int and 0 <= manifest.pad_id < 1 << 31,
        "pad_position": position is None or (type(position) is int and 0 <= position < 1 << 31),
        "needs_vnni": isinstance(manifest.needs_vnni, bool),
        "files": _are_texts(manifest.files),
        "settings": _are_texts(manifest.settings),
        "quality": isinstance(manifest.quality, Mapping),
    }
    for name, holds in claims.items():
        if not holds:
            raise TypeError(f"its {name} cannot be used")
    outside = [name for name in manifest.files if {"..", "/"} & set(PurePosixPath(name).parts)]
    if outside:
        raise ValueError(f"its file {outside[0]!r} is outside of the directory")


def _are_texts(values: object) -> bool:
    return isinstance(values, Mapping) and all(isinstance(text, str) for text in values.values())


def check(directory: Path, manifest: Manifest) -> None:
    """Raises unless each file has the content that was prepared.

    Raises:
        ModelError: If a file is missing or was altered.
    """
    needed = {MODEL, WEIGHTS, EMBEDDINGS, TOKENIZER, "config.json"}
    missing = needed - set(manifest.files)
    if missing and manifest.engine == "openvino":
        raise ModelError(f"{directory / MANIFEST} has no hash of {min(missing)}; prepare it again.")
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise ModelError(
                f"{directory} lacks {name}, a file of the prepared model; prepare it again."
            )
        if sha256(path) != expected:
            raise ModelError(
                f"{path} has sha256 {sha256(path)}, but it was prepared with {expected}; prepare "
                "it again."
            )
    config = read_config(directory)
    position = config.values["pad_token_id"] if config.architecture.skips_padding else None
    if manifest.pad_position != position:  # the manifest itself has no hash
        raise ModelError(
            f"{directory / MANIFEST} has pad_position {manifest.pad_position}, but config.json "
            f"needs {position}; prepare it again."
        )


def write(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest, with the hash of every file present; this completes a prepared model."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    hashes = {str(path.relative_to(directory)): sha256(path) for path in files}
    data = json.dumps(asdict(replace(manifest, files=hashes)), indent=2, sort_keys=True)
    (directory / MANIFEST).write_text(data + "\n", "utf-8")


def build(to: Path, fill: Callable[[Path], None]) -> None:
    """Creates a directory atomically: it is filled beside its final place, then renamed.

    Args:
        to: The new directory.
        fill: Fills the directory that is passed to it.
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
    """Holds a lock among the processes of this machine; a process that dies releases it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        flock(file, LOCK_EX)
        yield
