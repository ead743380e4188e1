"""A checkpoint on disk: located, fetched from the hub where allowed, and hashed.

Nothing here loads an engine: a driver that plans a run needs only this.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from e5spark.errors import ModelError
from e5spark.model import hub, prepared, registry
from e5spark.model.architecture import read_config
from e5spark.model.content import content_sha256
from e5spark.model.digest import sha256
from e5spark.model.fingerprint import Weights
from e5spark.model.json_file import read_json
from e5spark.model.onnx.files import ZIP_SUFFIXES
from e5spark.model.onnx.source import converted, is_onnx
from e5spark.model.registry import Checkpoint
from e5spark.model.spec import ModelSpec, Precision

ARCHIVE = "archive:"
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "tokenizer.model")
_TOKENIZER_FILES = (
    *_VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# A link is followed, as those of the hub's cache; a name in a file must not lead elsewhere.
_FILE_NAME = re.compile(r"[^/\\\0]+\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where the files of a checkpoint are on this machine.

    Attributes:
        model: Directory of config.json and the weights.
        tokenizer: Directory of the tokenizer's files; for most checkpoints the same directory.
    """

    model: Path
    tokenizer: Path


def locate(spec: ModelSpec) -> Files:
    """Returns the directories of the checkpoint, which is fetched only if the spec allows it.

    Raises:
        ModelError: If it is absent or not a checkpoint; the message says how to provide it.
        TransientError: If the hub did not answer.
    """
    published = known_checkpoint(spec)
    model = _directory(spec.model, spec)
    for name in ("config.json", *weight_files(model)):
        if not (model / name).is_file():
            raise ModelError(
                f"{model} holds no checkpoint: it has no {name}. Fetch the checkpoint again, or "
                "name the directory that holds config.json and the weights."
            )
    if spec.tokenizer is not None:
        tokenizer = _directory(spec.tokenizer, replace(spec, revision=None), weights=False)
        return Files(model=model, tokenizer=tokenizer)
    if published is not None and published.tokenizer is not None and not has_tokenizer(model):
        tokenizer = hub.snapshot(published.tokenizer, download=spec.download, weights=False)
        return Files(model=model, tokenizer=tokenizer)
    if not has_tokenizer(model):
        raise ModelError(
            f"{spec.model} has no tokenizer ({', '.join(_VOCABULARIES)}); add its files, or name "
            "the directory that has them with tokenizer=."
        )
    return Files(model=model, tokenizer=model)


def pin(spec: ModelSpec, files: Files) -> ModelSpec:
    """Returns the spec pinned to the commit that its hub name resolved to, for every machine."""
    if is_directory(spec.model) or not _COMMIT.fullmatch(files.model.name):
        return spec
    return replace(spec, revision=files.model.name)


def decide_precision(
    spec: ModelSpec, files: Files | None = None, *, auto: Precision = "fp32"
) -> Precision:
    """Returns the precision to compute in; it is never ``auto``.

    Args:
        spec: The model as the user described it.
        files: The checkpoint's files; None if this machine does not have them.
        auto: What ``auto`` means for a model that is not an int8 model.

    Raises:
        ModelError: If the files were not prepared for the precision of the spec.
    """
    manifest = None if files is None else prepared.read(files.model)
    kind = "float" if manifest is None else manifest.kind
    if spec.precision == "auto":
        return "int8" if kind == "int8" else auto
    if (spec.precision == "int8") != (kind == "int8"):
        raise ModelError(
            f"precision is {spec.precision!r}, but {spec.model} "
            + (
                "was prepared for int8; use the checkpoint itself."
                if kind == "int8"
                else "is not quantised. Prepare it once: e5spark prepare MODEL --to DIR "
                "--precision int8 --calibrate JOB.toml, and use DIR as the model."
            )
        )
    return spec.precision


def known_checkpoint(spec: ModelSpec) -> Checkpoint | None:
    """Returns the registry's entry for the spec's checkpoint; None for the user's own.

    Raises:
        ModelError: If the name is not in the registry and no revision pins it.
    """
    if spec.checkpoint is not None:
        return registry.find(spec.checkpoint)
    if is_directory(spec.model):
        directory = Path(spec.model.removeprefix(ARCHIVE)).expanduser()
        manifest = prepared.read(directory)
        return registry.CHECKPOINTS.get(manifest.checkpoint or "") if manifest else None
    if spec.revision is not None and spec.model not in registry.CHECKPOINTS:
        return None
    if spec.model not in registry.CHECKPOINTS and Path(spec.model).is_dir():
        raise ModelError(
            f"{spec.model!r} is taken as a name on the hub, but there is a directory of that name; "
            f"write './{spec.model}' for the directory."
        )
    return registry.find(spec.model)


