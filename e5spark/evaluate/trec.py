"""Run files and values by query, for the tools of information retrieval."""

from collections.abc import Iterator
from pathlib import Path

from e5spark.errors import OptionError
from e5spark.evaluate.tasks import Judgement


def write(judgement: Judgement, directory: Path, name: str) -> list[Path]:
    """Writes the hits of a retrieval as a TREC run file, and the metrics of each query.

    ``NAME.run`` has ``query Q0 document rank score e5spark`` in each line, ``NAME.queries.tsv`` a
    header and a line for each query. trec_eval orders hits of equal score by their ids, descending,
    whatever their ranks.

    Args:
        judgement: The judgement of a retrieval or a re-ranking.
        directory: Where to write; it is created.
        name: The beginning of the names.

    Returns:
        The two files.

    Raises:
        OptionError: If they cannot be written.
    """
    paths = [directory / f"{name}.run", directory / f"{name}.queries.tsv"]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, lines in zip(paths, (_run(judgement), _queries(judgement)), strict=True):
            with path.open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise OptionError(f"{directory} cannot be written: {error.strerror}.") from error
    return paths


def _run(judgement: Judgement) -> Iterator[str]:
    if judgement.hits is None:
        return
    columns = ("query_id", "corpus_id", "rank", "score")
    rows = zip(*(judgement.hits[name].to_pylist() for name in columns), strict=True)
    for query, document, rank, score in rows:
        yield f"{query} Q0 {document} {rank} {score!r} e5spark"


def _queries(judgement: Judgement) -> Iterator[str]:
    yield "\t".join(["query", *judgement.values])
    for number, query in enumerate(judgement.queries):
        values = (repr(float(column[number])) for column in judgement.values.values())
        yield "\t".join([query, *values])
