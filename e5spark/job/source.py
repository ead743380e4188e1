"""The input of a job: its rows, which of their columns are texts, and what names a row."""

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.job import diff as changes
from e5spark.job.config import EmbedConfig, InputConfig, JobConfig
from e5spark.model.resolve import Plan
from e5spark.names import quoted
from e5spark.spark.columns import (
    TextColumns,
    check_free,
    resolve_column,
    result_names,
    text_column,
)
from e5spark.spark.embedding import embed_plan
from e5spark.tables.sources import batch as source
from e5spark.tables.sources import change_feed as feed
from e5spark.tables.sources import stream

HASH_ID = "id"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a job reads.

    Attributes:
        rows: The columns that are kept, those that are read for their texts, and the content hash.
        texts: What is embedded.
        id: The column that names a row; None if there is none.
        kept: The columns of the output that come from the input, in order.
        hash: The column of the content hash.
        gone: One column, the id: what a change data feed says was deleted. None if the input is no
            feed.
    """

    rows: DataFrame
    texts: TextColumns
    id: str | None
    kept: tuple[str, ...]
    hash: str
    gone: DataFrame | None = None

    @property
    def is_feed(self) -> bool:
        """Whether the rows are those that have changed, and not all that there are."""
        return self.gone is not None


def open_source(spark: SparkSession, config: JobConfig) -> Source:
    """Returns the input table as the job needs it; nothing is read but its schema.

    Raises:
        InputError: If it cannot be read.
        ColumnError: If a column that shall be read or pass through is missing, or a name is taken.
        ConfigError: If two options contradict each other.
    """
    if config.input.change_feed:
        return source_of(last_changes(_feed(spark, config.input), config), config)
    return source_of(read(spark, config), config)


def last_changes(df: DataFrame, config: JobConfig) -> DataFrame:
    """Returns the columns that the job needs of what a change data feed says last of each id."""
    df = _needed(df, config, *feed.COLUMNS)
    return feed.last(df, resolve_column(df, config.input.id).name)


def source_of(df: DataFrame, config: JobConfig) -> Source:
    """Returns the columns that a job needs as it needs them; those of ``last_changes`` too.

    Raises:
        ColumnError: If a name is taken, or a column has the wrong type.
    """
    gone = None
    if config.input.change_feed:
        df, gone = feed.split(df, resolve_column(df, config.input.id).name)
    texts = texts_of(df, config.embed)
    kept = [resolve_column(df, name).name for name in config.input.columns] or df.columns
    hash, id = f"{texts.column_prefix}content_hash", None
    check_free(df, [hash])
    if config.input.id:
        id = resolve_column(df, config.input.id).name
        changes.check_id(df, id)
    if config.input.hash_id:
        id = HASH_ID
        check_free(df, [id])
        parts = [_column(df, name).cast("string") for name in read_columns(config.embed)]
        df = df.select(F.lower(F.hex(changes.content_hash(parts))).alias(id), "*")
    if id and id not in kept:
        kept = [id, *kept]
    df = df.withColumn(hash, changes.content_hash(_content(df, texts)))
    if id and (config.input.hash_id or config.input.on_duplicate == "first"):
        df = changes.first_of_each(df, id, hash)
    names = tuple(dict.fromkeys(kept))
    return Source(rows=df, texts=texts, id=id, kept=names, hash=hash, gone=gone)


def embedded(rows: DataFrame, plan: Plan, intake: Source) -> DataFrame:
    """Returns rows of the input as rows of the output, in its columns.

    After those of ``embed`` come ``content_hash``, and ``embedding_fp``: the first 16 digits of
    the fingerprint, which tells a vector's origin after any join. The metadata of a vector's column
    has all of it.
    """
    digest = plan.fingerprint.digest
    mark = f"{intake.texts.column_prefix}embedding_fp"
    check_free(rows, [mark])
    metadata = {f"e5spark.{key}": value for key, value in provenance(plan).items()}
    added = [
        F.col(quoted(name)).alias(name, metadata=metadata)
        if field == "embedding"
        else F.col(quoted(name))
        for one in result_names(plan, intake.texts)
        for field, name in one.items()
    ]
    return embed_plan(rows, plan, intake.texts).select(
        *(F.col(quoted(name)) for name in intake.kept),
        *added,
        F.col(quoted(intake.hash)),
        F.lit(digest[:16]).alias(mark),
    )


def vector_names(config: EmbedConfig) -> list[str]:
    """Returns the columns of the vectors."""
    texts = TextColumns(
        text=config.text, role=config.role, join=config.join, column_prefix=config.column_prefix
    )
    return [f"{prefix}embedding" for prefix in texts.column_prefixes]


def provenance(plan: Plan) -> dict[str, str]:
    """Returns where the vectors of a plan come from, in a few words."""
    return {
        "fingerprint": plan.fingerprint.digest,
        "model": plan.spec.checkpoint or plan.spec.model,
        "revision": plan.spec.revision or "",
        "dim": str(plan.recipe.dim),
        "precision": plan.spec.precision,
        "output_type": plan.spec.output_type,
    }


def read(spark: SparkSession, config: JobConfig) -> DataFrame:
    """Returns the columns of the input table that the job needs.

    Raises:
        InputError: If it cannot be read.
        ColumnError: If a column that shall be read or pass through is missing.
    """
    return _needed(_source(spark, config.input), config)


def read_stream(spark: SparkSession, config: JobConfig) -> DataFrame:
    """Returns the columns that the job needs of what has come to the input, as a stream.

    Raises:
        InputError: If it cannot be read.
        ColumnError: If a column that shall be read or pass through is missing.
    """
    given = config.input
    if given.table:
        df = stream.open_table(spark, given.table, options=given.options, changes=given.change_feed)
    else:
        df = stream.open_path(
            spark, given.path, format=given.format, options=given.options, changes=given.change_feed
        )
    return _needed(df, config, *(feed.COLUMNS if given.change_feed else ()))


def texts_of(df: DataFrame, config: EmbedConfig) -> TextColumns:
    """Returns what is embedded, with the columns that hold roles and instructions.

    Raises:
        ColumnError: If one of those is missing.
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
    """All that decides what is embedded of a row, apart from the fingerprint."""
    names = [texts.text] if isinstance(texts.text, str) else texts.text
    columns = [F.col(quoted(text_column(df, name))) for name in names]
    if texts.join is not None:
        columns = [*columns, F.lit(texts.join)]
    rest = (texts.role, texts.instruction)
    given = [each if isinstance(each, Column) else F.lit(each) for each in rest]
    return [*columns, *(each.cast("string") for each in given)]


def read_columns(config: EmbedConfig) -> list[str]:
    """Returns the columns that decide what is embedded: texts, roles and instructions."""
    texts = [config.text] if isinstance(config.text, str) else list(config.text)
    return [*texts, *(name for name in (config.role_column, config.instruction_column) if name)]


def _needed(df: DataFrame, config: JobConfig, *more: str) -> DataFrame:
    if not config.input.columns:
        return df
    wanted = [*config.input.columns, *filter(None, [config.input.id]), *read_columns(config.embed)]
    names = dict.fromkeys(resolve_column(df, name).name for name in (*wanted, *more))
    return df.select(*(F.col(quoted(name)) for name in names))


def _column(df: DataFrame, name: str) -> Column:
    return F.col(quoted(resolve_column(df, name).name))


def _feed(spark: SparkSession, given: InputConfig) -> DataFrame:
    if given.table:
        return feed.read_table(spark, given.table, options=given.options)
    return feed.read_path(spark, given.path, options=given.options)


def _source(spark: SparkSession, given: InputConfig) -> DataFrame:
    if given.table:
        return source.read_table(spark, given.table)
    return source.read_path(spark, given.path, format=given.format, options=given.options)
