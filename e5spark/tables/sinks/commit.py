"""The steps of a commit, the same for every kind of table: record, publish, close."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from e5spark.errors import ConflictError
from e5spark.names import quoted, redacted
from e5spark.tables.ledger.layout import STATE_DIRECTORY, has_commits
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.manifest import Manifest
from e5spark.tables.ledger.records import Kind, Record
from e5spark.tables.sinks.protocol import Sink
from e5spark.tables.sinks.staging import staged

log = logging.getLogger("e5spark")


class Commits:
    """Commits to one table, under its lock.

    Attributes:
        ledger: The ledger of the table.
        target: The table.
        schema: Its columns.
        id: The column that identifies a row; None if there is none.
    """

    def __init__(self, ledger: Ledger, target: Sink, *, schema: StructType, id: str | None) -> None:
        self.ledger = ledger
        self.target = target
        self.schema = schema
        self.id = id

    def begin(self, manifest: Manifest, properties: Mapping[str, str]) -> None:
        """Creates the table and writes its manifest, unless they exist; call ``check`` first.

        Raises:
            ConflictError: If other vectors are committed.
        """
        self.target.create(self.schema, properties)
        self.ledger.begin(manifest)

    def check(self, properties: Mapping[str, str]) -> None:
        """Checks that ``begin`` may create the table, or that it is as its commits left it.

        Nothing is changed.

        Raises:
            ConflictError: If a table without commits is another run's, or the table has rows that
                no commit has put there.
        """
        self.target.check(self.schema, properties)
        if self.target.location:
            self.check_all_recorded()

    def as_stored(self) -> "Commits":
        """Returns commits to the table with the columns that its manifest has."""
        return self._with(self.ledger, StructType.fromJson(dict(self.ledger.manifest.schema)))

    def after(self, used: int) -> "Commits":
        """Returns commits to the same table whose records are numbered after the used numbers."""
        return self._with(self.ledger.after(used), self.schema)

    def _with(self, ledger: Ledger, schema: StructType) -> "Commits":
        return Commits(ledger, self.target, schema=schema, id=self.id)

    def check_all_recorded(self) -> None:
        """Checks that all rows of the table are in the ledger.

        Raises:
            ConflictError: If the table has rows though nothing was ever committed, or a file that
                no commit has put there.
        """
        if not has_commits(self.ledger.storage) and not self.target.is_empty(self.schema):
            raise ConflictError(
                f"The output {redacted(self.target.name)} has rows, but its {STATE_DIRECTORY} has "
                "no record of a commit: its directories commits and done are empty or missing, as "
                "after a partial copy. Nothing was changed. Copy them from where the table came "
                "from, or give a new output."
            )
        self.target.check_files(self.ledger)

    def commit(self, record: Record) -> Record:
        """Commits staged rows and publishes them, unless they are deferred; returns the record."""
        self.ledger.record(record)
        if record.kind != "deferred":
            self._publish(record)
        return record

    def replace(
        self, spark: SparkSession, record: Record, *, deleted: DataFrame | None = None
    ) -> Record:
        """Publishes the deferred rows in place of the rows with the same ids, in one step.

        Args:
            spark: The session.
            record: A ``replace`` that includes the records of the deferred rows.
            deleted: One column, the id, without duplicates: rows that are removed and not replaced.
        """
        if self.id is not None:
            id, deferred = self.id, self.ledger.included(record)

            def stale() -> DataFrame:
                rows = staged(spark, self.ledger, self.schema, deferred)
                ids = rows.select(F.col(quoted(id)))
                # A split text has several rows; a deleted id is not in the source.
                return (ids if deleted is None else ids.union(deleted)).distinct()

            record = self.target.stage_replacement(
                self.ledger, record, schema=self.schema, id=id, stale=stale
            )
        return self.commit(record)

    def evolve(self, schema: StructType) -> "Commits":
        """Gives the table other columns, in one commit; its rows keep their values.

        Args:
            schema: The columns that it has, of the same types or wider, and further columns, which
                are null in its rows.

        Returns:
            Commits to the table as it is then.
        """
        record = Record(name=self.ledger.name(1), kind="replace", schema=schema.jsonValue())
        self.commit(
            self.target.stage_schema(self.ledger, record, before=self.schema, schema=schema)
        )
        return self._with(self.ledger.after(1), schema)

    def recover(self, spark: SparkSession) -> int:
        """Publishes what earlier runs have recorded, and removes what they have only staged.

        Returns:
            How many rows became visible: killed runs had embedded them.
        """
        rows = 0
        # Replacements first: no append has rows that a replacement removes.
        for record in self._pending("replace") + self._pending("append"):
            sources = self.ledger.included(record) if record.kind == "replace" else [record]
            rows += sum(source.rows for source in sources)
            self._publish(record)
        deferred = self._pending("deferred")
        if deferred and self.id is not None:
            rows += sum(record.rows for record in deferred)
            names = tuple(record.name for record in deferred)
            record = Record(name=self.ledger.name(0), kind="replace", includes=names)
            self.replace(spark, record)
        else:
            # Without ids nothing tells which rows these are: the run starts from the beginning.
            for record in deferred:
                self.ledger.discard(record)
        self.ledger.sweep()
        if rows:
            log.info("%d rows that an earlier run had embedded are visible now.", rows)
        return rows

    def after_recovery(self, spark: SparkSession) -> tuple[DataFrame, int]:
        """Returns the rows of the table as ``recover`` makes them, and how many it makes visible.

        Nothing is changed. A killed run may have published a part of a replacement: then old rows
        are among these rows beside the new ones.
        """
        pending = [
            record
            for record in self.ledger.pending("append", "deferred", "replace")
            if not self.ledger.is_lost(record)
        ]
        included = {
            name for record in pending if record.kind == "replace" for name in record.includes
        }
        recovered = [
            record
            for record in pending
            if record.kind == "append"
            or (record.kind == "deferred" and (self.id is not None or record.name in included))
        ]
        rows = self.target.rows(self.schema)
        # What is left of their files: a killed run may have moved some into the table.
        files = [file for record in recovered for file in self.ledger.staged_files(record.name)]
        if files and self.id is not None:
            record = replace(recovered[0], files=tuple(files))
            new = staged(spark, self.ledger, self.schema, [record])
            ids = new.select(F.col(quoted(self.id))).distinct()
            rows = rows.join(ids, self.id, "left_anti").select(rows.columns).unionByName(new)
        return rows, sum(record.rows for record in recovered)

    def _pending(self, kind: Kind) -> list[Record]:
        pending = []
        for record in self.ledger.pending(kind):
            if self.ledger.is_lost(record):
                log.warning(
                    "Dropped %s, which a run recorded after it had lost its lock.", record.name
                )
                self.ledger.discard(record)
            else:
                pending.append(self.ledger.whole(record))
        return pending

    def _publish(self, record: Record) -> None:
        self.target.publish(self.ledger, record, self.ledger.included(record))
        if record.schema is not None:
            self.ledger.change_schema(record.schema)
        self.ledger.close(record)
