"""The input of a job: its rows, the columns to embed, and the column that identifies a row."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField

from e5spark.errors import ColumnError, ConfigError
from e5spark.job import diff
from e5spark.job.config import EmbedConfig, InputConfig, JobConfig
from e5spark.job.hashes import content_hash
from e5spark.model.resolve import Plan
from e5spark.names import RESERVED, listed, quoted, redacted
from e5spark.spark.columns import (
    TextColumns,
    check_free,
    figure_names,
    resolve_column,
    result_names,
    text_column,
)
from e5spark.spark.embedding import embed_plan
from e5spark.tables.sources import batch, stream
from e5spark.tables.sources import change_feed as feed
from e5spark.tables.spark_errors import reason

HASH_ID = "id"
_FILE_METADATA = "_metadata"  # the file of a row, which Spark adds to tables of files


@dataclass(frozen=True, kw_only=True)
class Source:
    """The input of a job.

    Attributes:
        rows: The columns that pass through, the columns that are embedded or hold roles and
            instructions, and the content hash.
        texts: What is embedded.
        id: The column that identifies a row; None if there is none.
        columns: The columns of the output that come from the input, in order.
        kept: Those of them that decide no vector; without the id.
        hash: The column of the content hash.
        absent: Columns of the output that the input once had; null in rows that are embedded.
        deleted_ids: One column, the id: the rows that a change feed reports as deleted. None if
            the input is not a change feed.
    """

    rows: DataFrame
    texts: TextColumns
    id: str | None
    columns: tuple[str, ...]
    kept: tuple[str, ...]
    hash: str
    absent: tuple[StructField, ...] = ()
    deleted_ids: DataFrame | None = None

    @property
    def is_feed(self) -> bool:
        """Whether the rows are only the changed rows, and not the whole input."""
        return self.deleted_ids is not None

    @property
    def id_is_text(self) -> bool:
        """Whether the id is also embedded, so that no message may show it."""
        texts = [name.lower() for name in self.texts.names]
        return self.id is not None and self.id.lower() in texts


def open_source(spark: SparkSession, config: JobConfig) -> Source:
    """Returns the input table as the job needs it; only its schema is read.

    Raises:
        InputError: If it cannot be read.
        ColumnError: If a column that is embedded or passes through is missing, or a name is taken.
        ConfigError: If two options contradict each other.
    """
    if config.input.change_feed:
        df = _select(_feed(spark, config.input), config, *feed.COLUMNS)
        return source_of(last_changes(df, config), config)
    return source_of(read(spark, config), config)


def last_changes(df: DataFrame, config: JobConfig) -> DataFrame:
    """Returns the last change of each id in a change data feed, in the columns of the job."""
    return feed.last(df, resolve_column(df, config.input.id).name)


def source_of(df: DataFrame, config: JobConfig) -> Source:
    """Returns the source for a table, or for the result of ``last_changes``.

    Raises:
        ColumnError: If a name is taken, or a column has the wrong type.
    """
    deleted_ids = None
    if config.input.change_feed:
        df, deleted_ids = feed.split(df, resolve_column(df, config.input.id).name)
    texts = texts_of(df, config.embed)
    columns = [resolve_column(df, name).name for name in config.input.columns] or df.columns
    hash, id = f"{texts.column_prefix}content_hash", None
    check_free(df, [hash])
    if config.input.id:
        id = resolve_column(df, config.input.id).name
        diff.check_id(df, id)
    if config.input.hash_id:
        id = HASH_ID
        _check_hash_id(df)
        parts = [_column(df, name).cast("string") for name in input_columns(config.embed)]
        df = df.select(F.lower(F.hex(content_hash(parts))).alias(id), "*")
    if id and id not in columns:
        columns = [id, *columns]
    df = df.withColumn(hash, content_hash(_content(df, texts)))
    if id and (config.input.hash_id or config.input.on_duplicate == "first"):
        df = diff.first_of_each(df, id, hash)
    columns = list(dict.fromkeys(columns))
    hashed = {id, *(resolve_column(df, name).name for name in input_columns(config.embed))}
    return Source(
        rows=df,
        texts=texts,
        id=id,
        columns=tuple(columns),
        kept=tuple(name for name in columns if name not in hashed),
        hash=hash,
        deleted_ids=deleted_ids,
    )


def _check_hash_id(df: DataFrame) -> None:
    column = next((name for name in df.columns if name.lower() == HASH_ID), None)
    if column is not None:
        raise ColumnError(
            f"The table has a column {column!r}, and input.hash_id adds a column {HASH_ID!r}. If "
            f"{column!r} identifies the rows, set input.id = {column!r} in place of input.hash_id; "
            "otherwise rename it, or list the columns to keep, without it, in input.columns."
        )


def embedded(
    rows: DataFrame,
    plan: Plan,
    source: Source,
    *,
    figures: bool = False,
    isolated: bool = False,
    tally: str | None = None,
) -> DataFrame:
    """Returns rows of the input with their vectors: the rows and the columns of the output.

    After the columns of ``embed`` come ``content_hash``, binary, and ``embedding_fp``, string: the
    first 16 digits of the fingerprint, which tell a vector's origin after any join. The metadata
    of a vector's column holds the whole fingerprint.

    Args:
        rows: Rows of the source.
        plan: The model.
        source: The input.
        figures: Whether to add the columns of ``figure_names``, which the output does not have.
        isolated: Whether texts are encoded in a process that may die of one.
        tally: The directory where tasks note how far they have come; see ``e5spark.spark.tally``.
    """
    digest = plan.fingerprint.digest
    rows = rows.drop(diff.COPIES)
    fingerprint = f"{source.texts.column_prefix}embedding_fp"
    check_free(rows, [fingerprint])
    names = [name for names in result_names(plan, source.texts) for name in names.values()]
    hidden = [name for names in figure_names(source.texts) for name in names.values()]
    vectors = embed_plan(
        rows,
        plan,
        source.texts,
        figures=figures,
        isolated=isolated,
        quick_start=False,
        tally=tally,
    )
    return vectors.select(
        *(F.col(quoted(name)) for name in source.columns),
        *(F.lit(None).cast(field.dataType).alias(field.name) for field in source.absent),
        *(F.col(quoted(name)) for name in names),
        F.col(quoted(source.hash)),
        F.lit(digest[:16]).alias(fingerprint),
        *(F.col(name) for name in hidden if figures),
    )


def vector_names(config: EmbedConfig) -> list[str]:
    """Returns the columns of the vectors."""
    texts = TextColumns(
        text=config.text, role=config.role, join=config.join, column_prefix=config.column_prefix
    )
    return [f"{prefix}embedding" for prefix in texts.column_prefixes]


def read(spark: SparkSession, config: JobConfig) -> DataFrame:
    """Returns the columns of the input table that the job needs.

    Raises:
        InputError: If it cannot be read.
        ColumnError: If a column that is embedded or passes through is missing, or its name is
            reserved.
    """
    return _select(_table(spark, config.input), config)


def read_stream(spark: SparkSession, config: JobConfig) -> DataFrame:
    """Returns the columns of the input that the job needs, as a stream.

    Raises:
        InputError: If it cannot be read.
        ColumnError: If a column that is embedded or passes through is missing, or its name is
            reserved.
    """
    table = config.input
    if table.table:
        df = stream.open_table(spark, table.table, options=table.options, changes=table.change_feed)
    else:
        df = stream.open_path(
            spark,
            table.path,
            format=table.format,
            schema=table.schema,
            options=table.options,
            changes=table.change_feed,
        )
    return _select(df, config, *(feed.COLUMNS if table.change_feed else ()))


def texts_of(df: DataFrame, config: EmbedConfig) -> TextColumns:
    """Returns what is embedded, with the columns that hold roles and instructions.

    Raises:
        ColumnError: If one of these columns is missing.
    """
    role, instruction = config.role_column, config.instruction_column
    return TextColumns(
        text=config.text,
        role=_column(df, role) if role else config.role,
        instruction=_column(df, instruction) if instruction else config.instruction or None,
        join=config.join,
        column_prefix=config.column_prefix,
    )


def _content(df: DataFrame, texts: TextColumns) -> list[Column]:
    """Returns everything that decides a row's vectors, apart from the fingerprint."""
    columns = [F.col(quoted(text_column(df, name))) for name in texts.names]
    if texts.join is not None:
        columns = [*columns, F.lit(texts.join)]
    prompt = [
        value if isinstance(value, Column) else F.lit(value)
        for value in (texts.role, texts.instruction)
    ]
    return [*columns, *(column.cast("string") for column in prompt)]


