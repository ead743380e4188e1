"""An ONNX model as a checkpoint: converted to safetensors once on a machine, in its cache.

The checkpoint has the weights of the graph under their own names, so every engine runs it as it
runs any other, and no engine, onnx package or ONNX Runtime is needed to make it.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from e5spark.errors import ModelError
from e5spark.model import prepared
from e5spark.model.architecture import ModelConfig, read_config
from e5spark.model.digest import cache_directory, sha256
from e5spark.model.onnx.config import differences, graph_config
from e5spark.model.onnx.files import ZIP_SUFFIXES, DirectoryFiles, OnnxFiles, ZipFiles, choose
from e5spark.model.onnx.graph import Graph, read_graph, with_external
from e5spark.model.onnx.weights import GraphWeights

# Increased whenever a conversion gives other files, so that older ones are not taken for its own.
_FORMAT = 1
_REMEDY = (
    "e5spark reads the weights of BERT and XLM-R encoders out of a graph in fp32, fp16 or bf16 as "
    "torch or Optimum exports it (feature extraction). Export or fetch that one"
)
_FURTHER_KEYS = ("is_decoder", "position_embedding_type")
_UNSET = (None, False, "absolute")
_Tensors = Iterable[tuple[str, str, npt.NDArray[Any]]]


def is_onnx(path: Path) -> bool:
    """Returns whether a jar or zip, or a directory without safetensors, holds an ONNX file."""
    if path.is_file():
        return path.suffix in ZIP_SUFFIXES
    return not any(path.glob("*.safetensors*")) and any(
        name.endswith(".onnx") for name in DirectoryFiles(path).names
    )


def converted(path: Path) -> Path:
    """Returns the directory of a checkpoint made from an ONNX model; made once on a machine.

    It is kept in the cache under the hash of the files that it was made from.

    Args:
        path: A directory with an ONNX file, or a jar or zip that holds one.

    Raises:
        ModelError: If the files are damaged, or not a model that e5spark runs.
    """
    source = ZipFiles(path) if path.is_file() else DirectoryFiles(path)
    files = choose(source.names, path)
    key = _key(source, files)
    directory = cache_directory() / "onnx" / key
    if not directory.is_dir():
        with prepared.locked(directory.with_suffix(".lock")):
            if not directory.is_dir():
                prepared.build(directory, lambda to: _fill(to, source, files))
    return directory


@contextmanager
def graph_file(path: Path) -> Iterator[Path]:
    """Yields the path of a model's ONNX file, with the files of its weights beside it.

    Args:
        path: A directory, jar or zip, as for ``converted``.
    """
    source = ZipFiles(path) if path.is_file() else DirectoryFiles(path)
    files = choose(source.names, path)
    with TemporaryDirectory(prefix="e5spark-onnx-") as scratch:
        graph = source.fetch(files.graph, Path(scratch))
        _fetch_external(source, files, read_graph(graph), Path(scratch))
        yield graph


def _key(source: ZipFiles | DirectoryFiles, files: OnnxFiles) -> str:
    if isinstance(source, ZipFiles):
        lines = [sha256(source.where)]
    else:
        graph = source.where / files.graph
        beside = [graph.parent / name for name in read_graph(graph).external_files]
        contents = {files.graph: graph} | {path.name: path for path in beside if path.is_file()}
        contents |= {target: source.where / name for target, name in files.small.items()}
        lines = [f"{name} {sha256(file)}" for name, file in sorted(contents.items())]
    return hashlib.sha256("\n".join([str(_FORMAT), *lines]).encode()).hexdigest()[:32]


def _fill(directory: Path, source: ZipFiles | DirectoryFiles, files: OnnxFiles) -> None:
    with TemporaryDirectory(dir=directory.parent, prefix=".unpacked.") as scratch:
        graph = _graph(source, files, Path(scratch))
        for target, name in files.small.items():
            copy = directory / target
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(source.fetch(name, Path(scratch)), copy)
        subject = f"{files.graph} in {source.where}"
        try:
            weights = GraphWeights(graph)
            config = checkpoint_config(directory, graph_config(weights), subject)
            _write(directory / "model.safetensors", weights.weights(config))
        except ModelError:
            raise
        except ValueError as error:
            raise ModelError(f"{subject} {error}. {_REMEDY}.") from error
        except (LookupError, TypeError, OverflowError) as error:  # inputs or attributes are missing
            raise ModelError(
                f"{subject} is damaged ({type(error).__name__}: {error}). Fetch it again."
            ) from error


def _graph(source: ZipFiles | DirectoryFiles, files: OnnxFiles, scratch: Path) -> Graph:
    path = source.fetch(files.graph, scratch)
    graph = read_graph(path)
    _fetch_external(source, files, graph, scratch)
    return with_external(graph, path.parent)


def _fetch_external(
    source: ZipFiles | DirectoryFiles, files: OnnxFiles, graph: Graph, scratch: Path
) -> None:
    for name in graph.external_files:
        member = (Path(files.graph).parent / name).as_posix()
        if member in source.names:
            source.fetch(member, scratch)


def checkpoint_config(directory: Path, values: dict[str, Any], subject: str) -> ModelConfig:
    """Returns the config.json, which is written if a model has none, and compared if it has one.

    Args:
        directory: The directory of the checkpoint.
        values: What the graph tells of it.
        subject: The graph, for messages.

    Raises:
        ModelError: If it is another model's, or the graph does not tell enough.
    """
    if not (directory / "config.json").is_file():
        missing = {"num_attention_heads", "pad_token_id"} - set(values)
        missing -= set() if values["model_type"] == "xlm-roberta" else {"pad_token_id"}
        if missing:
            raise ModelError(
                f"{subject} does not tell its {' and '.join(sorted(missing))}. Add the config.json "
                "of its checkpoint."
            )
        # Without its settings a tokenizer is what tokenizer.json says, whatever the model's class.
        if not (directory / "tokenizer_config.json").is_file():
            values = {**values, "tokenizer_class": "PreTrainedTokenizerFast"}
        text = json.dumps(values, indent=2)
        (directory / "config.json").write_text(text + "\n", "utf-8")
    config = read_config(directory)
    if config.architecture.name not in ("bert", "xlm-roberta"):
        raise ModelError(
            f"{subject} has a config.json of a {config.architecture.name} model. {_REMEDY}."
        )
    # A causal mask, say, which transformers would add and the graph does not have.
    further = [key for key in _FURTHER_KEYS if config.values.get(key) not in _UNSET]
    if further:
        raise ModelError(
            f"{subject} has a config.json with {further[0]} = {config.values[further[0]]!r}, which "
            "an encoder does not have. Fetch both from the same checkpoint."
        )
    different = differences(values, config)
    if different:
        raise ModelError(
            f"{subject} is not the model of its config.json, which has {', '.join(different)}. "
            "Fetch both from the same checkpoint."
        )
    return config


def _write(path: Path, tensors: _Tensors) -> None:
    """Writes a safetensors file; https://github.com/huggingface/safetensors#format."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    values, end = [], 0
    for name, dtype, array in tensors:
        offsets = [end, end + array.nbytes]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
        values.append(array)
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in values:
            np.ascontiguousarray(array).tofile(file)
