"""Adds columns of vectors to the Delta table of the texts, and brings them up to date."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from e5spark.errors import ConflictError, InputError
from e5spark.names import quoted, redacted
from e5spark.tables.ledger.failpoints import failpoint
from e5spark.tables.ledger.layout import has_commits
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.records import Record
from e5spark.tables.sinks import catalog
from e5spark.tables.sinks.delta_commit import Commit, merge, retried
from e5spark.tables.sinks.delta_table import DeltaTable, absolute, delta_name
from e5spark.tables.sinks.protocol import Size
from e5spark.tables.sinks.staging import staged
from e5spark.tables.storage.open import open_storage


class DeltaColumns:
    """The columns that e5spark adds to a user's Delta table, by path or by name in a catalog.

    No row is added or removed, no other column changes, and no property is set. One MERGE publishes
    all rows of a run, because every MERGE rewrites the files that it touches.

    Attributes:
        name: The path or the catalog table.
        location: The directory.
        version: The last commit when the run began; the run reads this version.
    """

    kind = "columns of a delta"
    publishes_once = True

    def __init__(
        self, spark: SparkSession, *, path: str = "", table: str = "", inputs: Sequence[str]
    ) -> None:
        """Checks the table.

        Args:
            spark: The session.
            path: The directory; either this or a table.
            table: The name in a catalog.
            inputs: The id and all columns that decide what is embedded.

        Raises:
            ConflictError: If the table is append-only.
            InputError: If it is not a Delta table, or the session has no Delta.
        """
        self._spark = spark
        self._inputs = {name.lower() for name in inputs}
        self.name = table or path
        self.options: Mapping[str, str] = {"compression": "zstd"}
        self._table = DeltaTable(spark, table or delta_name(absolute(spark, path)))
        detail = self._table.detail()
        if detail is None or detail.format != "delta":
            raise InputError(
                f'{redacted(self.name)} is not a Delta table, which output.write = "columns" '
                "needs; give another output."
            )
        self.check_replaceable()
        self.location = detail.location
        self.version = self._table.version()

    def check(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        """Checks the columns of a table that has no commits; see ``Sink.check``.

        Raises:
            ConflictError: If the table has columns of these names that are not e5spark's.
        """
        if has_commits(open_storage(self._spark, self.location)):
            return
        present = self._columns()
        for field in self._added(schema):
            column = present.get(field.name.lower())
            if column is not None and column.metadata.get("comment") != _comment(provenance):
                raise ConflictError(
                    f"{redacted(self.name)} already has a column {column.name!r}, which does not "
                    "belong to this run's vectors. Drop or rename it, or set embed.column_prefix."
                )

    def create(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        """Adds the columns that are missing, in one commit; see ``Sink.create``."""
        comment, present = _comment(provenance), self._columns()
        missing = [
            f"{quoted(field.name)} {field.dataType.simpleString()} COMMENT '{comment}'"
            for field in self._added(schema)
            if field.name.lower() not in present
        ]
        if missing:
            sql = f"ALTER TABLE {self._table.name} ADD COLUMNS ({', '.join(missing)})"
            retried(lambda: bool(self._spark.sql(sql).collect()), f"The table {self.name}")

    def check_files(self, ledger: Ledger) -> None:
        """Does nothing: readers see only files in Delta's log."""

    def check_replaceable(self) -> None:
        """Checks that the table is not append-only; see ``Sink``."""
        self._table.check_replaceable()

    def rows(self, schema: StructType) -> DataFrame:
        """Returns the rows of the table now, including rows without a vector."""
        return self._table.rows().select([F.col(quoted(name)) for name in schema.names])

    def size(self) -> Size:
        """Returns the files of the table's last version, from Delta's log."""
        return self._table.size()

    def is_empty(self, schema: StructType) -> bool:
        """Returns whether no row has a value in the columns that were added."""
        present = self._columns()
        added = [field for field in self._added(schema) if field.name.lower() in present]
        if not added:
            return True
        columns = [F.col(quoted(field.name)) for field in added]
        filled = reduce(Column.__or__, (column.isNotNull() for column in columns))
        return self.rows(StructType(added)).filter(filled).isEmpty()

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
        """Returns the record unchanged: no row is removed."""
        return record

    def stage_schema(
        self, ledger: Ledger, record: Record, *, before: StructType, schema: StructType
    ) -> Record:
        """Returns the record unchanged: the columns that e5spark adds are always the same."""
        return record

    def publish(self, ledger: Ledger, record: Record, included: Sequence[Record]) -> None:
        """Writes the vectors of rows whose texts have not changed since they were embedded."""
        manifest = ledger.manifest
        schema = StructType.fromJson(dict(manifest.schema))
        commit = Commit.of(record, self._table.name, manifest.fingerprint)
        id = quoted(str(manifest.id))
        texts = [quoted(name) for name in schema.names if name.lower() in self._inputs]
        same = [f"{_bytes('t', name)} <=> {_bytes('s', name)}" for name in texts if name != id]
        added = [quoted(name) for name in schema.names if name.lower() not in self._inputs]
        clauses = (
            f"ON t.{id} = s.{id} WHEN MATCHED AND {' AND '.join(same) or 'true'} "
            f"THEN UPDATE SET {', '.join(f't.{name} = s.{name}' for name in added)}"
        )
        rows = staged(self._spark, ledger, schema, included or [record])
        merge(rows, self._table, commit, clauses=clauses)
        failpoint("publishing")

    def _columns(self) -> dict[str, StructField]:
        return {field.name.lower(): field for field in self._table.rows().schema}

    def _added(self, schema: StructType) -> list[StructField]:
        """The columns, among these, that are e5spark's."""
        return [field for field in schema if field.name.lower() not in self._inputs]


def _comment(provenance: Mapping[str, str]) -> str:
    return f"e5spark {provenance[catalog.FINGERPRINT]}"


def _bytes(side: str, name: str) -> str:
    """Returns SQL for a column as bytes: a collation may treat different texts as equal."""
    return f"CAST(CAST({side}.{name} AS STRING) AS BINARY)"
