"""The config of a BERT or XLM-R checkpoint, read off an ONNX graph."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from e5spark.model.architecture import ARCHITECTURES, ModelConfig
from e5spark.model.onnx.graph import Node
from e5spark.model.onnx.weights import GraphWeights


def graph_config(weights: GraphWeights) -> dict[str, Any]:
    """Returns the keys of config.json that decide a vector, as far as the graph tells them.

    Raises:
        ValueError: If it computes something else; the message says what differs, and its subject
            is the file.
    """
    sizes = _sizes(weights)
    operators = Counter(node.operator for node in weights.graph.nodes)
    numbers = [
        int(name.split(".")[2]) for name in weights.tensors if name.startswith("encoder.layer.")
    ]
    layers = max(numbers, default=-1) + 1
    names = ("Erf", "Gelu"), ("Softmax", "Attention")
    activations, attentions = (sum(operators[name] for name in group) for group in names)
    if activations != layers or attentions != layers:
        raise ValueError(
            f"has {layers} layers, but {activations} GELUs (Erf) and {attentions} attentions "
            "(Softmax): it computes something else"
        )
    approximate = {node.attributes.get("approximate") for node in _nodes(weights, "Gelu")}
    if "tanh" in approximate:
        raise ValueError("approximates GELU with tanh")
    config: dict[str, Any] = {
        "model_type": "bert",
        "num_hidden_layers": layers,
        **sizes,
        "hidden_act": "gelu",
        "layer_norm_eps": _epsilon(weights, 2 * layers + 1),
    }
    heads = _heads(weights, sizes["hidden_size"])
    if heads is not None:
        config["num_attention_heads"] = heads
    if operators["CumSum"]:  # numbers the tokens that are not padding
        config["model_type"] = "xlm-roberta"
        pad = _pad_id(weights)
        if pad is not None:
            config["pad_token_id"] = pad
    return config


def _sizes(weights: GraphWeights) -> dict[str, int]:
    """The sizes that shapes tell."""
    sizes: dict[str, int] = {}
    entry = ARCHITECTURES["bert"]
    shapes = {**entry.tensors, **entry.layer_tensors}
    for template, keys in shapes.items():
        name = template.format(layer=0)
        if name not in weights.tensors:
            raise ValueError(f"has no {name}")
        shape = weights.tensors[name].shape
        if name in weights.transposed:
            shape = shape[::-1]
        sizes.update(zip(keys, shape, strict=False))
    return sizes


def _epsilon(weights: GraphWeights, norms: int) -> float:
    epsilons = [
        _decimal(node.attributes.get("epsilon", 1e-5))
        for node in _nodes(weights, "LayerNormalization")
    ]
    for node in _nodes(weights, "Sqrt"):
        producer = weights.producers.get(node.inputs[0])
        if producer is not None and producer.operator == "Add":
            epsilons += [
                _decimal(weights.constants[name].array().item())
                for name in producer.inputs
                if name in weights.constants and weights.constants[name].array().size == 1
            ]
    if len(epsilons) != norms or len(set(epsilons)) != 1:
        raise ValueError(
            f"has {len(epsilons)} LayerNorms with the epsilons {sorted(set(epsilons))}; its layers "
            f"need {norms} with one epsilon"
        )
    return epsilons[0]


def _heads(weights: GraphWeights, hidden: int) -> int | None:
    """The number of attention heads; None if the graph does not tell."""
    dims = set()
    for module, result in weights.results.items():
        if module.endswith("attention.self.query"):
            dims |= {_head_size(weights, node) for node in weights.consumers[result]}
    # A Reshape may leave the last dim to the runtime, as -1.
    sizes = {size for size in dims if size is not None and size > 0 and hidden % size == 0}
    if len(sizes) > 1:
        raise ValueError(f"has heads of different sizes, {sorted(sizes)}")
    return hidden // sizes.pop() if sizes else None


def _head_size(weights: GraphWeights, node: Node) -> int | None:
    """The last dim that a Reshape gives the queries."""
    if node.operator != "Reshape":
        return None
    name = node.inputs[1]
    producer = weights.producers.get(name)
    if producer is not None and producer.operator == "Concat":
        name = producer.inputs[-1]
    if name not in weights.constants:
        return None
    return int(weights.constants[name].array().flat[-1])


def _pad_id(weights: GraphWeights) -> int | None:
    """The token that positions leave out; None if the graph does not tell."""
    for node in _nodes(weights, "Equal"):
        if "input_ids" in node.inputs:
            for name in node.inputs:
                if name in weights.constants:
                    return int(weights.constants[name].array().item())
    return None


def _nodes(weights: GraphWeights, operator: str) -> Iterator[Node]:
    return (node for node in weights.graph.nodes if node.operator == operator)


def _decimal(value: object) -> float:
    """The shortest number that rounds to a float32: 1e-12, and not 9.99999996e-13."""
    return float(str(np.float32(value)))  # type: ignore[arg-type]  # a float, as the graph says


def differences(values: Mapping[str, Any], config: ModelConfig) -> list[str]:
    """Returns what a config.json says otherwise than the graph: "hidden_size 768 (not 384)"."""
    return [
        f"{key} {config.values.get(key)!r} (not {value!r})"
        for key, value in values.items()
        if config.values.get(key) != value
    ]