def input_columns(config: EmbedConfig) -> list[str]:
    """Returns the columns that decide what is embedded: texts, roles and instructions."""
    texts = [config.text] if isinstance(config.text, str) else list(config.text)
    return [*texts, *(name for name in (config.role_column, config.instruction_column) if name)]


def _select(df: DataFrame, config: JobConfig, *feed_columns: str) -> DataFrame:
    df = _queried(df, config.input, feed_columns)
    names = [*config.input.columns, *filter(None, [config.input.id]), *input_columns(config.embed)]
    if config.input.format == "csv" and config.input.path:
        _check_header(df, names, config.input)
    if config.input.columns:
        names = list(
            dict.fromkeys(resolve_column(df, name).name for name in (*names, *feed_columns))
        )
        df = df.select(*(F.col(quoted(name)) for name in names))
    _check_reserved(df)
    return df


def _queried(df: DataFrame, table: InputConfig, feed_columns: Sequence[str]) -> DataFrame:
    """Returns the rows that ``input.where`` chooses, with the columns of ``input.select``."""
    if table.where:
        df = _analysed(lambda: df.where(table.where), "where", table)
    if not table.select:
        return df
    selected = _analysed(lambda: df.selectExpr(*table.select), "select", table)
    names = [name.lower() for name in selected.columns]
    twice = [name for name in selected.columns if names.count(name.lower()) > 1]
    if twice:
        raise ConfigError(
            f"input.select gives the column {twice[0]!r} more than once. List the columns in place "
            "of *, or give each a name of its own with AS."
        )
    added = [quoted(name) for name in feed_columns if name not in names]
    return df.selectExpr(*table.select, *added)


