"""A Delta table: rows are appended exactly once, and replaced by one MERGE, all in SQL."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    DataType,
    DateType,
    NumericType,
    StringType,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from e5spark.errors import ConflictError
from e5spark.names import quoted, redacted
from e5spark.tables.ledger.failpoints import failpoint
from e5spark.tables.ledger.layout import STATE_DIRECTORY, has_begun, has_commits
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks import catalog
from e5spark.tables.sinks.conflicts import not_from_e5spark, other_vectors
from e5spark.tables.sinks.delta_commit import Commit, append, change_schema, merge
from e5spark.tables.sinks.delta_table import DeltaTable, absolute, delta_name
from e5spark.tables.sinks.paths import check_path_free
from e5spark.tables.sinks.protocol import Size
from e5spark.tables.sinks.staging import stage, staged
from e5spark.tables.storage.open import open_storage

_KEY, _NEW = "__e5spark_key", "__e5spark_new"
# Features that every reader and writer of Delta supports, and no shuffle between model and files.
_PROPERTIES = {
    "delta.minReaderVersion": "1",
    "delta.minWriterVersion": "2",
    "delta.enableDeletionVectors": "false",
    "delta.autoOptimize.optimizeWrite": "false",
}
_WITH_STATS = (NumericType, StringType, DateType, TimestampType, TimestampNTZType)


class DeltaSink:
    """A Delta table of vectors, by path or by name in a catalog.

    Attributes:
        name: The path or the catalog table.
        location: The directory; empty until there is a table, which Delta creates in a new or
            empty directory only.
    """

    kind = "delta"
    publishes_once = False

    def __init__(
        self, spark: SparkSession, *, path: str = "", table: str = "", options: Mapping[str, str]
    ) -> None:
        """Opens the table if e5spark wrote it, or checks that nothing else is there.

        Args:
            spark: The session.
            path: The directory; either this or a table.
            table: The name in a catalog.
            options: Writer options; options that begin with ``delta.`` become properties of a
                table that is created.

        Raises:
            ConflictError: If there is something that e5spark did not write.
            InputError: If the session has no Delta.
        """
        self._spark = spark
        self._properties = {key: options[key] for key in options if key.startswith("delta.")}
        self.options: Mapping[str, str] = {
            key: options[key] for key in options if key not in self._properties
        }
        self.name = table or path
        self.location = ""
        self._path = absolute(spark, path) if path else ""
        self._table = DeltaTable(spark, table or delta_name(self._path))
        self._open()

    def create(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        """Creates the table with its properties, unless it exists; see ``Sink.create``."""
        if not self.location:
            properties = {**_PROPERTIES, **_stats(schema), **self._properties, **provenance}
            catalog.create(self._spark, self._table.name, schema, "delta", properties)
            self._open()
            self.check(schema, provenance)

    def check(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        """Checks the fingerprint of a table that has no commits; see ``Sink.check``."""
        if not self.location or self._has_commits():
            return
        detail = self._table.detail()
        stored = (
            "unknown" if detail is None else detail.properties.get(catalog.FINGERPRINT, "unknown")
        )
        current = provenance[catalog.FINGERPRINT]
        if stored != current:
            raise other_vectors(f"The output {self.name}", stored, current)

    def check_files(self, ledger: Ledger) -> None:
        """Does nothing: readers see only files in Delta's log."""

    def check_replaceable(self) -> None:
        """Checks that the table is not append-only; see ``Sink``."""
        self._table.check_replaceable()

    def rows(self, schema: StructType) -> DataFrame:
        """Returns the rows of the table now."""
        return self._table.rows().select([F.col(quoted(name)) for name in schema.names])

    def size(self) -> Size:
        """Returns the files of the table's last version, from Delta's log."""
        return self._table.size()

    def is_empty(self, schema: StructType) -> bool:
        """Returns whether no row is visible now; a table without files needs no Spark job."""
        return self.size().files == 0 or self.rows(schema).isEmpty()

    def rows_of(self, schema: StructType, *, id: str, ids: DataFrame) -> DataFrame:
        """Returns all rows of the table; see ``Sink``."""
        return self.rows(schema)

    def stage_replacement(
        self,
        ledger: Ledger,
        record: Record,
        *,
        schema: StructType,
        id: str,
        stale: Callable[[], DataFrame],
    ) -> Record:
        """Stages the stale ids; see ``Sink``."""
        ids, _ = stage(stale(), self, ledger, record.name)
        return replace(record, files=ids)

    def stage_schema(
        self, ledger: Ledger, record: Record, *, before: StructType, schema: StructType
    ) -> Record:
        """Returns the record unchanged: Delta adds columns in its log; see ``Sink``."""
        types = {field.name: field.dataType for field in before}
        if any(types.get(field.name, field.dataType) != field.dataType for field in schema):
            self.check_replaceable()
        return record

    def publish(self, ledger: Ledger, record: Record, included: Sequence[Record]) -> None:
        """Appends the rows, or replaces other rows in one MERGE; never twice."""
        if record.schema is not None:
            schema = StructType.fromJson(dict(record.schema))
            change_schema(self._table, schema, options=self.options)
            failpoint("publishing")
            return
        manifest = ledger.manifest
        commit = Commit.of(record, self._table.name, manifest.fingerprint)
        schema = StructType.fromJson(dict(manifest.schema))
        rows = staged(self._spark, ledger, schema, included or [record])
        if record.kind == "append" or manifest.id is None:
            append(rows, self._table, commit, options=self.options)
        else:
            if not included:
                rows = rows.limit(0)
            self._replace(rows, ledger, record, commit)
        failpoint("publishing")

    def _replace(self, rows: DataFrame, ledger: Ledger, record: Record, commit: Commit) -> None:
        manifest = ledger.manifest
        id, columns = str(manifest.id), rows.columns
        ids = staged(self._spark, ledger, StructType([rows.schema[id]]), [record])
        if manifest.parts["recipe"]["long_text"] == "split":
            # An id has several rows: none matches, so all are inserted and the old rows deleted.
            key = F.lit(None).cast(rows.schema[id].dataType)
        else:
            key = F.col(quoted(id))
            ids = ids.join(rows.select(F.col(quoted(id))), id, "left_anti")
        new = rows.select("*", key.alias(_KEY), F.lit(True).alias(_NEW))
        removed = ids.select(F.col(quoted(id)).alias(_KEY), F.lit(False).alias(_NEW))
        names = [quoted(name) for name in columns]
        clauses = [
            f"ON t.{quoted(id)} = s.{_KEY}",
            f"WHEN MATCHED AND s.{_NEW} THEN UPDATE SET "
            + ", ".join(f"t.{name} = s.{name}" for name in names),
            "WHEN MATCHED THEN DELETE",
            f"WHEN NOT MATCHED AND s.{_NEW} THEN INSERT ({', '.join(names)}) VALUES "
            f"({', '.join(f's.{name}' for name in names)})",
        ]
        source = new.unionByName(removed, allowMissingColumns=True)
        codec = self.options.get("compression", "zstd")
        merge(source, self._table, commit, clauses=" ".join(clauses), codec=codec)

    def _open(self) -> None:
        """Sets the location if e5spark created the table; raises if something else is there."""
        detail = self._table.detail()
        if detail is None:
            if self._path:
                check_path_free(self._spark, self._path)
            return
        if detail.format != "delta" or catalog.FINGERPRINT not in detail.properties:
            raise not_from_e5spark(f"The output {self.name}")
        self.location = self._path or detail.location
        if not self._has_begun() and self._table.version() > 0:
            raise ConflictError(
                f"The output {redacted(self.name)} has lost its directory {STATE_DIRECTORY}, which "
                "says what its rows are. Restore it from a backup, or give a new output."
            )

    def _has_begun(self) -> bool:
        return has_begun(open_storage(self._spark, self.location))

    def _has_commits(self) -> bool:
        return has_commits(open_storage(self._spark, self.location))


def _stats(schema: StructType) -> dict[str, str]:
    """Returns the property that limits statistics to columns with an order, so to no vectors."""
    names = [quoted(field.name) for field in schema if _has_stats(field.dataType)]
    if not names:
        return {"delta.dataSkippingNumIndexedCols": "0"}
    return {"delta.dataSkippingStatsColumns": ",".join(names)}


def _has_stats(kind: DataType) -> bool:
    return isinstance(kind, _WITH_STATS)
