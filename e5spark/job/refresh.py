"""Refreshed rows: current values of the columns that pass through, and vectors as they are stored.

No model runs for them. They replace rows of the table as rows that were embedded do.
"""

from math import ceil

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F

from e5spark.job import diff
from e5spark.job.source import Source
from e5spark.names import quoted
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks.commit import Commits
from e5spark.tables.sinks.staging import stage
from e5spark.tables.spark_settings import described

_ROWS_PER_FILE = 100_000


def record_refreshed(
    commits: Commits, source: Source, ids: DataFrame, *, expected: int, is_first: Column
) -> Record:
    """Records the rows of some ids with the columns of the input and the vectors of the table.

    Args:
        commits: The table.
        source: The input.
        ids: One column, the id, without duplicates.
        expected: How many ids.
        is_first: Whether a row of the table is the first of its id: a split text has several.

    Returns:
        The ``deferred`` record, number 1 of the ledger.

    Raises:
        TransientError: If the content of a row has changed since it was compared.
    """
    id, hash, columns = str(commits.id), source.hash, source.columns
    current = source.rows.join(ids, id, "left_semi").select(_columns([*columns, hash]))
    stored = commits.target.rows_of(commits.schema, id=id, ids=ids)
    replaced = {name for name in columns if name != id}
    stored = stored.select(_columns([name for name in stored.columns if name not in replaced]))
    # By the hash, too: a text that has changed meanwhile must not get the vector of the old one.
    rows = stored.join(current, [id, hash], "inner").select(_columns(commits.schema.names))
    observation = Observation("e5spark_refresh")
    rows = rows.repartition(ceil(expected / _ROWS_PER_FILE)).observe(
        observation, F.sum(is_first.cast("int")).alias("rows")
    )
    name = commits.ledger.name(1)
    with described(source.rows.sparkSession, f"refresh {expected:,} rows"):
        files, staged = stage(rows, commits.target, commits.ledger, name)
    refreshed = int(observation.get["rows"] or 0)
    diff.check_unchanged(expected, refreshed, action="refreshed")
    counts = {"refreshed": refreshed}
    record = Record(name=name, kind="deferred", files=files, rows=staged, counts=counts)
    return commits.commit(record)


def _columns(names: list[str]) -> list[Column]:
    return [F.col(quoted(name)) for name in names]
