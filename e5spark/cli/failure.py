"""What the last line of a failed command says."""

import logging
from typing import Any

from e5spark.errors import E5SparkError
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
