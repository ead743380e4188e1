"""What a run needs of the table that it writes, whether Parquet, Delta or another kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.records import Record


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many files readers of a table see, and their bytes in all."""

    files: int
    bytes: int


class Sink(Protocol):
    """A table of vectors.

    For every kind of table a run embeds into staged Parquet files and records them in the ledger.
    A sink makes recorded rows visible, in a way that can be repeated: a run that was killed may
    have published a record, in whole or in part, before it could note that.
    """

    name: str
    """What the user calls it: a path or a catalog table."""
    location: str
    """Its directory, as a path for Spark; the ledger is in it. Empty until ``create`` if only that
    makes the directory."""
    kind: str
    """The kind of table in the manifest: ``parquet``, ``delta``, ..."""
    publishes_once: bool
    """Whether rows of new ids are deferred too, so that one commit publishes all rows of a run."""
    options: Mapping[str, str]
    """Spark's writer options for staged files."""

    def check(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        """Checks that ``create`` can be called; nothing is changed.

        Args:
            schema: As for ``create``.
            provenance: As for ``create``.

        Raises:
            ConflictError: If the table exists, has no commits, and has other vectors or columns.
        """

    def create(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        """Creates the table, unless it exists; under the table's lock if it has a location.

        Args:
            schema: Its columns, with their metadata.
            provenance: For its properties: the fingerprint and its parts.

        Raises:
            ConflictError: If something else exists there.
        """

    def check_files(self, ledger: Ledger) -> None:
        """Checks that readers of the table see only files that a commit has put there.

        Raises:
            ConflictError: If there is another file; the message names it.
        """

    def check_replaceable(self) -> None:
        """Checks that rows of the table can be changed and removed.

        Raises:
            ConflictError: If the table is append-only.
        """

    def rows(self, schema: StructType) -> DataFrame:
        """Returns what is visible in the table now; no rows before the first commit."""

    def size(self) -> Size:
        """Returns the files that readers of the table see now; it has a location."""

    def is_empty(self, schema: StructType) -> bool:
        """Returns whether nothing that e5spark writes is visible in the table now."""

    def rows_of(self, schema: StructType, *, id: str, ids: DataFrame) -> DataFrame:
        """Returns rows that are visible now, among them all rows of some ids.

        Args:
            schema: The table's columns.
            id: The column that identifies a row.
            ids: One column, ``id``, without duplicates.
        """

    def stage_replacement(
        self,
        ledger: Ledger,
        record: Record,
        *,
        schema: StructType,
        id: str,
        stale: Callable[[], DataFrame],
    ) -> Record:
        """Stages what ``publish`` needs to remove the rows of some ids; nothing is visible yet.

        Args:
            ledger: For the directory of staged files.
            record: A ``replace`` that includes the rows that take their place.
            schema: The table's columns.
            id: The column that identifies a row.
            stale: Returns one column, ``id``: the ids, without duplicates, whose rows are removed.
                The ids of the included records are among them.

        Returns:
            The record with what was staged.
        """

    def stage_schema(
        self, ledger: Ledger, record: Record, *, before: StructType, schema: StructType
    ) -> Record:
        """Stages what ``publish`` needs to give the table other columns; nothing is visible yet.

        Args:
            ledger: For the directory of staged files.
            record: A ``replace`` with the schema, which includes nothing.
            before: The table's columns.
            schema: These columns, of the same types or wider, and further columns.

        Returns:
            The record with what was staged.

        Raises:
            ConflictError: If the table cannot have these columns.
        """

    def publish(self, ledger: Ledger, record: Record, included: Sequence[Record]) -> None:
        """Makes a recorded commit visible; a repetition changes nothing.

        Args:
            ledger: For the staged files.
            record: An ``append`` or a ``replace``.
            included: The deferred records whose rows become visible with a ``replace``.
        """
