"""The seam between a run and the kind of table it writes: Parquet, Delta, what comes next."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from e5spark.tables.ledger.ledger import Ledger, Record


class Sink(Protocol):
    """A table of vectors.

    A run embeds into staged Parquet files and records them in the ledger, whatever the table is.
    What a target does on top is to make recorded rows visible, in a way that can be repeated: a
    record may have been made visible, in whole or in part, by a run that was killed before it
    could say so.
    """

    name: str
    """What the user calls it: a path or a catalog table."""
    location: str
    """Its directory, as Spark takes it; the ledger is in it. Empty where only ``create``
    makes one."""
    kind: str
    """``parquet``, ``delta``, ...: what the manifest says that the table is."""
    holds: bool
    """Whether rows of new ids wait too, so that one commit makes all rows of a run visible."""
    options: Mapping[str, str]
    """Spark's writer options of staged files."""

    def create(self, schema: StructType, provenance: Mapping[str, str]) -> None:
        """Creates the table, unless it is there; under the table's lock if it has a location.

        Args:
            schema: Its columns, with their metadata.
            provenance: For its properties: the fingerprint and what it is made of.

        Raises:
            ConflictError: If something else is there.
        """

    def rows(self, schema: StructType) -> DataFrame:
        """Returns what is visible in the table now; no rows before the first commit."""

    def is_empty(self, schema: StructType) -> bool:
        """Returns whether nothing that e5spark writes is visible in the table now."""

    def stage_replacement(
        self,
        ledger: Ledger,
        record: Record,
        *,
        schema: StructType,
        id: str,
        stale: Callable[[], DataFrame],
    ) -> Record:
        """Stages what ``publish`` needs so that the rows of some ids go; nothing is visible yet.

        Args:
            ledger: For the directory of staged files.
            record: A ``replace`` that includes the rows that come in their place.
            schema: The table's columns.
            id: The column that names a row.
            stale: Reads one column, ``id``: the ids, each once, whose rows go. Those of the
                included records are among them.

        Returns:
            The record with what was staged.
        """

    def publish(self, ledger: Ledger, record: Record, included: Sequence[Record]) -> None:
        """Makes a recorded commit visible; again and again, if it must be.

        Args:
            ledger: For the staged files.
            record: An ``append`` or a ``replace``.
            included: The held records whose rows become visible with a ``replace``.
        """
