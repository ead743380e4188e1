"""e5spark prepare: a checkpoint prepared once for every machine, in fp32 or in int8."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e5spark.encoder.packages import require
from e5spark.errors import ConflictError, ModelError
from e5spark.model import prepared
from e5spark.model.checkpoint import Files, is_directory, known_checkpoint
from e5spark.model.onnx.source import graph_file, is_onnx
from e5spark.model.recipe import resolve_recipe
from e5spark.model.resolve import resolve_files
from e5spark.model.spec import ModelSpec


def prepare(spec: ModelSpec, to: Path) -> dict[str, Any]:
    """Makes a checkpoint's prepared model in a new directory, for fp32 and bf16.

    Returns:
        The prepared model's kind, the sha256 of the checkpoint's weights, its size in bytes.

    Raises:
        ConflictError: If the new directory exists.
        ModelError: If the checkpoint cannot be prepared, or is an ONNX graph that computes
            something else than an encoder with its weights.
        OptionError: If a package that prepares it is not installed.
    """
    require(
        ("openvino", "torch", "transformers"), extra="torch,openvino", purpose="e5spark prepare"
    )
    spec, files = _source(spec, to)
    if prepared.read(files.model) is not None:
        raise ModelError(
            f"{files.model} is a prepared model already. Use it as the model, or name the "
            "checkpoint itself."
        )
    from e5spark.encoder.engines.export import export

    _check_graph(spec, files)
    published = known_checkpoint(spec)
    export(files, to, checkpoint=published.name if published else None)
    return _summary(to)


def prepare_int8(
    spec: ModelSpec,
    to: Path,
    texts: Sequence[str],
    prefixes: Sequence[str],
    *,
    overflow_safe: bool | None,
) -> dict[str, Any]:
    """Makes an int8 model in a new directory, calibrated and evaluated on a sample of the corpus.

    Args:
        spec: A checkpoint, or a prepared model of kind ``float``.
        to: The new directory.
        texts: A sample of the corpus.
        prefixes: The prompt of each text.
        overflow_safe: Whether its vectors must be right on CPUs without VNNI too; None means only
            if this CPU has no VNNI.

    Returns:
        The summary that ``prepare`` returns, with the quality against fp32.

    Raises:
        ConflictError: If the new directory exists.
        GateError: If int8 is not good enough, or not faster than fp32 on this machine.
        ModelError: If the checkpoint is quantised already, or is an ONNX graph that computes
            something else than an encoder with its weights.
        OptionError: If a package that prepares it is not installed.
    """
    require(("openvino", "nncf"), extra="torch,int8", purpose="e5spark prepare --precision int8")
    spec, files = _source(spec, to)
    from e5spark.encoder.engines.openvino import has_vnni
    from e5spark.encoder.engines.preparation import prepared_directory
    from e5spark.encoder.int8 import Sample, quantize

    manifest = prepared.read(files.model)
    if manifest is not None and manifest.kind != "float":
        raise ModelError(f"{files.model} is quantised already; name the checkpoint itself.")
    _check_graph(spec, files)
    source = files.model if manifest is not None else prepared_directory(files)
    quantize(
        source,
        to,
        Sample(texts=texts, prefixes=prefixes),
        recipe=resolve_recipe(spec, files.model),
        spec=spec,
        overflow_safe=not has_vnni() if overflow_safe is None else overflow_safe,
    )
    return _summary(to)


def _source(spec: ModelSpec, to: Path) -> tuple[ModelSpec, Files]:
    if to.exists():
        raise ConflictError(f"{to} already exists; name a new directory.")
    return resolve_files(spec)


def _check_graph(spec: ModelSpec, files: Files) -> None:
    """Raises if the model is an ONNX graph that computes something else than its checkpoint."""
    source = Path(spec.model).expanduser()
    if is_directory(spec.model) and source.exists() and is_onnx(source):
        from e5spark.encoder.engines.original import check_graph

        with graph_file(source) as graph:
            check_graph(graph, files.model)


def _summary(directory: Path) -> dict[str, Any]:
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
