"""A directory of Parquet files as a table: rows come by renamed files and go by rewritten ones."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import ceil

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from e5spark.errors import E5SparkError, InputError
from e5spark.names import quoted
from e5spark.tables.ledger.failpoints import failpoint
from e5spark.tables.ledger.layout import has_commits, is_begun
from e5spark.tables.ledger.ledger import Ledger, Record
from e5spark.tables.sinks import catalog
from e5spark.tables.sinks.files import check_path_free, exists, made_for_others
from e5spark.tables.sinks.staging import stage
from e5spark.tables.storage.open import open_storage

_FILE = "__e5spark_file"
_AT_ONCE = 16  # requests to the store


class ParquetSink:
    """The plain files of a directory; those whose names begin with an underscore are no rows.

    Attributes:
        name: The path or the catalog table.
        location: The directory.
    """

    kind = "parquet"
    holds = False

    def __init__(
        self, spark: SparkSession, *, path: str = "", table: str = "", options: Mapping[str, str]
    ) -> None:
        """Looks at what is there.

        Raises:
            ConflictError: If there is something that e5spark did not write.
        """
        self._spark = spark
        self._table = table
        self.options = options
        self.name = table or path
        self.location = path or catalog.location(spark, table)
        if table and self.location and not catalog.is_ours(spark, table):
            raise exists(f"The output table {table}")
        if path and not _is_begun(spark, path):
            check_path_free(spark, path)

    def create(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        """Creates the catalog table; a path needs nothing. See ``Sink.create``."""
        if self._table and not self.location:
            catalog.create(self._spark, self._table, schema, "parquet", provenance)
            self.location = catalog.location(self._spark, self._table)
        if self._table and not has_commits(open_storage(self._spark, self.location)):
            shown = f"SHOW TBLPROPERTIES {self._table} ('{catalog.OURS}')"
            (row,) = self._spark.sql(shown).collect()
            if row["value"] != provenance[catalog.OURS]:
                what, wanted = f"The output table {self._table}", provenance[catalog.OURS]
                raise made_for_others(what, row["value"], wanted)

    def rows(self, schema: StructType) -> DataFrame:
        """Returns the rows that are visible now."""
        return self._read(schema, [self.location])

    def is_empty(self, schema: StructType) -> bool:
        """Returns whether no row is visible now."""
        return self.rows(schema).isEmpty()

    def stage_replacement(
        self,
        ledger: Ledger,
        record: Record,
        *,
        schema: StructType,
        id: str,
        stale: Callable[[], DataFrame],
    ) -> Record:
        """Stages the files that hold stale rows, without these; see ``Sink``."""
        ids = stale()
        found = (
            self.rows(schema)
            .select(F.col(quoted(id)), F.col("_metadata.file_name").alias(_FILE))
            .join(ids, id, "left_semi")
            .groupBy(_FILE)
            .count()
            .collect()
        )
        files = sorted(row[_FILE] for row in found)
        if not files:
            return record
        touched = self._read(schema, [f"{self.location}/{file}" for file in files])
        kept = touched.join(ids, id, "left_anti")
        expected = touched.count() - sum(row["count"] for row in found)
        return self._rewritten(ledger, record, kept, files, expected)

    def publish(self, ledger: Ledger, record: Record, included: Sequence[Record]) -> None:
        """Moves staged files into the directory, then removes those that they replace."""
        moves = [
            (file, f"part-{each.name}-{number:05d}.parquet")
            for each in (*included, record)
            for number, file in enumerate(each.files)
        ]

        def move(names: tuple[str, str]) -> None:
            ledger.storage.rename(*names)
            failpoint("publishing")

        def remove(file: str) -> None:
            failpoint("removing")
            ledger.storage.delete(file)

        # Each is some round trips to the store; nothing goes before all have come.
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="e5spark-publish") as pool:
            list(pool.map(move, moves))
            list(pool.map(remove, record.removes))
        if self._table:
            self._spark.catalog.refreshTable(self._table)

    def stage_compaction(
        self, ledger: Ledger, record: Record, *, schema: StructType, target_bytes: int
    ) -> Record:
        """Stages the rows of the small files in files of about a size; nothing is visible yet.

        Args:
            ledger: For the directory of staged files.
            record: A ``replace`` that includes nothing.
            schema: The table's columns.
            target_bytes: Files below three quarters of it are small.

        Returns:
            The record; as it was if fewer than two files are small.
        """
        meta = [F.col(f"_metadata.file_{name}").alias(name) for name in ("name", "size")]
        files = self.rows(schema).select(*meta).groupBy("name", "size").count().collect()
        small = [row for row in files if row["size"] < 0.75 * target_bytes]
        parts = ceil(sum(row["size"] for row in small) / target_bytes)
        if parts >= len(small):
            return record
        paths = [f"{self.location}/{row['name']}" for row in small]
        df = self._read(schema, paths).repartition(parts)
        removes = sorted(row["name"] for row in small)
        return self._rewritten(ledger, record, df, removes, sum(row["count"] for row in small))

    def _rewritten(
        self, ledger: Ledger, record: Record, df: DataFrame, removes: list[str], expected: int
    ) -> Record:
        files, rows = stage(df, self, ledger, record.name)
        if rows != expected:
            raise E5SparkError(
                f"{rows} rows of {len(removes)} files of {self.name} were written anew where "
                f"{expected} should be; nothing was changed. This is a bug in e5spark."
            )
        return replace(record, files=files, rows=rows, removes=tuple(removes))

    def _read(self, schema: StructType, paths: list[str]) -> DataFrame:
        # With a schema, because files that are rewritten must keep the metadata of the columns.
        return self._spark.read.schema(schema).parquet(*paths)


def _is_begun(spark: SparkSession, path: str) -> bool:
    try:
        return is_begun(open_storage(spark, path))
    except InputError:  # a file, or no place at all
        return False
