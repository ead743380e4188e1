"""``_e5spark``, the state directory inside a table's directory.

Readers of Parquet and Delta skip it, because its name begins with an underscore::

    manifest.json            what the vectors are; written once, checked by every run; canaries
    figures.json             figures of the vectors of the last run
    lock/                    one run at a time
    streams/<token>.json     ties a stream checkpoint to this table
    work/<epoch>/            work lists: what a run has to embed
    staging/<record>/        embedded rows that are not visible yet, as Parquet files
    commits/<record>.json    recorded and not yet visible: the holder of the lock finishes it
    done/<record>.json       recorded and visible; only the latest are kept
    runs/<epoch>.json        how a run ended; only the latest are kept
    reports/<epoch>/         report.json of the latest runs, and report.html of the last one

Only this package builds paths inside the state directory.
"""

import re

from e5spark.tables.storage.protocol import Storage

STATE_DIRECTORY = "_e5spark"
MANIFEST = f"{STATE_DIRECTORY}/manifest.json"
FIGURES = f"{STATE_DIRECTORY}/figures.json"
LOCK, STREAMS = f"{STATE_DIRECTORY}/lock", f"{STATE_DIRECTORY}/streams"
COMMITS, DONE = f"{STATE_DIRECTORY}/commits", f"{STATE_DIRECTORY}/done"
STAGING, WORK = f"{STATE_DIRECTORY}/staging", f"{STATE_DIRECTORY}/work"
RUNS = f"{STATE_DIRECTORY}/runs"
REPORTS = f"{STATE_DIRECTORY}/reports"


def has_begun(storage: Storage) -> bool:
    """Returns whether a run of e5spark has ever begun here, finished or not."""
    return bool(storage.list(STATE_DIRECTORY))


def has_commits(storage: Storage) -> bool:
    """Returns whether anything has ever been committed here, visible or not."""
    return bool(storage.list(COMMITS) or storage.list(DONE))


def last_epoch(storage: Storage) -> int:
    """Returns the highest epoch in a name outside the lock's directory; 0 if there is none."""
    names = [
        name for directory in (COMMITS, DONE, STAGING, WORK) for name in storage.list(directory)
    ]
    return max((numbers(name)[0] for name in names if numbers(name)), default=0)


def record_files(storage: Storage, directory: str) -> list[str]:
    """Returns the files of records, oldest first: names sort by age up to epoch 99999 only."""
    names = [name for name in storage.list(directory) if name.endswith(".json")]
    return sorted(names, key=numbers)


def numbers(name: str) -> list[int]:
    """Returns the numbers in the name of a record; the first is the epoch."""
    return [int(digits) for digits in re.findall(r"\d+", name)]


def table_of(path: str) -> str:
    """Returns the table's directory for a path in its state directory; other paths unchanged."""
    return path.partition(f"/{STATE_DIRECTORY}/")[0]
