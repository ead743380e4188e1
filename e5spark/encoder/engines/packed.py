"""Packed forward passes: rows end to end in one sequence, so that no time is spent on padding."""

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

# Not in transformers' registry of masks, and that is the point: no mask is built for such a name.
_NAME = "e5spark_packed"
_EVERYTHING = (-1, -1)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where the rows lie in the flat sequence.

    Attributes:
        offsets: int32, on the device: the first token of each row, then their sum.  # (rows + 1,)
        longest: Tokens of the longest row; known to the host, so that nobody asks the device.
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
        window: tuple[int, int],
    ) -> torch.Tensor:
        """Returns what each token takes from the tokens of its own row; like the query in shape.

        Args:
            query: (tokens, heads, head size)
            key: (tokens, key heads, head size); heads are a multiple of key heads.
            value: As the key.
            rows: Where the rows lie.
            scale: Of the scores.
            window: The most tokens to the left and to the right that a token sees; -1 is all.
        """
        ...


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    *,
    scale: float,
    window: tuple[int, int],
) -> torch.Tensor:
    """The kernel of GPUs: torch's own flash attention; see ``Kernel``."""
    from torch.nn.attention.varlen import varlen_attn

    found = varlen_attn(
        query,
        key,
        value,
        rows.offsets,
        rows.offsets,
        rows.longest,
        rows.longest,
        scale=scale,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, torch.Tensor)  # a pair only where more is asked for
    return found


def by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    *,
    scale: float,
    window: tuple[int, int],
) -> torch.Tensor:
    """The kernel of any device: one plain attention for each run of equally long rows."""
    found = query.new_empty(query.shape)
    bounds = rows.offsets.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    end = 0
    for length, run in groupby(lengths):
        start, end = end, end + length * sum(1 for _ in run)
        q, k, v = (  # (rows, heads, length, head size)
            each[start:end].reshape(-1, length, *each.shape[1:]).transpose(1, 2)
            for each in (query, key, value)
        )
        seen = None if window == _EVERYTHING else _seen(length, window, query.device)
        grouped = query.shape[1] != key.shape[1]
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=grouped
        )
        found[start:end] = attended.transpose(1, 2).flatten(0, 1)
    return found


def _seen(length: int, window: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Which keys each query of a row sees, (length, length)."""
    left, right = (length if side < 0 else side for side in window)
    position = torch.arange(length, device=device)
    behind = position[:, None] - position
    return (behind <= left) & (behind >= -right)


def kernel_for(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> Kernel | None:
    """Returns the kernel of packed passes there; None where rows have to be padded."""
    if device.type == "cpu":
        return by_length
    if device.type != "cuda" or not _has_varlen():
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # What torch's flash attention takes; fp32 it does not.
    runs = (
        torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and dtype in (torch.bfloat16, torch.float16)
        and size % 8 == 0
        and size <= 256
    )
    return varlen if runs else None


def _has_varlen() -> bool:
    """Whether this torch has variable-length attention with windows and grouped heads: >= 2.11."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"scale", "window_size", "enable_gqa"} <= inspect.signature(
        varlen_attn
    ).parameters.keys()


class PackedModel:
    """A model of transformers whose rows lie end to end; none of them sees another."""

    def __init__(self, model: PreTrainedModel, kernel: Kernel) -> None:
        """Takes over a BERT, XLM-R or Mistral in evaluation mode: its attention is replaced.

        Raises:
            ModelError: If this transformers does not let the attention be replaced.
        """
        AttentionInterface.register(_NAME, _attend)
        model.set_attn_implementation(_NAME)
        # transformers only warns, and then every text would see every other.
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
        """Returns the hidden state of every token, (tokens, hidden).

        Args:
            ids: int32 token ids of the rows, end to end.  # (tokens,)
            rows: Where the rows lie.
        """
        hidden: torch.Tensor = self._model(
            input_ids=ids[None],
            position_ids=self._positions(ids, rows)[None],
            rows=rows,
            kernel=self._kernel,
        ).last_hidden_state[0]
        return hidden

    def _positions(self, ids: torch.Tensor, rows: Rows) -> torch.Tensor:
        """As transformers numbers the tokens of each row; XLM-R leaves pads out even in a text."""
        first = rows.offsets[:-1].long()
        if self._pad_position is None:
            count = torch.arange(len(ids), device=ids.device)
            return count - _spread(first, rows, len(ids))
        is_token = (ids != self._pad_position).long()
        count = is_token.cumsum(0)
        before = _spread((count - is_token)[first], rows, len(ids))
        return (count - before) * is_token + self._pad_position


def pad_position(model: PreTrainedModel) -> int | None:
    """Returns the token that XLM-R leaves out when it numbers others from the next position on.

    None for BERT and Mistral, which number all tokens from 0.
    """
    architecture = ARCHITECTURES[model.config.model_type]
    return int(model.config.pad_token_id) if architecture.skips_padding else None


def pool(hidden: torch.Tensor, rows: Rows, pooling: Pooling) -> torch.Tensor:
    """Returns one fp32 vector a row, (rows, hidden), from the hidden state of every token."""
    offsets = rows.offsets.long()
    if pooling == "cls":
        return hidden[offsets[:-1]].float()
    if pooling == "last":
        return hidden[offsets[1:] - 1].float()
    # "unsafe" leaves out a check that would wait for the device.
    return torch.segment_reduce(hidden.float(), "mean", lengths=offsets.diff(), axis=0, unsafe=True)


def _spread(values: torch.Tensor, rows: Rows, tokens: int) -> torch.Tensor:
    """Each row's value for each of its tokens; the sum is given, so that no device is asked."""
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
    """What transformers calls in each layer, with (1, heads, tokens, head size)."""
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    if isinstance(getattr(module, "key", None), torch.nn.Identity):  # see _fuse
        query, key, value = query.chunk(3, dim=1)
    window = _EVERYTHING
    if module.is_causal:
        # transformers' window counts the token itself.
        narrow = sliding_window is not None and rows.longest > sliding_window
        window = (sliding_window - 1 if sliding_window and narrow else -1, 0)
    return kernel(query, key, value, rows, scale=scaling, window=window)[None], None


def _fuse(model: torch.nn.Module) -> None:
    """Joins the query, key and value layers of a BERT or XLM-R: one wide product for three.

    The joint layer stands where transformers looks for the query, and ``_attend`` takes its output
    apart. The decoder rotates its queries and keys before that, and keeps its three layers.
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
