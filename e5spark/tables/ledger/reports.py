"""The reports of the latest runs in the state directory: report.json, and the last report.html."""

from collections.abc import Mapping

from e5spark.tables.ledger.layout import REPORTS
from e5spark.tables.storage.protocol import Storage

DOCUMENT, PAGE = "report.json", "report.html"
_KEPT = 20


def epochs(storage: Storage) -> list[int]:
    """Returns the runs that have a report, oldest first."""
    return sorted(int(name) for name in storage.list(REPORTS) if name.isdecimal())


def keep(storage: Storage, epoch: int, files: Mapping[str, bytes]) -> str:
    """Writes the files of a run's report, and removes what is too old.

    The documents of the last 20 runs are kept, and the page of the last run only: it has 0.8 MB,
    and ``e5spark report`` makes it again from any document.

    Args:
        storage: The table's directory.
        epoch: The run.
        files: ``report.json``, and perhaps ``report.html``.

    Returns:
        The directory of the report, relative to the table's.
    """
    for name, content in files.items():
        storage.put(f"{_directory(epoch)}/{name}", content)
    runs = epochs(storage)
    for old in runs[:-_KEPT]:
        storage.delete(_directory(old))
    for old in [run for run in runs[-_KEPT:] if run < epoch][-1:]:
        storage.delete(f"{_directory(old)}/{PAGE}")
    return _directory(epoch)


def read(storage: Storage, epoch: int) -> bytes | None:
    """Returns the document of a run's report; None if it has none, or none any more."""
    return storage.read(f"{_directory(epoch)}/{DOCUMENT}")


def _directory(epoch: int) -> str:
    return f"{REPORTS}/{epoch:05d}"
