"""The steps of a commit, the same for every kind of table: record, make visible, note it."""

import logging
from collections.abc import Mapping

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from e5spark.errors import ConflictError
from e5spark.names import quoted, redacted
from e5spark.tables.ledger.layout import STATE_DIRECTORY, has_commits
from e5spark.tables.ledger.ledger import Kind, Ledger, Record
from e5spark.tables.ledger.manifest import Manifest
from e5spark.tables.sinks.protocol import Sink
from e5spark.tables.sinks.staging import staged

log = logging.getLogger("e5spark")


class Commits:
    """Commits to one table, under its lock.

    Attributes:
        ledger: The table's.
        target: The table.
        schema: Its columns.
        id: The column that names a row; None if there is none.
    """

    def __init__(self, ledger: Ledger, target: Sink, *, schema: StructType, id: str | None) -> None:
        self.ledger = ledger
        self.target = target
        self.schema = schema
        self.id = id

    def begin(self, manifest: Manifest, properties: Mapping[str, str]) -> None:
        """Creates the table, unless it is there, and writes down what its vectors are.

        Raises:
            ConflictError: If other vectors are committed, or the table has rows of no commit.
        """
        self.ledger.check(manifest)
        self.target.create(self.schema, properties)
        self.check_known()
        self.ledger.begin(manifest)

    def check_known(self) -> None:
        """Raises if the table has rows though nothing was ever committed.

        Raises:
            ConflictError: If so: which of them are up to date cannot be told.
        """
        if not has_commits(self.ledger.storage) and not self.target.is_empty(self.schema):
            raise ConflictError(
                f"The output {redacted(self.target.name)} has rows, but its {STATE_DIRECTORY} has "
                "no record of a commit: its directories commits and done are empty or missing, as "
                "after a partial copy. Nothing was changed. Copy them from where the table came "
                "from, or give a new output."
            )

    def record(self, record: Record) -> Record:
        """Commits staged rows; those of new ids become visible at once, held ones wait."""
        self.ledger.commit(record)
        if record.kind != "deferred":
            self._finish(record)
        return record

    def replace(
        self, spark: SparkSession, record: Record, *, deleted: DataFrame | None = None
    ) -> Record:
        """Makes the held rows visible in place of those that have their ids, as one step.

        Args:
            spark: The session.
            record: A ``replace`` that includes the records of the held rows.
            deleted: One column, the id, each once: more rows that go, for which none come.
        """
        if self.id is not None:
            id, held = self.id, self.ledger.included(record)

            def stale() -> DataFrame:
                rows = staged(spark, self.target.location, self.schema, held)
                ids = rows.select(F.col(quoted(id)))
                # A split text has several rows; a deleted id is not in the source.
                return (ids if deleted is None else ids.union(deleted)).distinct()

            record = self.target.stage_replacement(
                self.ledger, record, schema=self.schema, id=id, stale=stale
            )
        return self.record(record)

    def recover(self, spark: SparkSession) -> int:
        """Finishes what earlier runs have committed, removes what they have not.

        Returns:
            How many rows became visible by it: they were embedded by runs that were killed.
        """
        rows = 0
        # A replacement first: an append never touches the rows that it removes.
        for record in self._pending("replace") + self._pending("append"):
            new = self.ledger.included(record) if record.kind == "replace" else [record]
            rows += sum(each.rows for each in new)
            self._finish(record)
        held = self._pending("deferred")
        if held and self.id is not None:
            rows += sum(record.rows for record in held)
            names = tuple(record.name for record in held)
            record = Record(name=self.ledger.name(0), kind="replace", includes=names)
            self.replace(spark, record)
        else:
            # Without ids nobody can tell which rows these are: the run begins again.
            for record in held:
                self.ledger.discard(record)
        self.ledger.sweep()
        if rows:
            log.info("%d rows that an earlier run had embedded are committed now.", rows)
        return rows

    def _pending(self, kind: Kind) -> list[Record]:
        found = []
        for record in self.ledger.pending(kind):
            if self.ledger.is_lost(record):
                log.warning(
                    "%s was recorded by a run that had lost its lock; dropped.", record.name
                )
                self.ledger.discard(record)
            else:
                found.append(record)
        return found

    def _finish(self, record: Record) -> None:
        self.target.publish(self.ledger, record, self.ledger.included(record))
        self.ledger.close(record)
