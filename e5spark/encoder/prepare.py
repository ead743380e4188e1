"""e5spark prepare: a checkpoint made ready once for every machine, in fp32 or in int8."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e5spark.errors import ConflictError, ModelError, OptionError
from e5spark.model import prepared
from e5spark.model.checkpoint import Files, known_checkpoint
from e5spark.model.recipe import resolve_recipe
from e5spark.model.resolve import resolve_files
from e5spark.model.spec import ModelSpec


def prepare(spec: ModelSpec, to: Path) -> dict[str, Any]:
    """Makes a checkpoint's prepared model in a new directory, for fp32 and bf16.

    Returns:
        What it is: kind, sha256 of what it was made of, size in bytes.

    Raises:
        ConflictError: If something is in its place.
        ModelError: If the checkpoint cannot be prepared.
        OptionError: If what prepares it is not installed.
    """
    files = _source(spec, to)
    if prepared.read(files.model) is not None:
        raise ModelError(f"{files.model} is a prepared model already.")
    from e5spark.encoder.engines.export import export

    known = known_checkpoint(spec)
    export(files, to, checkpoint=known.name if known else None)
    return _account(to)


def prepare_int8(
    spec: ModelSpec,
    to: Path,
    texts: Sequence[str],
    prefixes: Sequence[str],
    *,
    overflow_safe: bool | None,
) -> dict[str, Any]:
    """Makes an int8 model in a new directory, calibrated and judged on a sample of the corpus.

    Args:
        spec: A checkpoint, or a prepared model of kind ``float``.
        to: The new directory.
        texts: A sample of the corpus.
        prefixes: The prefix of each.
        overflow_safe: Whether it is right on CPUs without VNNI too; None if this CPU has none.

    Returns:
        What it is, and its quality against fp32.

    Raises:
        ConflictError: If something is in its place.
        GateError: If int8 is not good enough, or not faster than fp32 on this machine.
        OptionError: If what prepares it is not installed.
    """
    _needs("nncf", "int8")
    files = _source(spec, to)
    from e5spark.encoder.engines.openvino import has_vnni
    from e5spark.encoder.int8 import Sample, quantize
    from e5spark.encoder.loading import ready

    manifest = prepared.read(files.model)
    if manifest is not None and manifest.kind != "float":
        raise ModelError(f"{files.model} is quantised already; give the checkpoint itself.")
    source = files.model if manifest is not None else ready(files)
    quantize(
        source,
        to,
        Sample(texts=texts, prefixes=prefixes),
        recipe=resolve_recipe(spec, files.model),
        spec=spec,
        overflow_safe=not has_vnni() if overflow_safe is None else overflow_safe,
    )
    return _account(to)


def _source(spec: ModelSpec, to: Path) -> Files:
    _needs("openvino", "openvino")
    if to.exists():
        raise ConflictError(f"{to} exists already; give a new directory.")
    return resolve_files(spec)


def _needs(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise OptionError(f"{package} is not installed here: pip install 'e5spark[torch,{extra}]'.")


def _account(directory: Path) -> dict[str, Any]:
    manifest = prepared.read(directory)
    assert manifest is not None, directory
    size = sum((directory / name).stat().st_size for name in manifest.files)
    return {
        "to": str(directory),
        "kind": manifest.kind,
        "weights": manifest.source.weights,
        "bytes": size,
        "needs_vnni": manifest.needs_vnni,
        "quality": dict(manifest.quality),
    }
