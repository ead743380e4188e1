"""Texts whose lengths, in the tokens of a tokenizer, follow a distribution."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

Ints = npt.NDArray[np.int64]

_WORDS = 20_000  # distinct words, as many as are frequent in a large corpus
_MAX_TOKENS = 8_000  # of a text; the model reads the first 512


@dataclass(frozen=True, kw_only=True)
class Mix:
    """A distribution of lengths.

    Attributes:
        role: The role of the texts.
        lengths: A function of generator and rows that returns the tokens of each text, prompt and
            special tokens included.
        repeated: Share of rows that repeat the text of another row.
    """

    role: str
    lengths: Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
    repeated: float = 0.0


def _lognormal(
    mean: float, sigma: float
) -> Callable[[np.random.Generator, int], npt.NDArray[np.float64]]:
    return lambda random, rows: random.lognormal(np.log(mean) - sigma**2 / 2, sigma, rows)


MIXES = {
    "queries": Mix(role="query", lengths=_lognormal(12, 0.35)),
    "passages": Mix(role="passage", lengths=_lognormal(80, 0.6)),
    "long": Mix(role="passage", lengths=lambda random, rows: random.normal(350, 60, rows)),
    # Half of the texts have fewer than 36 tokens, one in fifty more than the model reads.
    "heavy": Mix(role="passage", lengths=lambda random, rows: 20 * (random.pareto(1.2, rows) + 1)),
    "duplicates": Mix(role="passage", lengths=_lognormal(80, 0.6), repeated=0.3),
}


def load_tokenizer(directory: Path) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a checkpoint, without truncation or padding."""
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def make_texts(
    mix: Mix, rows: int, *, tokenizer: tokenizers.Tokenizer, prefix: str, seed: int
) -> list[str]:
    """Returns texts of a mix, without prompts; the same seed gives the same texts.

    Texts consist of words that are single tokens, and one word in five is two of them joined, so
    that lengths can follow the mix.

    Args:
        mix: The distribution of lengths.
        rows: Number of texts.
        tokenizer: The tokenizer that counts the tokens, without truncation.
        prefix: The prompt that is counted with each text.
        seed: The seed of lengths and words.
    """
    random = np.random.default_rng(seed)
    overhead = len(tokenizer.encode(prefix).ids)
    distinct = rows - round(mix.repeated * rows)
    lengths = np.rint(mix.lengths(random, distinct)).astype(np.int64)
    targets = np.clip(lengths - overhead, 1, _MAX_TOKENS)
    texts = _texts(targets, tokenizer, random)
    copies = random.integers(0, distinct, rows - distinct)
    texts += [texts[copy] for copy in copies]
    return [texts[row] for row in random.permutation(rows)]


def token_counts(
    texts: list[str], *, tokenizer: tokenizers.Tokenizer, prefix: str, max_tokens: int
) -> Ints:
    """Returns the tokens of each text that the model reads, prompt and special tokens included."""
    encoded = tokenizer.encode_batch_fast([prefix + text for text in texts])
    return np.array([min(len(encoding.ids), max_tokens) for encoding in encoded], dtype=np.int64)


def _texts(
    targets: Ints, tokenizer: tokenizers.Tokenizer, random: np.random.Generator
) -> list[str]:
    single = _whole_words(tokenizer)
    random.shuffle(single)
    single = single[:_WORDS]
    halves = zip(single[::2], single[1::2], strict=False)
    pairs = [first + second for first, second in halves] or single
    sizes = _sizes(pairs, tokenizer)
    texts = []
    for target in targets:
        ranks = _zipf(random, len(single), int(target))
        text, count = [], 0
        for rank in ranks:
            pair = int(rank) % len(pairs)
            is_pair = random.random() < 0.2 and count + sizes[pair] <= target
            text.append(pairs[pair] if is_pair else single[int(rank)])
            count += sizes[pair] if is_pair else 1
            if count >= target:
                break
        texts.append(" ".join(text))
    return texts


def _zipf(random: np.random.Generator, words: int, count: int) -> Ints:
    """Ranks of words as in a language: the n-th word is about n times rarer than the first."""
    ranks = np.exp(random.random(count) * np.log(words)).astype(np.int64)
    result: Ints = np.minimum(ranks, words - 1)
    return result


def _whole_words(tokenizer: tokenizers.Tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    marker = next((mark for mark in ("▁", "Ġ") if f"{mark}a" in "".join(pieces)), "")
    stems = [piece.removeprefix(marker) for piece in pieces if piece.startswith(marker)]
    words = [stem for stem in stems if len(stem) > 2 and stem.isalpha()]
    return [word for word, size in zip(words, _sizes(words, tokenizer), strict=True) if size == 1]


def _sizes(words: list[str], tokenizer: tokenizers.Tokenizer) -> list[int]:
    # As inside a text, where some tokenizers count the space before a word as a part of it.
    encoded = tokenizer.encode_batch_fast(words, add_special_tokens=False)
    return [len(encoding.ids) for encoding in encoded]