def is_directory(model: str) -> bool:
    """Returns whether the model is a directory, a jar or a zip, and not a name on the hub."""
    return model.startswith(("/", ".", "~", ARCHIVE)) or model.endswith(ZIP_SUFFIXES)


def has_tokenizer(directory: Path) -> bool:
    """Returns whether the directory has a tokenizer's vocabulary."""
    return any((directory / name).is_file() for name in _VOCABULARIES)


def weight_files(directory: Path) -> list[str]:
    """Returns the names of the weight files: model.safetensors, or its shards.

    A prepared model has none: its manifest lists its files.

    Raises:
        ModelError: If the index of the shards is damaged, or the only weights are in a format that
            can run code when it is loaded.
    """
    if prepared.read(directory) is not None:
        return []
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(n, str) for n in shards.values()):
            raise ModelError(f"{index} has no weight_map of tensors to files. Fetch it again.")
        outside = [name for name in shards.values() if not _FILE_NAME.fullmatch(name)]
        if outside:
            raise ModelError(
                f"{index} has weights in {outside[0]!r}; e5spark reads safetensors files of the "
                "same directory only. Fetch it again."
            )
        return sorted(set(shards.values()))
    if not (directory / "model.safetensors").is_file():
        pickled = sorted(path.name for path in directory.glob("*.bin"))
        if pickled:
            raise ModelError(
                f"{directory} has its weights only as {pickled[0]}, a format that can run code "
                "when it is loaded; e5spark reads safetensors only. Convert it once, where you "
                "trust it, with transformers' save_pretrained."
            )
    return ["model.safetensors"]


def hash_files(files: Files) -> Weights:
    """Returns the content hashes of a checkpoint; about 3 s per GB the first time on a machine.

    A prepared model has the hashes of the checkpoint it was prepared from, unless it is quantised.
    """
    manifest = prepared.read(files.model)
    if manifest is not None:
        return manifest.weights
    paths = [files.model / name for name in weight_files(files.model)]
    return Weights(
        weights=content_sha256(paths, read_config(files.model)), tokenizer=_hash_tokenizer(files)
    )


def earlier_hashes(files: Files) -> Weights:
    """Returns the hashes by which e5spark 0.1.0 identified a checkpoint: those of its files.

    The fingerprints of tables, calibrations and prepared models that it wrote have them.
    """
    manifest = prepared.read(files.model)
    if manifest is not None:
        return manifest.earlier_weights
    names = ["config.json", *weight_files(files.model)]
    return Weights(
        weights=_digest(files.model / name for name in names), tokenizer=_hash_tokenizer(files)
    )


def _hash_tokenizer(files: Files) -> str:
    names = [name for name in _TOKENIZER_FILES if (files.tokenizer / name).is_file()]
    return _digest(files.tokenizer / name for name in names)


def check_published(spec: ModelSpec, files: Files) -> None:
    """Raises unless the weights match the published or prepared ones, if their hashes are known.

    A hub cache names each weight file after the sha256 that the hub sent with it; the registry has
    the hash of checkpoints that come from elsewhere.

    Raises:
        ModelError: If a file was altered or is incomplete.
    """
    manifest = prepared.read(files.model)
    if manifest is not None:
        prepared.check(files.model, manifest)
    published = known_checkpoint(spec)
    for name in weight_files(files.model):
        path = files.model / name
        blob = path.resolve().name
        expected = published.weights_sha256 if published else None
        if not is_directory(spec.model) and re.fullmatch(r"[0-9a-f]{64}", blob):
            expected = blob
        if expected is not None and sha256(path) != expected:
            raise ModelError(
                f"{path} has sha256 {sha256(path)}, but {spec.checkpoint or spec.model} was "
                f"published with {expected}; delete it and fetch it again."
            )


def _digest(paths: Iterable[Path]) -> str:
    lines = [f"{path.name} {sha256(path)}" for path in sorted(paths)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _directory(model: str, spec: ModelSpec, *, weights: bool = True) -> Path:
    if model.startswith(ARCHIVE):
        name = model.removeprefix(ARCHIVE)
        path = Path(name)
        remedy = f"ship it: spark-submit --archives model.tar.gz#{name}."
    elif is_directory(model):
        path = Path(model).expanduser()
        remedy = (
            "every machine of the cluster needs it at this path, or ship it with spark-submit "
            "--archives model.tar.gz#model and model='archive:model'."
        )
    else:
        return hub.snapshot(model, revision=spec.revision, download=spec.download, weights=weights)
    path = path.absolute()
    is_archive = weights and path.is_file() and path.suffix in ZIP_SUFFIXES
    if not path.is_dir() and not is_archive:
        if path.is_file():
            archive = ", or a jar or zip file" if weights else ""
            raise ModelError(f"{model!r} is a file; name the directory that holds it{archive}.")
        raise ModelError(f"There is no model directory {model!r}; {remedy}")
    return converted(path) if weights and is_onnx(path) else path
