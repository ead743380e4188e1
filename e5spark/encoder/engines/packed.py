"""Packed forward passes: rows lie end to end in one sequence, so that padding costs no time."""

import importlib.util
import inspect
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Protocol

import torch
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from e5spark.errors import ModelError
from e5spark.model.architecture import ARCHITECTURES
from e5spark.model.registry import Pooling

# On purpose not in transformers' registry of masks: it builds no mask for an unknown name.
_NAME = "e5spark_packed"
_UNLIMITED = (-1, -1)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a packed sequence.

    Attributes:
        offsets: First token of each row, then the number of tokens; int32, on the
            device.  # (rows + 1,)
        longest: Tokens of the longest row; on the host, so that no pass waits for the device.
    """

    offsets: torch.Tensor
    longest: int


class Kernel(Protocol):
    """Attention within each row."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rows: Rows,
        *,
        scale: float,
        window_size: tuple[int, int],
    ) -> torch.Tensor:
        """Returns the attention of each token over its own row, in the shape of the query.

        Args:
            query: (tokens, heads, head size)
            key: (tokens, key heads, head size); heads are a multiple of key heads.
            value: Like the key.
            rows: The rows of the sequence.
            scale: Factor of the scores.
            window_size: Maximum number of tokens that a token attends to on its left and right; -1
                means all.
        """
        ...


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """The kernel for GPUs: torch's own flash attention; see ``Kernel``."""
    from torch.nn.attention.varlen import varlen_attn

    attended = varlen_attn(
        query,
        key,
        value,
        rows.offsets,
        rows.offsets,
        rows.longest,
        rows.longest,
        scale=scale,
        window_size=window_size,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, torch.Tensor)  # a pair only with more outputs requested
    return attended


def by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """The kernel for any device: one plain attention call per run of rows of equal length."""
    output = query.new_empty(query.shape)
    bounds = rows.offsets.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    end = 0
    for length, run in groupby(lengths):
        start, end = end, end + length * sum(1 for _ in run)
        q, k, v = (  # (rows, heads, length, head size)
            tensor[start:end].reshape(-1, length, *tensor.shape[1:]).transpose(1, 2)
            for tensor in (query, key, value)
        )
        mask = (
            None if window_size == _UNLIMITED else _window_mask(length, window_size, query.device)
        )
        grouped = query.shape[1] != key.shape[1]
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped
        )
        output[start:end] = attended.transpose(1, 2).flatten(0, 1)
    return output


