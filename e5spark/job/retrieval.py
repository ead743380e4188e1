"""Search in what a job wrote: its queries are embedded as its passages were."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import ConfigError, InputError, OptionError
from e5spark.job.config import JobConfig
from e5spark.job.run import plan_output
from e5spark.job.source import HASH_ID, vector_names
from e5spark.names import listed, quoted
from e5spark.search import nearest
from e5spark.spark.columns import TextColumns
from e5spark.spark.embedding import embed_plan
from e5spark.tables.sinks import catalog
from e5spark.tables.sources import batch
from e5spark.tables.spark_errors import spark_errors

# Characters of a text that are shown with its score.
_SNIPPET = 200


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """The table that a job wrote.

    Attributes:
        rows: Its rows.
        id: The column that identifies a row.
        vector: The column of vectors.
        text: The column of texts that were embedded; None if the table does not keep it.
    """

    rows: DataFrame
    id: str
    vector: str
    text: str | None


def written_vectors(spark: SparkSession, config: JobConfig, vector: str | None = None) -> Vectors:
    """Returns the table that a job wrote, as a search needs it; only its schema is read.

    Args:
        spark: The session.
        config: The job.
        vector: The column of vectors; None if the job writes one.

    Raises:
        ConfigError: If the job has no ids, or writes several vectors and none is named.
        InputError: If the table cannot be read.
    """
    id = HASH_ID if config.input.hash_id else config.input.id
    if not id:
        raise ConfigError(
            "The job has no input.id, so a result could not say which row it is. Set input.id or "
            "input.hash_id, and embed into a new output."
        )
    vectors = vector_names(config.embed)
    if vector is None and len(vectors) > 1:
        raise ConfigError(
            f"The job writes {len(vectors)} vectors for each row; choose one with --vector: "
            f"{listed(vectors)}."
        )
    if vector is not None and vector not in vectors:
        raise ConfigError(f"The job writes no vector {vector!r}; it writes {listed(vectors)}.")
    vector = vectors[0] if vector is None else vector
    output = config.output
    rows = (
        batch.read_table(spark, output.table)
        if output.table
        else batch.read_path(spark, output.path, format=output.format, options={})
    )
    texts = [config.embed.text] if isinstance(config.embed.text, str) else list(config.embed.text)
    text = texts[vectors.index(vector)]
    columns = {name.lower(): name for name in rows.columns}
    return Vectors(rows=rows, id=id, vector=vector, text=columns.get(text.lower()))


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A row of the table that answers a query.

    Attributes:
        query: The query's number, from 0.
        rank: The row's rank among the answers of the query, from 1.
        score: The product of the two vectors.
        id: The row.
        text: The first 200 characters of its text; None if the table does not keep it.
    """

    query: int
    rank: int
    score: float
    id: str | int
    text: str | None


def search(
    spark: SparkSession,
    config: JobConfig,
    texts: Sequence[str],
    *,
    k: int,
    filter: str | None = None,
    vector: str | None = None,
) -> list[Hit]:
    """Returns the best rows of a job's output for each query, by query and rank.

    Args:
        spark: The session.
        config: The job that wrote the table; it also says how queries are embedded.
        texts: The queries, without prompts.
        k: Rows for each query.
        filter: The rows to search, as a condition in SQL.
        vector: The column of vectors; None if the job writes one.

    Raises:
        ColumnError: If the table has no such vectors.
        ConfigError: If the job has no ids, or writes several vectors and none is named.
        ConflictError: If the table's vectors are not those of the job's model and options.
        InputError: If the table cannot be read, or the filter is not a condition on it.
        ModelError: If the checkpoint is unknown, absent or incomplete.
        OptionError: If there is no text, a text is blank, or ``k`` is not positive.
    """
    if not texts or not all(text.strip() for text in texts):
        raise OptionError("A query is empty; every query needs a text.")
    table = written_vectors(spark, config, vector)
    if filter is not None:
        with spark_errors(f"The filter {filter!r} cannot be used", otherwise=InputError):
            table = replace(table, rows=table.rows.where(filter))
            _ = table.rows.schema
    best = nearest(
        _queries(spark, config, texts, table.vector),
        table.rows,
        k=k,
        corpus_id=table.id,
        vector=table.vector,
    ).collect()
    snippets = _snippets(table, [row.corpus_id for row in best])
    return [
        Hit(
            query=row.query_id,
            rank=row.rank,
            score=row.score,
            id=row.corpus_id,
            text=snippets.get(row.corpus_id),
        )
        for row in sorted(best, key=lambda row: (row.query_id, row.rank))
    ]


def _queries(
    spark: SparkSession, config: JobConfig, texts: Sequence[str], vector: str
) -> DataFrame:
    """The vectors of the queries, in a column of this name, under ids from 0."""
    location = config.output.path or catalog.location(spark, config.output.table)
    plan = plan_output(spark, config, location)
    df = spark.createDataFrame(list(enumerate(texts)), "id int, text string").coalesce(1)
    columns = TextColumns(text="text", role="query", instruction=config.embed.instruction or None)
    queries = embed_plan(df, plan, columns)
    if plan.recipe.long_text == "split":
        queries = queries.where("window = 0")
    return queries.withColumnRenamed("embedding", vector)


def _snippets(table: Vectors, ids: list[str | int]) -> dict[str | int, str]:
    """The beginning of the text of some rows; of any window of a split text."""
    if table.text is None or not ids:
        return {}
    id, text = F.col(quoted(table.id)), F.col(quoted(table.text))
    rows = table.rows.where(id.isin(sorted(set(ids)))).select(id, F.substring(text, 1, _SNIPPET))
    return {row[0]: row[1] for row in rows.collect()}
