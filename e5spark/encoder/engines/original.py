"""The comparison of an ONNX graph, run as it is, with the architecture that has its weights."""

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
import torch

from e5spark.encoder.engines.torch import load_model
from e5spark.errors import ModelError

log = logging.getLogger(__name__)

# Relative to the largest component. Engines differ by 1e-6, half precision by 1e-3; a graph that
# computes something else, by about 1.
_TOLERANCE = 1e-2
_LENGTHS = (24, 9)
_Floats = npt.NDArray[np.float32]


def check_graph(graph: Path, checkpoint: Path) -> None:
    """Raises if a graph computes other token vectors than the checkpoint made from its weights.

    OpenVINO runs the graph on a few random tokens, with padding. A graph that this OpenVINO cannot
    run is not compared, and a warning says so.

    Args:
        graph: The ONNX file.
        checkpoint: The directory of the checkpoint.

    Raises:
        ModelError: If they differ.
    """
    model = load_model(checkpoint, dtype=torch.float32)
    generator = np.random.default_rng(0)
    shape = (len(_LENGTHS), max(_LENGTHS))
    ids = generator.integers(5, model.config.vocab_size, shape)
    mask = (np.arange(shape[1]) < np.array(_LENGTHS)[:, None]).astype(np.int64)
    ids[mask == 0] = model.config.pad_token_id or 0
    try:
        hidden = _run(graph, ids, mask)
    except RuntimeError as error:
        log.warning(
            "OpenVINO cannot run %s, so it was not compared with its weights: %s",
            graph.name,
            str(error).splitlines()[0],
        )
        return
    with torch.inference_mode():
        output = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    expected = output.last_hidden_state.numpy()
    tokens = mask == 1
    if hidden.shape != expected.shape:
        raise ModelError(
            f"{graph.name} gives {hidden.shape[1:]} numbers for a row of {shape[1]} tokens; an "
            f"encoder gives {expected.shape[1:]}. Export the encoder alone (feature extraction)."
        )
    scale = np.abs(expected[tokens]).max()
    difference = float(np.abs(hidden[tokens] - expected[tokens]).max() / scale)
    if not difference <= _TOLERANCE:
        raise ModelError(
            f"{graph.name} computes other vectors than a {model.config.model_type} model with its "
            f"weights: they differ by {difference:.2g} of the largest component. It is another "
            "architecture; use a checkpoint in safetensors."
        )


def _run(graph: Path, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> _Floats:
    """The graph's first output: the hidden state of every token.  # (rows, tokens, hidden)."""
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(graph), "CPU", settings)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    names = {name for port in compiled.inputs for name in port.get_names()}
    result = compiled({name: values for name, values in inputs.items() if name in names})
    hidden: _Floats = result[0]
    return hidden