def _window_mask(length: int, window_size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """The keys that each query of a row attends to.  # bool, (length, length)."""
    left, right = (length if side < 0 else side for side in window_size)
    position = torch.arange(length, device=device)
    behind = position[:, None] - position
    return (behind <= left) & (behind >= -right)


def kernel_for(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> Kernel | None:
    """Returns the kernel of packed passes on a device; None where rows must be padded."""
    if device.type == "cpu":
        return by_length
    if device.type != "cuda" or not _has_varlen():
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # The limits of torch's flash attention, which has no fp32.
    is_supported = (
        torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype in (torch.bfloat16, torch.float16)
        and size % 8 == 0
        and size <= 256
    )
    return varlen if is_supported else None


def _has_varlen() -> bool:
    """Whether this torch has variable-length attention with windows and grouped heads: >= 2.11."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(
        varlen_attn
    ).parameters.keys()


class PackedModel:
    """A transformers model for packed rows; no row attends to another."""

    def __init__(self, model: PreTrainedModel, kernel: Kernel) -> None:
        """Replaces the attention of a model, which belongs to this object from now on.

        Args:
            model: A model of one of ``ARCHITECTURES``, in evaluation mode.
            kernel: Its new attention.

        Raises:
            ModelError: If this transformers cannot replace the attention.
        """
        AttentionInterface.register(_NAME, _attend)
        model.set_attn_implementation(_NAME)
        # transformers only warns, and then every text would attend to every other.
        if model.config._attn_implementation != _NAME:
            raise ModelError(
                f"This transformers cannot replace the attention of a {type(model).__name__}, "
                "which packed passes need; install transformers >= 5.0."
            )
        _fuse(model)
        self._model = model
        self._kernel = kernel
        self._pad_position = pad_position(model)

    def __call__(self, ids: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Returns the hidden state of every token.  # (tokens, hidden).

        Args:
            ids: Token ids of the rows, end to end; int32.  # (tokens,)
            rows: The rows of the sequence.
        """
        hidden: torch.Tensor = self._model(
            input_ids=ids[None],
            position_ids=self._positions(ids, rows)[None],
            rows=rows,
            kernel=self._kernel,
        ).last_hidden_state[0]
        return hidden

    def _positions(self, ids: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The positions as transformers numbers them; XLM-R skips pads even inside a text."""
        first = rows.offsets[:-1].long()
        if self._pad_position is None:
            count = torch.arange(len(ids), device=ids.device)
            return count - _spread(first, rows, len(ids))
        is_token = (ids != self._pad_position).long()
        count = is_token.cumsum(0)
        before = _spread((count - is_token)[first], rows, len(ids))
        return (count - before) * is_token + self._pad_position


def pad_position(model: PreTrainedModel) -> int | None:
    """Returns the id of the token that gets no position number; None if every token gets one.

    XLM-R numbers all other tokens from that id plus 1; BERT and Mistral number every token from 0.
    """
    architecture = ARCHITECTURES[model.config.model_type]
    return int(model.config.pad_token_id) if architecture.skips_padding else None


def pool(hidden: torch.Tensor, rows: Rows, pooling: Pooling) -> torch.Tensor:
    """Returns one fp32 vector per row from the hidden states of its tokens.  # (rows, hidden)."""
    offsets = rows.offsets.long()
    if pooling == "cls":
        return hidden[offsets[:-1]].float()
    if pooling == "last":
        return hidden[offsets[1:] - 1].float()
    # "unsafe" skips a check that would wait for the device.
    return torch.segment_reduce(hidden.float(), "mean", lengths=offsets.diff(), axis=0, unsafe=True)


def _spread(values: torch.Tensor, rows: Rows, tokens: int) -> torch.Tensor:
    """Each row's value, repeated for its tokens; ``tokens``, their number, spares a device sync."""
    return values.repeat_interleave(rows.offsets.diff(), output_size=tokens)


def _attend(  # noqa: PLR0913  # transformers decides
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    rows: Rows,
    kernel: Kernel,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Called by transformers in each layer, with tensors of (1, heads, tokens, head size)."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if isinstance(getattr(module, "key", None), torch.nn.Identity):  # see _fuse
        query, key, value = query.chunk(3, dim=1)
    window_size = _UNLIMITED
    if module.is_causal:
        # The sliding window of transformers counts the token itself.
        applies = sliding_window is not None and rows.longest > sliding_window
        window_size = (sliding_window - 1 if sliding_window and applies else -1, 0)
    return kernel(query, key, value, rows, scale=scaling, window_size=window_size)[None], None


def _fuse(model: torch.nn.Module) -> None:
    """Joins the query, key and value layers of a BERT or XLM-R: one wide product instead of three.

    The joint layer replaces the query layer, and ``_attend`` splits its output. A decoder rotates
    its queries and keys before ``_attend``, so it keeps its three layers.
    """
    for module in model.modules():
        parts = [getattr(module, name, None) for name in ("query", "key", "value")]
        if not all(isinstance(part, torch.nn.Linear) for part in parts):
            continue
        with torch.no_grad():
            weight, bias = (
                torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias")
            )
        joint = torch.nn.Linear(1, 1, device="meta")
        joint.in_features, joint.out_features = weight.shape[1], weight.shape[0]
        joint.weight = torch.nn.Parameter(weight, requires_grad=False)
        joint.bias = torch.nn.Parameter(bias, requires_grad=False)
        module.query = joint
        module.key = module.value = torch.nn.Identity()
