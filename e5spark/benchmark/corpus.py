"""Texts whose lengths, in tokens of the tokenizer at hand, follow a known distribution."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

Ints = npt.NDArray[np.int64]

_WORDS = 20_000  # as many different words as a large corpus uses often
_MOST_TOKENS = 8_000  # of one text; the model reads the first 512


@dataclass(frozen=True, kw_only=True)
class Mix:
    """A distribution of lengths.

    Attributes:
        role: What the texts are for.
        lengths: Generator and rows to tokens of each text, prompt and special tokens included.
        repeated: Share of rows that repeat the text of another.
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
    """Returns texts of this mix, without their prompt; the same ones for the same seed.

    They consist of words that the tokenizer knows whole and, one in five, of two such words
    grown together, so that their lengths are those that the mix asks for.
    """
    random = np.random.default_rng(seed)
    overhead = len(tokenizer.encode(prefix).ids)
    different = rows - round(mix.repeated * rows)
    lengths = np.rint(mix.lengths(random, different)).astype(np.int64)
    wanted = np.clip(lengths - overhead, 1, _MOST_TOKENS)
    texts = _texts(wanted, tokenizer, random)
    copies = random.integers(0, different, rows - different)
    texts += [texts[copy] for copy in copies]
    return [texts[row] for row in random.permutation(rows)]


def token_counts(
    texts: list[str], *, tokenizer: tokenizers.Tokenizer, prefix: str, max_tokens: int
) -> Ints:
    """Returns the tokens of each text that the model reads, prompt and special tokens included."""
    encoded = tokenizer.encode_batch_fast([prefix + text for text in texts])
    return np.array([min(len(each.ids), max_tokens) for each in encoded], dtype=np.int64)


def _texts(wanted: Ints, tokenizer: tokenizers.Tokenizer, random: np.random.Generator) -> list[str]:
    single = _whole_words(tokenizer)
    random.shuffle(single)
    single = single[:_WORDS]
    pairs = [one + other for one, other in zip(single[::2], single[1::2], strict=False)] or single
    sizes = _sizes(pairs, tokenizer)
    texts = []
    for tokens in wanted:
        picked = _zipf(random, len(single), int(tokens))
        text, count = [], 0
        for number in picked:
            pair = int(number) % len(pairs)
            grown = random.random() < 0.2 and count + sizes[pair] <= tokens
            text.append(pairs[pair] if grown else single[int(number)])
            count += sizes[pair] if grown else 1
            if count >= tokens:
                break
        texts.append(" ".join(text))
    return texts


def _zipf(random: np.random.Generator, words: int, count: int) -> Ints:
    """Ranks of words as a language uses them: the n-th about n times as rarely as the first."""
    ranks = np.exp(random.random(count) * np.log(words)).astype(np.int64)
    found: Ints = np.minimum(ranks, words - 1)
    return found


def _whole_words(tokenizer: tokenizers.Tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    begins = next((mark for mark in ("▁", "Ġ") if f"{mark}a" in "".join(pieces)), "")
    stems = [piece.removeprefix(begins) for piece in pieces if piece.startswith(begins)]
    words = [stem for stem in stems if len(stem) > 2 and stem.isalpha()]
    return [word for word, size in zip(words, _sizes(words, tokenizer), strict=True) if size == 1]


def _sizes(words: list[str], tokenizer: tokenizers.Tokenizer) -> list[int]:
    # Inside a text a word follows a space, which is a part of it to some tokenizers.
    encoded = tokenizer.encode_batch_fast(words, add_special_tokens=False)
    return [len(each.ids) for each in encoded]
