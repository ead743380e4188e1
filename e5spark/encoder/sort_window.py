"""A sort window: the rows that are tokenised and sorted by length together.

Texts are repaired and get their prompts; each distinct text is tokenised once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from e5spark import text
from e5spark.encoder.batching import Indices, Ints
from e5spark.encoder.long_text import Window, split
from e5spark.encoder.tokenizer import Tokenizer, Tokens
from e5spark.model import prompts
from e5spark.model.registry import Recipe


@dataclass(frozen=True, kw_only=True)
class SortWindow:
    """The distinct texts of a sort window, tokenised: one row per text, or per window of a text.

    Attributes:
        tokens: The tokens of each row.
        owner: The distinct text that each row belongs to; ascending.  # (rows,)
        windows: The part of its text that each row holds; empty unless long texts are split.
        already_prompted: Which distinct texts began with a prompt already.  # (distinct,)
        refused: Number of a distinct text to the message that says why it is not encoded; its row
            is tokenised as an empty text.
        inverse: The distinct text of each input text.  # (texts,)
    """

    tokens: Tokens
    owner: Ints
    windows: list[Window]
    already_prompted: npt.NDArray[np.bool_]
    refused: dict[int, str]
    inverse: Indices


def tokenize(
    tokenizer: Tokenizer, recipe: Recipe, texts: Sequence[str], prefixes: Sequence[str]
) -> SortWindow:
    """Returns the texts of a sort window, tokenised, each with its own prefix.

    Lone surrogates are replaced by U+FFFD. Texts that are equal, prefix included, are tokenised,
    and later encoded, once.

    Args:
        tokenizer: The checkpoint's tokenizer.
        recipe: The prompts, the limits and how to handle long texts.
        texts: Texts without prompts.
        prefixes: The prefix of each text.
    """
    repaired = [text.repair(string) for string in texts]
    if recipe.already_prompted == "keep":
        prefixes = _without_repeated_prompts(recipe, repaired, prefixes)
    repaired, prefixes, inverse = _distinct(repaired, prefixes)
    already_prompted = prompts.already_prompted(recipe.prompts, repaired)
    refused = _refused(tokenizer, recipe, prefixes, already_prompted)
    if refused:  # an empty text in their place costs next to nothing
        repaired = ["" if row in refused else string for row, string in enumerate(repaired)]
        prefixes = ["" if row in refused else prefix for row, prefix in enumerate(prefixes)]
    tokenize_rows = _truncate if recipe.long_text == "truncate" else _split
    owner, parts, tokens = tokenize_rows(tokenizer, recipe, repaired, prefixes)
    return SortWindow(
        tokens=tokens,
        owner=owner,
        windows=parts,
        already_prompted=np.array(already_prompted, dtype=bool),
        refused=refused,
        inverse=inverse,
    )


def _distinct(
    texts: list[str], prefixes: Sequence[str]
) -> tuple[list[str], Sequence[str], Indices]:
    """The distinct texts, their prefixes, and the number of the distinct text of each text."""
    if len(set(prefixes)) <= 1 and len(set(texts)) == len(texts):  # most windows of most tables
        return texts, prefixes, np.arange(len(texts))
    numbers: dict[tuple[str, str], int] = {}
    pairs = zip(prefixes, texts, strict=True)
    inverse = np.fromiter(
        (numbers.setdefault(pair, len(numbers)) for pair in pairs), np.intp, count=len(texts)
    )
    return [pair[1] for pair in numbers], [pair[0] for pair in numbers], inverse


def _without_repeated_prompts(
    recipe: Recipe, texts: Sequence[str], prefixes: Sequence[str]
) -> list[str]:
    """The prefixes, empty for a text that already begins with exactly such a prompt."""
    heads = prompts.prompt_heads(recipe.prompts)
    return [
        "" if heads and string.startswith(heads) else prefix
        for string, prefix in zip(texts, prefixes, strict=True)
    ]


def _refused(
    tokenizer: Tokenizer, recipe: Recipe, prefixes: Sequence[str], already_prompted: Sequence[bool]
) -> dict[int, str]:
    """The texts not to encode, with the reason: no room beside the prompt, or a prompt already."""
    sizes = {prefix: tokenizer.special_tokens + tokenizer.count(prefix) for prefix in set(prefixes)}
    refused: dict[int, str] = {}
    room = recipe.max_tokens - 2 * recipe.overlap
    if recipe.already_prompted != "refuse" and all(size < room for size in sizes.values()):
        return refused
    for row, (prefix, has_prompt) in enumerate(zip(prefixes, already_prompted, strict=True)):
        if sizes[prefix] >= room:
            refused[row] = (
                f"The prompt and the special tokens take {sizes[prefix]} of max_tokens "
                f"{recipe.max_tokens}; too few are left for a text, with overlap "
                f"{recipe.overlap}. Shorten the prompt, or raise max_tokens."
            )
        elif has_prompt and recipe.already_prompted == "refuse":
            refused[row] = (
                "The text begins with a prompt already, and already_prompted is 'refuse'. Remove "
                "the prompt from the text, or use 'keep' or 'report'."
            )
    return refused


def _truncate(
    tokenizer: Tokenizer, recipe: Recipe, texts: Sequence[str], prefixes: Sequence[str]
) -> tuple[Ints, list[Window], Tokens]:
    """One row per text: owners, no windows, tokens."""
    prompted = [prefix + string for prefix, string in zip(prefixes, texts, strict=True)]
    owner = np.arange(len(texts), dtype=np.int32)
    return owner, [], tokenizer.tokenize(prompted, recipe.max_tokens)


def _split(
    tokenizer: Tokenizer, recipe: Recipe, texts: Sequence[str], prefixes: Sequence[str]
) -> tuple[Ints, list[Window], Tokens]:
    """One row per window that fits the model: owners, windows and tokens."""
    room = recipe.max_tokens - tokenizer.special_tokens
    capacities = {prefix: room - tokenizer.count(prefix) for prefix in set(prefixes)}
    parts: list[list[Window]] = [[] for _ in texts]
    pending: Sequence[int] = range(len(texts))
    # A word cut in two can have more tokens than the same word uncut. Texts whose windows do not
    # fit are split again into smaller ones, so that nothing is lost.
    for slack in (0, 2, 8, 32):
        for row in pending:
            parts[row] = split(
                texts[row],
                tokenizer,
                capacity=max(capacities[prefixes[row]] - slack, 1),
                overlap=recipe.overlap,
            )
        owner = np.repeat(np.arange(len(texts), dtype=np.int32), list(map(len, parts)))
        prompted = [
            prefix + string[window.start : window.end]
            for prefix, string, own in zip(prefixes, texts, parts, strict=True)
            for window in own
        ]
        tokens = tokenizer.tokenize(prompted, recipe.max_tokens)
        pending = [int(row) for row in np.unique(owner[tokens.truncated])]
        if not pending:
            break
    return owner, [window for own in parts for window in own], tokens
