"""What the demo prints: lines of at most 100 columns of a terminal."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A passage that the search returned for a query.

    Attributes:
        rank: From 1.
        score: The cosine of the two vectors.
        passage: The passage's id.
        text: The passage.
        relevant: Whether the corpus' judgements call it relevant to the query.
    """

    rank: int
    score: float
    passage: str
    text: str
    relevant: bool


def heading(text: str) -> str:
    """Returns a heading between two lines, after an empty one."""
    line = "─" * WIDTH
    return f"\n{line}\n {text}\n{line}"


def facts(values: Mapping[str, str]) -> str:
    """Returns lines of a name, of at most 11 characters, and a value each."""
    return "\n".join(clipped(f" {name:11}  {value}", WIDTH) for name, value in values.items())


def answers(query: str, hits: Sequence[Hit]) -> str:
    """Returns a query and its hits; a star marks those that are judged relevant."""
    longest = max((len(hit.passage) for hit in hits), default=0)
    lines = [clipped(f" {query}", WIDTH)]
    for hit in hits:
        star = "*" if hit.relevant else " "
        start = f"   {hit.rank}  {hit.score:.3f} {star} {hit.passage:{longest}}  "
        lines.append(start + clipped(hit.text, WIDTH - len(start)))
    return "\n".join(lines)


def share(hits: Mapping[str, Sequence[Hit]], passages: int) -> str:
    """Returns the shares of queries whose first hit, or any, is relevant.

    Args:
        hits: The hits of each query, the best first.
        passages: The number of passages that were searched.
    """
    first = sum(row[0].relevant for row in hits.values())
    among = sum(any(hit.relevant for hit in row) for row in hits.values())
    most = max(map(len, hits.values()))
    number = len(hits)
    return (
        f" {number} queries over {passages} passages: {first / number:.0%} answered by the first "
        f"passage, {among / number:.0%} by one of the first {most}."
    )


def clipped(text: str, width: int) -> str:
    """Returns the beginning of a text that fits into so many columns, on one line."""
    text = " ".join(text.splitlines())
    if columns(text) <= width:
        return text
    end, used = 0, 1  # the ellipsis
    while used + columns(text[end]) <= width:
        used += columns(text[end])
        end += 1
    return text[:end].rstrip() + "…"


def columns(text: str) -> int:
    """Returns the columns of a terminal that a text takes.

    East Asian characters take two, combining and invisible ones none.
    """
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )
