"""Work on executors, done again in isolation after a text may have ended a Python worker."""

import logging
from collections.abc import Callable
from typing import TypeVar

from e5spark.tables.spark_errors import worker_died

log = logging.getLogger("e5spark")

Result = TypeVar("Result")


def isolated_after_death(work: Callable[[bool], Result]) -> Result:
    """Returns the result of a Spark job that is run again if a Python worker dies.

    Where Spark tries a task again, the task isolates its texts by itself, and this changes nothing.
    On a local master, which does not, and after the last attempt, the job is run again.

    Args:
        work: Runs the job; its argument says whether texts are isolated.
    """
    try:
        return work(False)
    except Exception as error:  # py4j has errors that PySpark does not wrap
        if not worker_died(error):
            raise
        log.warning(
            "A Python worker died. Its rows are embedded again in a process of their own; a text "
            "that ends the process gets the status error."
        )
    return work(True)
