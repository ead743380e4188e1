"""``e5spark search``: the rows of a job's output that answer a query."""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e5spark.cli.overrides import add_overrides
from e5spark.errors import ConfigError
from e5spark.job import job_file, retrieval
from e5spark.job.retrieval import Hit
from e5spark.job.session import session

_WIDTH = 100
_ORDER = "\nOnly the order of the scores means anything: unrelated texts have about 0.7.\n\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the job file that wrote the vectors")
    parser.add_argument("query", nargs="*", help="the text to search for, without a prompt")
    parser.add_argument("--queries", type=Path, help="a UTF-8 file with one query in each line")
    parser.add_argument("--k", type=int, default=10, help="rows for each query (10)")
    parser.add_argument("--filter", help="which rows to search, as a condition in SQL")
    parser.add_argument("--vector", help="the column of vectors, if the job writes several")
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    queries = [*options.query, *_lines(options.queries)]
    if not queries:
        raise ConfigError("There is no query; give a text, or --queries FILE.")
    config = job_file.load(options.config, options.set)
    with session(config) as spark:
        hits = retrieval.search(
            spark, config, queries, k=options.k, filter=options.filter, vector=options.vector
        )
    sys.stdout.write(_table(queries, hits))
    by_query = {number: list(group) for number, group in itertools.groupby(hits, _number)}
    return {
        "queries": [
            {"query": query, "hits": [_fields(hit) for hit in by_query.get(number, [])]}
            for number, query in enumerate(queries)
        ]
    }


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        # splitlines() would also split at characters of a text, such as U+2028.
        return [line for line in path.read_text("utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--queries {path} cannot be read: {error}.") from error


def _number(hit: Hit) -> int:
    return hit.query


def _fields(hit: Hit) -> dict[str, Any]:
    return {key: value for key, value in asdict(hit).items() if key != "query"}


def _table(queries: Sequence[str], hits: Sequence[Hit]) -> str:
    """The hits to read, each query with its best rows; a text takes one line."""
    width = max((len(str(hit.id)) for hit in hits), default=0)
    lines = []
    for number, query in enumerate(queries):
        lines.append(f"\n{_line(query)}")
        answers = [hit for hit in hits if hit.query == number]
        lines += [
            f"  {hit.rank:>3}  {hit.score:.4f}  {hit.id!s:<{width}}  {_line(hit.text or '')}"
            for hit in answers
        ] or ["  nothing"]
    return "\n".join([*lines, _ORDER])


def _line(text: str) -> str:
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words if len(words) <= _WIDTH else f"{words[: _WIDTH - 1]}…"
