"""The transformer architectures that e5spark runs, as data: a new one is one more entry."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5spark.errors import ModelError
from e5spark.model.json_file import read_json

# A tensor's shape, as keys of config.json; "queries" and "keys" are the widths of all heads.
Sizes = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What e5spark needs to know about a transformer architecture.

    Attributes:
        name: The ``model_type`` of its config.json.
        defaults: The values that transformers assumes for keys that config.json lacks.
        tensors: Name to shape of each tensor outside the layers; poolers are never used.
        layer_tensors: The same for each layer; ``{layer}`` in a name is the layer's number.
        prefix: The prefix of the tensor names in a checkpoint that was saved with a task head.
        skips_padding: Whether tokens are numbered from ``pad_token_id + 1``, and padding tokens,
            even those inside a text, are left out and have the position ``pad_token_id``
            (transformers' ``create_position_ids_from_input_ids``). Otherwise all tokens are
            numbered from 0.
        appends_eos: Whether each text ends in the end-of-sequence token, because the architecture
            is a decoder, pooled from its last token.
        prepared_by: The engine that runs prepared models of it; None if it cannot be prepared.
        tokenizer: The class that transformers loads for it unless the files name another; None if
            there is no default class.
    """

    name: str
    defaults: Mapping[str, Any]
    tensors: Mapping[str, Sizes]
    layer_tensors: Mapping[str, Sizes]
    prefix: str
    skips_padding: bool = False
    appends_eos: bool = False
    prepared_by: str | None = None
    tokenizer: str | None = None


def _dense(name: str, outputs: str, inputs: str) -> dict[str, Sizes]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _layer_norm(name: str) -> dict[str, Sizes]:
    return {f"{name}.weight": ("hidden_size",), f"{name}.bias": ("hidden_size",)}


_BERT_LAYER = "encoder.layer.{layer}"
_BERT_TENSORS: dict[str, Sizes] = {
    "embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
    "embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
    **_layer_norm("embeddings.LayerNorm"),
}
_BERT_LAYER_TENSORS: dict[str, Sizes] = {
    **_dense(f"{_BERT_LAYER}.attention.self.query", "hidden_size", "hidden_size"),
    **_dense(f"{_BERT_LAYER}.attention.self.key", "hidden_size", "hidden_size"),
    **_dense(f"{_BERT_LAYER}.attention.self.value", "hidden_size", "hidden_size"),
    **_dense(f"{_BERT_LAYER}.attention.output.dense", "hidden_size", "hidden_size"),
    **_layer_norm(f"{_BERT_LAYER}.attention.output.LayerNorm"),
    **_dense(f"{_BERT_LAYER}.intermediate.dense", "intermediate_size", "hidden_size"),
    **_dense(f"{_BERT_LAYER}.output.dense", "hidden_size", "intermediate_size"),
    **_layer_norm(f"{_BERT_LAYER}.output.LayerNorm"),
}
_BERT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}

_ALL = (
    Architecture(
        name="bert",
        defaults=_BERT_DEFAULTS,
        tensors=_BERT_TENSORS,
        layer_tensors=_BERT_LAYER_TENSORS,
        prefix="bert.",
        prepared_by="openvino",
        tokenizer="BertTokenizer",
    ),
    Architecture(
        name="xlm-roberta",
        defaults={**_BERT_DEFAULTS, "pad_token_id": 1},
        tensors=_BERT_TENSORS,
        layer_tensors=_BERT_LAYER_TENSORS,
        prefix="roberta.",
        skips_padding=True,
        prepared_by="openvino",
        tokenizer="XLMRobertaTokenizer",
    ),
    Architecture(
        name="mistral",
        defaults={
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14_336,
            "hidden_act": "silu",
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
        },
        tensors={
            "embed_tokens.weight": ("vocab_size", "hidden_size"),
            "norm.weight": ("hidden_size",),
        },
        layer_tensors={
            "layers.{layer}.self_attn.q_proj.weight": ("queries", "hidden_size"),
            "layers.{layer}.self_attn.k_proj.weight": ("keys", "hidden_size"),
            "layers.{layer}.self_attn.v_proj.weight": ("keys", "hidden_size"),
            "layers.{layer}.self_attn.o_proj.weight": ("hidden_size", "queries"),
            "layers.{layer}.mlp.gate_proj.weight": ("intermediate_size", "hidden_size"),
            "layers.{layer}.mlp.up_proj.weight": ("intermediate_size", "hidden_size"),
            "layers.{layer}.mlp.down_proj.weight": ("hidden_size", "intermediate_size"),
            "layers.{layer}.input_layernorm.weight": ("hidden_size",),
            "layers.{layer}.post_attention_layernorm.weight": ("hidden_size",),
        },
        prefix="model.",
        appends_eos=True,
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = {entry.name: entry for entry in _ALL}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A checkpoint's config.json.

    Attributes:
        architecture: The architecture that its ``model_type`` names.
        values: Its keys and values, completed with the defaults of transformers.
    """

    architecture: Architecture
    values: Mapping[str, Any]

    @property
    def max_tokens(self) -> int:
        """Returns the largest number of tokens that have positions: 512 of XLM-R's 514 rows."""
        rows = int(self.values["max_position_embeddings"])
        skipped = int(self.values["pad_token_id"]) + 1 if self.architecture.skips_padding else 0
        return rows - skipped

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields the name and the shape of each tensor that the architecture needs."""
        heads = int(self.values["num_attention_heads"])
        head = self.values.get("head_dim") or self.values["hidden_size"] // heads
        keys = head * (self.values.get("num_key_value_heads") or heads)
        sizes = {**self.values, "queries": head * heads, "keys": keys}
        for name, shape in self.architecture.tensors.items():
            yield name, tuple(sizes[size] for size in shape)
        for layer in range(self.values["num_hidden_layers"]):
            for name, shape in self.architecture.layer_tensors.items():
                yield name.format(layer=layer), tuple(sizes[size] for size in shape)


def read_config(directory: Path) -> ModelConfig:
    """Returns the config.json of a checkpoint.

    Raises:
        ModelError: If it cannot be read, names an architecture that e5spark does not run, or has
            a size that is not a whole number.
    """
    config = read_json(directory / "config.json")
    name = config.get("model_type")
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise ModelError(
            f"{directory} holds a {name!r} model; e5spark runs {', '.join(ARCHITECTURES)}."
        )
    values = {**architecture.defaults, **config}
    for key, default in architecture.defaults.items():
        smallest = 0 if key == "pad_token_id" else 1
        value = values[key]
        if isinstance(default, int) and not (
            isinstance(value, int) and not isinstance(value, bool) and value >= smallest
        ):
            raise ModelError(
                f"{directory}/config.json has {key} {value!r}; it must be a whole number, "
                f"{smallest} or more. Fetch it again."
            )
    return ModelConfig(architecture=architecture, values=values)
