"""What the document of a command says that failed, or that was told to end."""

import logging
from typing import Any

from e5spark.errors import E5SparkError
from e5spark.job.interrupt import Interrupted
from e5spark.names import redacted

log = logging.getLogger("e5spark")


def failed(error: E5SparkError) -> dict[str, Any]:
    """Logs an error and returns the JSON document of the command that it ended."""
    message = redacted(str(error))
    log.error("%s", message)
    return {
        "status": "failed",
        "exit_code": error.exit_code,
        "error": type(error).__name__,
        "message": message,
    }


def stopped(interrupted: Interrupted) -> dict[str, Any]:
    """Logs that a command was told to end, and returns its JSON document."""
    log.warning("%s", interrupted)
    return {
        "status": "interrupted",
        "exit_code": interrupted.exit_code,
        "error": type(interrupted).__name__,
        "message": str(interrupted),
    }
