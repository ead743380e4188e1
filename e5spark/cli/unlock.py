"""``e5spark unlock``: takes the lock of a job's output from a run that cannot release it."""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from e5spark.cli.overrides import add_overrides
from e5spark.job import job_file
from e5spark.job.run import open_output
from e5spark.job.session import session
from e5spark.job.status import lock_document
from e5spark.names import redacted
from e5spark.tables.ledger.holder import Holder, last_holder
from e5spark.tables.ledger.lock import unlock
from e5spark.tables.storage.open import open_storage

log = logging.getLogger("e5spark")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument("config", type=Path, help="the job file")
    parser.add_argument(
        "--force", action="store_true", help="also if the run that holds it seems to be alive"
    )
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    config = job_file.load(options.config, options.set)
    with session(config) as spark:
        target, _ = open_output(spark, config)
        holder = None
        if target.location:
            storage = open_storage(spark, target.location)
            _report(last_holder(storage), force=options.force)
            holder = unlock(storage, force=options.force)
    is_held = holder is not None and not holder.is_released
    log.info(
        "%s %s.",
        redacted(target.name),
        "is unlocked, and that run can no longer commit" if is_held else "has no lock to remove",
    )
    return {"output": redacted(target.name), "unlocked": is_held, "lock": lock_document(holder)}


def _report(holder: Holder | None, *, force: bool) -> None:
    """Prints who holds the lock, before anything is decided."""
    if holder is None:
        return
    sys.stdout.write(f"{holder.sentence}\n")
    if not holder.is_released and holder.is_alive is None and not force:
        sys.stdout.write("Its heartbeat is watched now, for up to a minute.\n")
    sys.stdout.flush()