def _analysed(query: Callable[[], DataFrame], key: str, table: InputConfig) -> DataFrame:
    try:
        df = query()
        _ = df.schema  # Spark Connect analyses a query only now
    except PySparkException as error:
        cause = reason(error)
        if table.format == "csv":  # whose column names may be a row of data
            cause = cause.partition(" Did you mean")[0]
        raise ConfigError(f"The SQL of input.{key} is not valid: {cause}") from error
    return df


def _check_header(df: DataFrame, names: list[str], table: InputConfig) -> None:
    """Checks that the columns exist; the message omits the other names, which may be texts."""
    columns = [column.lower() for column in df.columns]
    for name in names:
        if name.lower() not in columns:
            matches = difflib.get_close_matches(name, df.columns, n=1)
            raise ColumnError(
                f"The input {redacted(table.path)} has no column {name!r} among its "
                f"{len(columns)} columns."
                + (f" Did you mean {listed(matches)}?" if matches else "")
                + " Columns of a CSV file are named by its first line; if that is a row of data, "
                "set header = false in [input.options], and the columns are _c0, _c1, ..."
            )


def _check_reserved(df: DataFrame) -> None:
    for column in df.columns:
        if column.lower().startswith(RESERVED) or column.lower() == _FILE_METADATA:
            owner = "e5spark" if column.lower() != _FILE_METADATA else "Spark"
            raise ColumnError(
                f"The table has a column {column!r}, a name that {owner} reserves for columns of "
                "its own. Rename it, or list the columns to keep, without it, in input.columns."
            )


def _column(df: DataFrame, name: str) -> Column:
    return F.col(quoted(resolve_column(df, name).name))


def _feed(spark: SparkSession, table: InputConfig) -> DataFrame:
    if table.table:
        return feed.read_table(spark, table.table, options=table.options)
    return feed.read_path(spark, table.path, options=table.options)


def _table(spark: SparkSession, table: InputConfig) -> DataFrame:
    if table.table:
        return batch.read_table(spark, table.table)
    return batch.read_path(
        spark, table.path, format=table.format, schema=table.schema, options=table.options
    )
