"""Schema evolution: an input that gains, loses, widens or renames columns that pass through.

A table keeps every column that it has had. What its input gains is added, and is null in a row
until the row is refreshed; what the input loses stays, and is null in rows that are embedded from
then on; types that differ become the wider of both. A renamed column is one lost and one gained.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ByteType,
    DataType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StructField,
    StructType,
)

from e5spark.errors import ConflictError
from e5spark.job.config import SchemaMode
from e5spark.job.source import Source
from e5spark.names import listed, quoted, redacted
from e5spark.tables.ledger.manifest import bare_type
from e5spark.tables.sinks.commit import Commits

log = logging.getLogger("e5spark")

# Each type holds every value of the types before it.
_WIDENING: tuple[tuple[type[DataType], ...], ...] = (
    (ByteType, ShortType, IntegerType, LongType),
    (ByteType, ShortType, IntegerType, DoubleType),
    (FloatType, DoubleType),
)
_MAX_DIGITS = 38  # of a decimal


def evolved(
    commits: Commits, source: Source, results: Sequence[StructField], *, mode: SchemaMode
) -> list[StructField]:
    """Returns the columns from the input that a table must have for the rows of a source.

    They are the table's own columns, in its order, then the columns that the source has gained.

    Args:
        commits: The table.
        source: The input.
        results: The columns that the run adds to those of the source.
        mode: ``evolve``: the table follows its input; ``refuse``: its columns stay as they are.

    Raises:
        ConflictError: If ``mode`` is ``refuse`` and the columns differ; if no type holds the values
            that a column has in both; if a text that is embedded is in a new column; or if the
            results are other columns than the table's. The message names the columns.
    """
    split = len(commits.schema) - len(results)
    stored, current_results = commits.schema.fields[:split], commits.schema.fields[split:]
    if [field.name for field in current_results] != [field.name for field in results]:
        names = [listed([field.name for field in fields]) for fields in (current_results, results)]
        raise ConflictError(
            f"{_other(commits)}: its last columns are {names[0]}, and this run's {names[1]}. Set "
            "embed.text and embed.column_prefix as they were, or give a new output."
        )
    current = {column.lower(): source.rows.schema[column] for column in source.columns}
    texts = {*source.columns} - {*source.kept, source.id}
    fields: list[StructField] = []
    changes: list[str] = []
    refused: list[str] = []
    for field in stored:
        new = current.pop(field.name.lower(), None)
        wider = field.dataType if new is None else _wider(field.dataType, new.dataType)
        if new is None:
            changes.append(f"the input has no {field.name!r}")
        elif not _same_type(field.dataType, new.dataType):
            change = (
                f"{field.name!r} is {field.dataType.simpleString()} in the output and "
                f"{new.dataType.simpleString()} in the input"
            )
            (changes if wider else refused).append(change)
        fields.append(StructField(field.name, wider or field.dataType, True, field.metadata))
    for new in current.values():
        change = f"the output has no {new.name!r} ({new.dataType.simpleString()})"
        (refused if new.name in texts else changes).append(change)
        fields.append(StructField(new.name, new.dataType, True, new.metadata))
    if refused or (changes and mode == "refuse"):
        rule = (
            "A text is embedded from the column that it was in, and a column keeps its type or "
            "becomes wider"
            if refused
            else 'run.schema is "refuse"'
        )
        raise ConflictError(
            f"{_other(commits)}: {'; '.join(refused or changes)}. {rule}; nothing was changed. "
            "Choose, cast or rename columns with input.select, or give a new output."
        )
    return fields


def evolve(commits: Commits, fields: Sequence[StructField]) -> Commits:
    """Gives a table the columns from the input that it must have, in one commit.

    Args:
        commits: The table, with nothing pending.
        fields: From ``evolved``.

    Returns:
        Commits to the table as it is then.
    """
    stored = commits.schema
    before = {field.name: field.dataType for field in stored}
    types = {field.name: field.dataType for field in fields}
    changes = [
        f"{name!r} {type_.simpleString()}"
        for name, type_ in types.items()
        if name not in before or not _same_type(before[name], type_)
    ]
    if not changes:
        return commits
    log.warning(
        "The columns of the input have changed; the output %s gets %s.",
        redacted(commits.target.name),
        ", ".join(changes),
    )
    results = [field for field in stored if field.name not in types]
    return commits.evolve(StructType([*fields, *results]))


def conformed(source: Source, fields: Sequence[StructField]) -> Source:
    """Returns a source whose columns have the names and types of the table's.

    Args:
        source: The input.
        fields: The columns from the input that the table has, from ``evolved``.
    """
    rows, names = source.rows, {}
    stored = {field.name.lower(): field for field in fields}
    for name in source.columns:
        field = stored.pop(name.lower())
        # The id keeps its name, by which the ledger knows it.
        names[name] = name if name == source.id else field.name
        if not _same_type(rows.schema[name].dataType, field.dataType):
            rows = rows.withColumn(name, F.col(quoted(name)).cast(field.dataType))
        if names[name] != name:
            rows = rows.withColumnRenamed(name, names[name])
    return replace(
        source,
        rows=rows,
        columns=tuple(names[name] for name in source.columns),
        kept=tuple(names[name] for name in source.kept),
        absent=tuple(stored.values()),
    )


def conformed_table(rows: DataFrame, fields: Sequence[StructField]) -> DataFrame:
    """Returns the rows of a table as they are once ``evolve`` has given it other columns.

    Args:
        rows: Its rows now.
        fields: From ``evolved``.
    """
    names = {field.name for field in fields}
    columns = [
        F.col(quoted(field.name)) if field.name in rows.columns else F.lit(None) for field in fields
    ]
    return rows.select(
        *(
            column.cast(field.dataType).alias(field.name)
            for column, field in zip(columns, fields, strict=True)
        ),
        *(F.col(quoted(name)) for name in rows.columns if name not in names),
    )


def _other(commits: Commits) -> str:
    name = redacted(commits.target.name)
    return f"The output {name} has other columns than this run would write"


def _wider(first: DataType, second: DataType) -> DataType | None:
    """Returns the type that holds all values of both; None if there is none."""
    if _same_type(first, second):
        return first
    if isinstance(first, DecimalType) and isinstance(second, DecimalType):
        scale = max(first.scale, second.scale)
        digits = max(first.precision - first.scale, second.precision - second.scale) + scale
        return DecimalType(digits, scale) if digits <= _MAX_DIGITS else None
    for types in _WIDENING:
        if type(first) in types and type(second) in types:
            return max(first, second, key=lambda kind: types.index(type(kind)))
    return None


def _same_type(first: DataType, second: DataType) -> bool:
    return bool(bare_type(first.jsonValue()) == bare_type(second.jsonValue()))
