"""The shapes of the E5 family as data, and the cost of a forward pass."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a model.

    Attributes:
        layers: Transformer layers.
        hidden: Width of a token's vector.
        heads: Attention heads.
        ffn: Width inside the feed-forward part.
        architecture: ``bert`` or ``xlm-roberta``, which differs in its positions only.
        tokenizer: ``wordpiece`` as in e5-small-v2, ``unigram`` as in multilingual E5.
        pieces: Size of the tokenizer's vocabulary.
        embeddings: Rows of the embedding table; in some checkpoints more than pieces.
    """

    layers: int
    hidden: int
    heads: int
    ffn: int
    architecture: Literal["bert", "xlm-roberta"] = "bert"
    tokenizer: Literal["wordpiece", "unigram"] = "wordpiece"
    pieces: int = 30_522
    embeddings: int = 30_522


_SMALL = Shape(layers=12, hidden=384, heads=12, ffn=1536)
_BASE = Shape(layers=12, hidden=768, heads=12, ffn=3072)
_LARGE = Shape(layers=24, hidden=1024, heads=16, ffn=4096)
_TINY = Shape(layers=2, hidden=32, heads=4, ffn=64, pieces=1_000, embeddings=1_000)


def _xlmr(shape: Shape) -> Shape:
    return replace(
        shape,
        architecture="xlm-roberta",
        tokenizer="unigram",
        pieces=250_002,
        embeddings=250_002,
    )


SHAPES = {
    "small": _SMALL,
    "base": _BASE,
    "large": _LARGE,
    # multilingual-e5-small is BERT with XLM-R's tokenizer.
    "multilingual-small": replace(_xlmr(_SMALL), architecture="bert", embeddings=250_037),
    "multilingual-base": _xlmr(_BASE),
    "multilingual-large": _xlmr(_LARGE),
    # For tests of the benchmark itself; their figures have no meaning.
    "tiny": _TINY,
    "multilingual-tiny": replace(_xlmr(_TINY), pieces=1_000, embeddings=1_000),
}


def flops(lengths: npt.ArrayLike, *, layers: int, hidden: int, ffn: int) -> float:
    """Returns the floating-point operations that texts of these lengths need, without padding.

    A multiplication and an addition count as two. Linear layers and attention are counted;
    embeddings, LayerNorm, softmax, GELU and pooling are bound by memory and are not counted.

    Args:
        lengths: Tokens of each text, special tokens included.
        layers: Transformer layers.
        hidden: Width of a token's vector.
        ffn: Width inside the feed-forward part.
    """
    tokens = np.asarray(lengths, dtype=np.float64)
    linear = 2 * (4 * hidden**2 + 2 * hidden * ffn) * tokens
    attention = 4 * hidden * tokens**2
    return float(layers * (linear + attention).sum())
