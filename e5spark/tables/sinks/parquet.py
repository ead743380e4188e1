"""A directory of Parquet files as a table: files are renamed in, and rewritten to remove rows."""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import ceil

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from e5spark.errors import ConflictError, E5SparkError, InputError, OptionError
from e5spark.names import listed, quoted, redacted
from e5spark.tables.ledger.failpoints import failpoint
from e5spark.tables.ledger.layout import has_begun, has_commits
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks import catalog
from e5spark.tables.sinks.conflicts import not_from_e5spark, other_vectors
from e5spark.tables.sinks.paths import check_path_free
from e5spark.tables.sinks.protocol import Size
from e5spark.tables.sinks.staging import stage
from e5spark.tables.spark_errors import spark_errors
from e5spark.tables.storage.open import open_storage

_FILE = "__e5spark_file"
_COUNT = "__e5spark_count"
_PUBLISHED = re.compile(r"part-(\d+-\d+)-\d+\.parquet")
_REQUESTS = 16  # concurrent requests to the store


class ParquetSink:
    """The files of a directory; readers skip names that begin with an underscore.

    Attributes:
        name: The path or the catalog table.
        location: The directory.
    """

    kind = "parquet"
    publishes_once = False

    def __init__(
        self, spark: SparkSession, *, path: str = "", table: str = "", options: Mapping[str, str]
    ) -> None:
        """Opens the table if e5spark wrote it, or checks that nothing else is there.

        Raises:
            ConflictError: If there is something that e5spark did not write.
        """
        self._spark = spark
        self._table = table
        self.options = options
        self.name = table or path
        self.location = path or catalog.location(spark, table)
        if table and self.location and not catalog.is_from_e5spark(spark, table):
            raise not_from_e5spark(f"The output table {table}")
        if path and not _has_begun(spark, path):
            check_path_free(spark, path)

    def create(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        """Creates the catalog table; a path needs no such step. See ``Sink.create``."""
        if self._table and not self.location:
            catalog.create(self._spark, self._table, schema, "parquet", provenance)
            self.location = catalog.location(self._spark, self._table)
            self.check(schema, provenance)

    def check(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        """Checks the fingerprint of a catalog table that has no commits; see ``Sink.check``."""
        if not (self._table and self.location):
            return
        if not has_commits(open_storage(self._spark, self.location)):
            sql = f"SHOW TBLPROPERTIES {self._table} ('{catalog.FINGERPRINT}')"
            (row,) = self._spark.sql(sql).collect()
            current = provenance[catalog.FINGERPRINT]
            if row["value"] != current:
                raise other_vectors(f"The output table {self._table}", row["value"], current)

    def check_files(self, ledger: Ledger) -> None:
        """Checks the names of all files against the ledger: readers see every file; see ``Sink``.

        A file passes if its record is older than the records that the ledger keeps. So does the
        file without rows that Spark writes when it creates a catalog table.
        """
        files = _visible_files(ledger.storage.list(""))
        records = {name: match[1] for name in files if (match := _PUBLISHED.fullmatch(name))}
        unrecorded = ledger.unrecorded(records.values())
        stray = [name for name in files if name not in records or records[name] in unrecorded]
        if stray and not (self._table and self._are_empty(stray)):
            raise ConflictError(
                f"The output {redacted(self.name)} has files that no commit has put there: "
                f"{', '.join(stray[:3])}{', ...' if len(stray) > 3 else ''}. Readers of the table "
                "would see their rows. Nothing was changed. Move them out of the directory."
            )

    def check_replaceable(self) -> None:
        """Does nothing: files can always be rewritten."""

    def rows(self, schema: StructType) -> DataFrame:
        """Returns the rows that are visible now."""
        return self._read(schema, [self.location])

    def size(self) -> Size:
        """Returns the files of the directory, from a listing."""
        with spark_errors(f"The output {self.name} cannot be read", output=self.location):
            files = self._spark.read.format("binaryFile").load(self.location)
            (row,) = files.agg(F.count("*"), F.coalesce(F.sum("length"), F.lit(0))).collect()
        return Size(files=row[0], bytes=row[1])

    def is_empty(self, schema: StructType) -> bool:
        """Returns whether no row is visible now; a table without files needs no Spark job."""
        return self.count_files() == 0 or self.rows(schema).isEmpty()

    def rows_of(self, schema: StructType, *, id: str, ids: DataFrame) -> DataFrame:
        """Returns the rows of the files that have some ids; see ``Sink``."""
        files = sorted(self._rows_by_file(schema, id, ids))
        if not files:
            return self.rows(schema).limit(0)
        return self._read(schema, [f"{self.location}/{file}" for file in files])

    def stage_replacement(
        self,
        ledger: Ledger,
        record: Record,
        *,
        schema: StructType,
        id: str,
        stale: Callable[[], DataFrame],
    ) -> Record:
        """Stages the files that have stale rows, without these rows; see ``Sink``."""
        ids = stale()
        counts = self._rows_by_file(schema, id, ids)
        files = sorted(counts)
        if not files:
            return record
        touched = self._read(schema, [f"{self.location}/{file}" for file in files])
        remaining = touched.join(ids, id, "left_anti")
        expected = touched.count() - sum(counts.values())
        return self._rewritten(ledger, record, remaining, files, expected)

    def stage_schema(
        self, ledger: Ledger, record: Record, *, before: StructType, schema: StructType
    ) -> Record:
        """Stages all rows with the new columns: readers take the columns from any one file."""
        types = {field.name: field.dataType for field in before}
        wider = [
            field for field in schema if types.get(field.name, field.dataType) != field.dataType
        ]
        if self._table and wider:
            raise ConflictError(
                f"The output table {self.name} would get wider types in its columns "
                f"{listed([field.name for field in wider])}, and Spark does not change the type of "
                "a column of a Parquet table in a catalog. Nothing was changed. Cast the columns "
                "to the types that the table has with input.select, or give a new output."
            )
        rows = self.rows(before)
        expected = rows.count()
        for field in wider:
            rows = rows.withColumn(field.name, F.col(quoted(field.name)).cast(field.dataType))
        for field in schema:
            if field.name not in types:
                rows = rows.withColumn(field.name, F.lit(None).cast(field.dataType))
        rows = rows.select([F.col(quoted(name)) for name in schema.names])
        files = sorted(_visible_files(ledger.storage.list("")))
        return self._rewritten(ledger, record, rows, files, expected)

    def publish(self, ledger: Ledger, record: Record, included: Sequence[Record]) -> None:
        """Moves staged files into the directory, then removes the files that they replace."""
        moves = [
            (file, f"part-{published.name}-{number:05d}.parquet")
            for published in (*included, record)
            for number, file in enumerate(published.files)
        ]

        def move(names: tuple[str, str]) -> None:
            ledger.storage.rename(*names)
            failpoint("publishing")

        def remove(file: str) -> None:
            failpoint("removing")
            ledger.storage.delete(file)

        # A move takes several round trips to the store. No file is removed before all are moved.
        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="e5spark-publish") as pool:
            list(pool.map(move, moves))
            list(pool.map(remove, record.removes))
        if self._table:
            if record.schema is not None:
                catalog.add_columns(
                    self._spark, self._table, StructType.fromJson(dict(record.schema))
                )
            self._spark.catalog.refreshTable(self._table)

    def stage_compaction(
        self, ledger: Ledger, record: Record, *, schema: StructType, target_bytes: int
    ) -> Record:
        """Stages the rows of small files in files of about the same size; not visible yet.

        Args:
            ledger: For the directory of staged files.
            record: A ``replace`` that includes nothing.
            schema: The table's columns.
            target_bytes: Files below three quarters of it are small.

        Returns:
            The record; unchanged if the small files cannot become fewer.

        Raises:
            OptionError: If the size is not positive.
        """
        if target_bytes < 1:
            raise OptionError(f"The size of a file is {target_bytes} bytes; it must be at least 1.")
        name, size = (F.col(f"_metadata.file_{field}").alias(field) for field in ("name", "size"))
        with spark_errors(f"The output {self.name} cannot be read", output=self.location):
            files = self.rows(schema).select(name, size).groupBy("name", "size").count().collect()
        small = [row for row in files if row["size"] < 0.75 * target_bytes]
        parts = ceil(sum(row["size"] for row in small) / target_bytes)
        if parts >= len(small):
            return record
        paths = [f"{self.location}/{row['name']}" for row in small]
        df = self._read(schema, paths).repartition(parts)
        removes = sorted(row["name"] for row in small)
        return self._rewritten(ledger, record, df, removes, sum(row["count"] for row in small))

    def count_files(self) -> int:
        """Returns how many files readers of the table see now."""
        return len(_visible_files(open_storage(self._spark, self.location).list("")))

    def _rows_by_file(self, schema: StructType, id: str, ids: DataFrame) -> dict[str, int]:
        """Returns the files that have rows of some ids, and how many of these rows each has."""
        with spark_errors(f"The output {self.name} cannot be read", output=self.location):
            rows = (
                self.rows(schema)
                .select(F.col(quoted(id)), F.col("_metadata.file_name").alias(_FILE))
                .join(ids, id, "left_semi")
                .groupBy(_FILE)
                .agg(F.count("*").alias(_COUNT))
                .collect()
            )
        return {row[_FILE]: row[_COUNT] for row in rows}

    def _are_empty(self, files: Sequence[str]) -> bool:
        paths = [f"{self.location}/{file}" for file in files]
        with spark_errors(f"The output {self.name} cannot be read", output=self.location):
            return self._spark.read.parquet(*paths).isEmpty()

    def _rewritten(
        self, ledger: Ledger, record: Record, df: DataFrame, removes: list[str], expected: int
    ) -> Record:
        files, rows = stage(df, self, ledger, record.name)
        if rows != expected:
            raise E5SparkError(
                f"{rows} rows were rewritten from {len(removes)} files of {redacted(self.name)} "
                f"instead of {expected}; nothing was changed. This is a bug in e5spark."
            )
        return replace(record, files=files, rows=rows, removes=tuple(removes))

    def _read(self, schema: StructType, paths: list[str]) -> DataFrame:
        # With a schema, because rewritten files must keep the metadata of the columns.
        return self._spark.read.schema(schema).parquet(*paths)


def _has_begun(spark: SparkSession, path: str) -> bool:
    try:
        return has_begun(open_storage(spark, path))
    except InputError:  # a file, or a path that no file system knows
        return False


def _visible_files(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith("_")]
