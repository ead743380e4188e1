"""Export of a checkpoint to a prepared model, which runs without torch or transformers.

The token embeddings stay outside the graph, in a file that every process of a machine maps into its
memory: they are most of a multilingual checkpoint (384 of 470 MB of multilingual-e5-small), a text
touches few of them, and an engine would copy them all.
"""

import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import openvino
import torch
from transformers import AutoTokenizer, PreTrainedModel

from e5spark.encoder.engines.packed import pad_position
from e5spark.encoder.engines.torch import load_model
from e5spark.encoder.tokenizer import padding_id
from e5spark.errors import ModelError
from e5spark.model import prepared
from e5spark.model.architecture import ARCHITECTURES, read_config
from e5spark.model.checkpoint import Files, earlier_hashes, hash_files
from e5spark.model.prepared import Manifest

_ARCHITECTURES = [name for name, entry in ARCHITECTURES.items() if entry.prepared_by == "openvino"]
# The files of a checkpoint that define how its vectors are computed.
_SMALL_FILES = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


def export(files: Files, to: Path, *, checkpoint: str | None = None) -> None:
    """Makes a prepared model of kind ``float`` in a new directory.

    Args:
        files: The checkpoint's files.
        to: The new directory.
        checkpoint: The name of the published checkpoint, if it is one.

    Raises:
        ModelError: If the checkpoint cannot be loaded, or its architecture cannot be prepared.
    """
    if read_config(files.model).architecture.name not in _ARCHITECTURES:
        raise ModelError(
            f"{files.model} is not a {' or '.join(_ARCHITECTURES)} checkpoint, and only these can "
            "be prepared; use engine='torch'."
        )
    prepared.build(to, lambda directory: _fill(directory, files, checkpoint))


def _fill(directory: Path, files: Files, checkpoint: str | None) -> None:
    model = load_model(files.model, dtype=torch.float32)
    table = model.get_input_embeddings().weight.detach().numpy()
    np.save(directory / prepared.EMBEDDINGS, table)
    openvino.save_model(_trace(model), directory / prepared.MODEL, compress_to_fp16=False)
    loaded = AutoTokenizer.from_pretrained(files.tokenizer, trust_remote_code=False)
    tokenizer = loaded.backend_tokenizer.to_str()
    (directory / prepared.TOKENIZER).write_text(tokenizer, "utf-8")
    for name in _SMALL_FILES:
        if (files.model / name).is_file():
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(files.model / name, directory / name)
    manifest = Manifest(
        kind="float",
        source=hash_files(files),
        earlier_source=earlier_hashes(files).weights,
        pad_id=padding_id(loaded),
        pad_position=pad_position(model),
        checkpoint=checkpoint,
    )
    prepared.write(directory, manifest)


class _Encoder(torch.nn.Module):
    """The checkpoint's model without its embedding lookup."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, embeddings: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Returns the final hidden states.  # (rows, longest, hidden)."""
        output = self.model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions)
        return output.last_hidden_state  # type: ignore[no-any-return]


def _trace(model: PreTrainedModel) -> "openvino.Model":
    hidden: int = model.config.hidden_size
    # With padding: otherwise the tracer would fold the mask away.
    mask = (torch.arange(16) < torch.tensor([16, 10, 5])[:, None]).long()
    positions = torch.arange(16).repeat(3, 1)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # about shapes that the tracer keeps dynamic
        traced = openvino.convert_model(
            _Encoder(model), example_input=(torch.randn(3, 16, hidden), mask, positions)
        )
    shapes = {"embeddings": [-1, -1, hidden], "mask": [-1, -1], "positions": [-1, -1]}
    for port, name in zip(traced.inputs, shapes, strict=True):
        port.get_tensor().set_names({name})
    traced.reshape(shapes)
    return traced


if __name__ == "__main__":
    export(Files(model=Path(sys.argv[1]), tokenizer=Path(sys.argv[2])), Path(sys.argv[3]))
