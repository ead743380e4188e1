"""The weights of a BERT or XLM-R checkpoint, named in an ONNX graph.

An export keeps a parameter's name where the graph uses the parameter as it is. The matrix of a
product is often stored transposed and without a name (``onnx::MatMul_1525``): it belongs to the
module whose bias is added to the product, and the scope in a node's name must not say otherwise.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from e5spark.model.architecture import ModelConfig
from e5spark.model.onnx.graph import Graph, Node, Tensor

_WORDS = "embeddings.word_embeddings.weight"
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
_QUANTISED_TYPES = {"int8", "uint8", "type 21", "type 22"}  # the last two are 4-bit integers
_QUANTISED_NODES = {"DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul"}
_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Never used, so the checkpoint is complete without them.
_UNUSED = ("pooler.",)


class GraphWeights:
    """A graph, with the name in the checkpoint of each tensor that it computes with.

    Attributes:
        graph: The graph.
        constants: Name in the graph to tensor, under each name that nodes use it by.
        consumers: Name in the graph to the nodes that use it.
        producers: Name in the graph to the node that computes it.
        tensors: Name in the checkpoint to tensor.
        transposed: Names in the checkpoint whose tensor in the graph is transposed.
        results: Name of a module to the name in the graph of its result.
    """

    def __init__(self, graph: Graph) -> None:
        """Reads a graph.

        Args:
            graph: The graph, with all of its data.

        Raises:
            ValueError: If it is not the graph of a BERT or XLM-R encoder; the message says what
                differs, and its subject is the file.
        """
        self.graph = graph
        self._check_kind()
        self.constants = dict(_constants(graph))
        self.consumers: dict[str, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            for name in node.inputs:
                self.consumers[name].append(node)
        self.producers = {name: node for node in graph.nodes for name in node.outputs}
        self._prefix = self._find_prefix()
        self.tensors: dict[str, Tensor] = {}
        self.transposed: set[str] = set()
        self.results: dict[str, str] = {}
        self._name_tensors()

    def weights(self, config: ModelConfig) -> Iterator[tuple[str, str, npt.NDArray[Any]]]:
        """Yields each tensor of the architecture: its name, safetensors' dtype, and its values.

        Args:
            config: The checkpoint's config.json, which decides names and shapes.

        Raises:
            ValueError: If a tensor is missing, has another shape or type, or is one too many.
        """
        expected = dict(config.tensors())
        missing = [name for name in expected if name not in self.tensors]
        if missing:
            raise ValueError(f"lacks {len(missing)} weights, {missing[0]} among them")
        extra = [
            name for name in self.tensors if name not in expected and not name.startswith(_UNUSED)
        ]
        if extra:
            raise ValueError(f"has a weight {extra[0]}, which the architecture does not have")
        for name, shape in expected.items():
            tensor = self.tensors[name]
            if tensor.dtype not in _STORED:
                raise ValueError(f"has {name} in {tensor.dtype}, not in a type that e5spark reads")
            values = tensor.array()
            values = values.T if name in self.transposed else values
            if values.shape != shape:
                raise ValueError(f"has {name} of shape {values.shape}, not {shape}")
            yield name, _STORED[tensor.dtype], values

    def _check_kind(self) -> None:
        graph = self.graph
        types = {tensor.dtype for tensor in graph.initializers}
        operators = {node.operator for node in graph.nodes}
        quantised = sorted(types & _QUANTISED_TYPES) + sorted(operators & _QUANTISED_NODES)
        if quantised:
            raise ValueError(f"is quantised ({quantised[0]})")
        foreign = [node for node in graph.nodes if node.domain not in ("", "ai.onnx")]
        if foreign:
            raise ValueError(
                f"was optimised for one runtime (its node {foreign[0].operator!r} is "
                f"{foreign[0].domain}'s)"
            )
        inputs = sorted(set(graph.inputs) - _INPUTS)
        if inputs or "input_ids" not in graph.inputs:
            raise ValueError(
                f"has the inputs {', '.join(graph.inputs) or 'none'}, not input_ids, "
                "attention_mask and perhaps token_type_ids"
            )

    def _find_prefix(self) -> str:
        names = [name for name in self.constants if name.endswith(_WORDS)]
        if len(names) != 1:
            tensors = [tensor.name for tensor in self.graph.initializers]
            raise ValueError(
                f"has {len(names) or 'no'} {_WORDS}; among its tensors are "
                f"{', '.join(tensors[:3]) or 'none'}"
            )
        return names[0].removesuffix(_WORDS)

    def _name_tensors(self) -> None:
        matrices = set()
        for node in self.graph.nodes:
            if node.operator in ("MatMul", "Gemm"):
                matrices |= self._name_matrix(node)
        for name, tensor in self.constants.items():
            is_weight = tensor.dtype not in ("int64", "int32", "bool") and len(tensor.shape) > 0
            if name in matrices or not is_weight:
                continue
            if name.startswith(self._prefix) and name.endswith((".weight", ".bias")):
                self.tensors[name.removeprefix(self._prefix)] = tensor
            elif np.prod(tensor.shape) > 1:
                raise ValueError(f"has a weight {name} that no module of an encoder uses")

    def _name_matrix(self, node: Node) -> set[str]:
        """Names the constant that a product multiplies by; returns its names in the graph."""
        constants = [
            operand for name in node.inputs[:2] if (operand := self._matrix(name)) is not None
        ]
        if not constants:
            return set()  # of attention's own two products
        graph_name, is_transposed = constants[0]
        if node.operator == "Gemm" and node.attributes.get("transB"):
            is_transposed = not is_transposed
        result, bias = self._biased(node)
        module = bias.removeprefix(self._prefix).removesuffix(".bias")
        scope = ".".join(node.name.split("/")[1:-1])
        if not bias.startswith(self._prefix) or not bias.endswith(".bias"):
            raise ValueError(f"has a product ({node.name or graph_name}) without a module's bias")
        for claim in (scope, graph_name.removesuffix(".weight")):
            is_path = claim.startswith(self._prefix) and ".layer." in claim
            if is_path and claim.removeprefix(self._prefix) != module:
                raise ValueError(f"adds the bias of {module} to a product of {claim}")
        weight = f"{module}.weight"
        self.tensors[weight] = self.constants[graph_name]
        self.results[module] = result
        # A product multiplies by inputs x outputs, and a checkpoint has outputs x inputs.
        if is_transposed:
            self.transposed.add(weight)
        return {name for name in (graph_name, node.inputs[1]) if name in self.constants}

    def _matrix(self, name: str) -> tuple[str, bool] | None:
        """The constant matrix of a product's operand, and whether it has the inputs first."""
        if name in self.constants:
            return name, True
        producer = self.producers.get(name)
        if producer is not None and producer.operator == "Transpose":
            source = producer.inputs[0]
            if source in self.constants and producer.attributes.get("perm", (1, 0)) == (1, 0):
                return source, False
        return None

    def _biased(self, node: Node) -> tuple[str, str]:
        """The result of a product with its bias, and the bias; both empty if it has none."""
        if node.operator == "Gemm":
            return node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else ""
        for consumer in self.consumers[node.outputs[0]]:
            if consumer.operator == "Add":
                other = [name for name in consumer.inputs if name != node.outputs[0]]
                if other and other[0] in self.constants:
                    return consumer.outputs[0], other[0]
        return "", ""


def _constants(graph: Graph) -> Iterator[tuple[str, Tensor]]:
    """Each constant of a graph, under each name that nodes use it by."""
    tensors = {}
    for tensor in graph.initializers:
        tensors[tensor.name] = tensor
        yield tensor.name, tensor
    for node in graph.nodes:
        value: object = None
        if node.operator == "Constant":
            value = node.attributes.get("value")
        elif node.operator == "Identity":  # equal weights are stored once
            value = tensors.get(node.inputs[0])
        if isinstance(value, Tensor):
            tensors[node.outputs[0]] = value
            yield node.outputs[0], value
