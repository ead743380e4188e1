"""A window of texts, tokenised: repaired, with prompts, each distinct text once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from e5spark import text
from e5spark.encoder.batching import Indices, Ints
from e5spark.encoder.long_text import Window, windows
from e5spark.encoder.tokenizer import Tokenizer, Tokens
from e5spark.model import prompts
from e5spark.model.registry import Recipe


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """The distinct texts of a window: one row for each, or for each part of a text.

    Attributes:
        tokens: Of each row.
        owner: The distinct text that each row belongs to; ascending.  # (rows,)
        parts: The part of its text that each row holds; empty unless long texts are taken apart.
        already_prompted: Which distinct texts began with a prompt already.  # (distinct,)
        refused: Distinct text to message of those that may not be encoded; their rows are those
            of an empty text.
        inverse: The distinct text that each of the window's texts is.  # (texts,)
    """

    tokens: Tokens
    owner: Ints
    parts: list[Window]
    already_prompted: npt.NDArray[np.bool_]
    refused: dict[int, str]
    inverse: Indices


def tokenize_window(
    tokenizer: Tokenizer, recipe: Recipe, texts: Sequence[str], prefixes: Sequence[str]
) -> Tokenized:
    """Returns the tokens of the texts, each with the prefix of its own role.

    Lone surrogates are replaced by U+FFFD. Texts that are the same, prefix included, are
    tokenised, and later encoded, once.
    """
    repaired = [text.repair(each) for each in texts]
    if recipe.already_prompted == "keep":
        prefixes = _kept(recipe, repaired, prefixes)
    repaired, prefixes, inverse = _distinct(repaired, prefixes)
    already_prompted = prompts.already_prompted(recipe.prompts, repaired)
    refused = _refused(tokenizer, recipe, prefixes, already_prompted)
    if refused:  # an empty text in their place costs next to nothing
        repaired = ["" if row in refused else each for row, each in enumerate(repaired)]
        prefixes = ["" if row in refused else each for row, each in enumerate(prefixes)]
    rows = _whole if recipe.long_text == "truncate" else _taken_apart
    owner, parts, tokens = rows(tokenizer, recipe, repaired, prefixes)
    return Tokenized(
        tokens=tokens,
        owner=owner,
        parts=parts,
        already_prompted=np.array(already_prompted, dtype=bool),
        refused=refused,
        inverse=inverse,
    )


def _distinct(
    texts: list[str], prefixes: Sequence[str]
) -> tuple[list[str], Sequence[str], Indices]:
    """The distinct texts and their prefixes, and which of them each text is."""
    if len(set(prefixes)) <= 1 and len(set(texts)) == len(texts):  # most windows of most tables
        return texts, prefixes, np.arange(len(texts))
    numbers: dict[tuple[str, str], int] = {}
    pairs = zip(prefixes, texts, strict=True)
    inverse = np.fromiter(
        (numbers.setdefault(pair, len(numbers)) for pair in pairs), np.intp, count=len(texts)
    )
    return [pair[1] for pair in numbers], [pair[0] for pair in numbers], inverse


def _kept(recipe: Recipe, texts: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    """No prefix for a text that has a prompt to the letter."""
    own = prompts.prompt_heads(recipe.prompts)
    return [
        "" if own and each.startswith(own) else prefix
        for each, prefix in zip(texts, prefixes, strict=True)
    ]


def _refused(
    tokenizer: Tokenizer, recipe: Recipe, prefixes: Sequence[str], already_prompted: Sequence[bool]
) -> dict[int, str]:
    """Why a text is not encoded: its prompt leaves it no room, or it has one already."""
    taken = {each: tokenizer.special_tokens + tokenizer.count(each) for each in set(prefixes)}
    refused: dict[int, str] = {}
    room = recipe.max_tokens - 2 * recipe.overlap
    if recipe.already_prompted != "refuse" and all(each < room for each in taken.values()):
        return refused
    for row, (prefix, has_prompt) in enumerate(zip(prefixes, already_prompted, strict=True)):
        if taken[prefix] >= room:
            refused[row] = (
                f"The prompt and the special tokens take {taken[prefix]} of max_tokens "
                f"{recipe.max_tokens}; too few are left for a text, with overlap "
                f"{recipe.overlap}."
            )
        elif has_prompt and recipe.already_prompted == "refuse":
            refused[row] = (
                "The text begins with a prompt already, and already_prompted is 'refuse'."
            )
    return refused


def _whole(
    tokenizer: Tokenizer, recipe: Recipe, texts: Sequence[str], prefixes: Sequence[str]
) -> tuple[Ints, list[Window], Tokens]:
    """One row for each text: owners, no parts, tokens."""
    whole = [prefix + each for prefix, each in zip(prefixes, texts, strict=True)]
    return np.arange(len(texts), dtype=np.int32), [], tokenizer.tokenize(whole, recipe.max_tokens)


def _taken_apart(
    tokenizer: Tokenizer, recipe: Recipe, texts: Sequence[str], prefixes: Sequence[str]
) -> tuple[Ints, list[Window], Tokens]:
    """One row for each part of a text that fits the model: owners, parts and tokens."""
    room = recipe.max_tokens - tokenizer.special_tokens
    capacities = {each: room - tokenizer.count(each) for each in set(prefixes)}
    found: list[list[Window]] = [[] for _ in texts]
    pending: Sequence[int] = range(len(texts))
    # A word that is cut in two can have more tokens than it had as one. Parts that do not fit as
    # the texts they are get smaller, so that nothing is lost.
    for slack in (0, 2, 8, 32):
        for row in pending:
            found[row] = windows(
                texts[row],
                tokenizer.spans(texts[row]),
                capacity=max(capacities[prefixes[row]] - slack, 1),
                overlap=recipe.overlap,
            )
        owner = np.repeat(np.arange(len(texts), dtype=np.int32), [len(each) for each in found])
        parts = [part for each in found for part in each]
        whole = [
            prefix + each[part.start : part.end]
            for prefix, each, own in zip(prefixes, texts, found, strict=True)
            for part in own
        ]
        tokens = tokenizer.tokenize(whole, recipe.max_tokens)
        pending = [int(row) for row in np.unique(owner[tokens.truncated])]
        if not pending:
            break
    return owner, parts, tokens
