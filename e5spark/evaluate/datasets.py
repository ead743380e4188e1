"""Reads evaluation sets: BEIR's and MIRACL's directories, files and tables, and judgements."""

from collections.abc import Iterable, Mapping

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import ColumnError, InputError
from e5spark.evaluate.config import Layout, RetrievalConfig, TableConfig
from e5spark.names import listed, quoted, redacted
from e5spark.tables.sources import batch
from e5spark.tables.spark_errors import spark_errors

# query id -> document id -> relevance
Judgements = dict[str, dict[str, int]]

# Tab-separated evaluation sets have no quoting: a text may begin with a quotation mark.
_TSV = {"sep": "\t", "quote": "", "escape": "", "multiLine": "false"}
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
_LINES = (".tsv", ".txt", ".trec", ".qrels")
_COLUMNS = {
    "query": ("query-id", "query_id", "query"),
    "document": ("corpus-id", "corpus_id", "document", "passage"),
    "relevance": ("score", "relevance"),
}

# What the directory of a layout has, with {split} in place of the split.
LAYOUTS: Mapping[Layout, Mapping[str, TableConfig]] = {
    "beir": {
        "corpus": TableConfig(
            path="corpus.jsonl*", format="jsonl", id="_id", text=("title", "text")
        ),
        "queries": TableConfig(path="queries.jsonl*", format="jsonl", id="_id", text="text"),
        "qrels": TableConfig(path="qrels/{split}.tsv"),
    },
    "miracl": {
        "corpus": TableConfig(
            path="docs-*.jsonl*", format="jsonl", id="docid", text=("title", "text")
        ),
        "queries": TableConfig(
            path="topics/*-{split}.tsv",
            format="tsv",
            id="_c0",
            text="_c1",
            options={"header": "false"},
        ),
        "qrels": TableConfig(path="qrels/*-{split}.tsv"),
    },
}


def of_layout(settings: RetrievalConfig, side: str) -> TableConfig:
    """Returns where a directory has its queries, its corpus or its judgements."""
    table = LAYOUTS[settings.layout][side]
    path = f"{settings.data.rstrip('/')}/{table.path.format(split=settings.split)}"
    return TableConfig(**{**vars(table), "path": path})


def read(spark: SparkSession, table: TableConfig) -> DataFrame:
    """Returns a table with all its columns.

    Raises:
        InputError: If it cannot be read.
    """
    if table.table:
        return batch.read_table(spark, table.table)
    format, options = format_of(table), dict(table.options)
    if format == "tsv":
        format, options = "csv", {**_TSV, **options}
    return batch.read_path(spark, table.path, format=format, options=options)


def format_of(table: TableConfig) -> str:
    """Returns the format of a path: as given, as its name ends, or Parquet."""
    path = table.path.rstrip("*").removesuffix(".gz")
    endings = (format for suffix, format in _SUFFIXES.items() if path.endswith(suffix))
    return table.format or next(endings, "parquet")


def texts(
    df: DataFrame, table: TableConfig, *, text: Iterable[str], joined: bool, kept: Iterable[str]
) -> DataFrame:
    """Returns what is to be embedded: ``id``, the texts, and the columns that are kept.

    Args:
        df: The table.
        table: Its config.
        text: Its text columns, if the config names none.
        joined: Whether the text columns become one, ``text``, joined by a space: BEIR's and MTEB's
            text of a document is ``(title + " " + text).strip()``.
        kept: Columns that pass through.

    Raises:
        ColumnError: If a column is missing.
    """
    names = table.texts or tuple(text)
    for name in (*names, *kept, *filter(None, [table.id])):
        check_column(df, name)
    id = F.col(quoted(table.id)) if table.id else F.monotonically_increasing_id()
    columns = [F.col(quoted(name)) for name in names]
    if joined:
        columns = [
            (F.trim(F.concat_ws(" ", *columns)) if len(names) > 1 else columns[0]).alias("text")
        ]
    return df.select(id.alias("id"), *columns, *(F.col(quoted(name)) for name in kept))


def check_column(df: DataFrame, name: str) -> None:
    """Checks that a table has a column.

    Raises:
        ColumnError: If it has not; the message has the columns that there are.
    """
    if name not in df.columns:
        raise ColumnError(f"There is no column {name!r}; the table has {listed(df.columns)}.")


def read_qrels(spark: SparkSession, table: TableConfig) -> Judgements:
    """Returns the judgements, by query.

    A text file has a line for each judgement: query, document and relevance, as BEIR has them,
    after a header or without one; or TREC's four fields, whose second one means nothing. Fields
    are separated by tabs or, without any tab, by white space. A table has BEIR's columns
    ``query-id``, ``corpus-id`` and ``score``, or other names in ``_COLUMNS``; one without the
    relevance has the relevant pairs alone.

    Raises:
        InputError: If the file cannot be read, has no judgement, or a line is none.
        ColumnError: If a table lacks a column.
    """
    name = redacted(table.table or table.path)
    if table.path and not table.format and table.path.endswith(_LINES):
        with spark_errors(f"The judgements {name} cannot be read", otherwise=InputError):
            lines = [row.value for row in spark.read.text(table.path).collect()]
        qrels = parse_qrels(lines, name)
    else:
        qrels = _qrels_of_table(read(spark, table))
    if not qrels:
        raise InputError(f"{name} has no judgements; without them nothing can be judged.")
    return qrels


def parse_qrels(lines: Iterable[str], name: str) -> Judgements:
    """Returns the judgements of the lines of a file; see ``read_qrels``.

    Raises:
        InputError: If a line is no judgement; the message has its number.
    """
    qrels: Judgements = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        try:
            query, document, relevance = (fields[0], *fields[-2:])
            if len(fields) not in (3, 4):
                raise ValueError
            value = int(relevance)
        except ValueError:
            if number == 1:
                continue  # the header
            raise InputError(
                f"Line {number} of {name} is no judgement: it needs a query, a document and a "
                "whole number, separated by tabs; or TREC's four fields."
            ) from None
        qrels.setdefault(query, {})[document] = value
    return qrels


def _qrels_of_table(df: DataFrame) -> Judgements:
    names = {}
    for part, choices in _COLUMNS.items():
        name = next((choice for choice in choices if choice in df.columns), None)
        if name is None and part != "relevance":
            raise ColumnError(
                f"The judgements have no column {' or '.join(map(repr, choices))}; they have "
                f"{listed(df.columns)}."
            )
        names[part] = quoted(name) if name else ""
    relevance = F.col(names["relevance"]) if names["relevance"] else F.lit(1)
    rows = df.select(
        F.col(names["query"]).cast("string").alias("query"),
        F.col(names["document"]).cast("string").alias("document"),
        relevance.cast("int").alias("relevance"),
    )
    qrels: Judgements = {}
    for row in rows.collect():
        qrels.setdefault(row.query, {})[row.document] = row.relevance
    return qrels
