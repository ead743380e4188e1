"""Translates errors of Spark, its JVM and Hadoop: one sentence instead of a stack trace.

=======================================================  =========================================
cause                                                    raised
=======================================================  =========================================
an e5spark error in the text of a worker's traceback     that error
no Java heap left                                        OptionError
a full disk                                              TransientError
shuffle files that are lost again and again              TransientError
a file that cannot be read, a malformed record           InputError; ConflictError in the output
a path or a table that already exists                    ConflictError
a refusal: no rights, a read-only place, an unknown      InputError
codec, format, column or option
a JVM that does not answer                               TransientError
anything else                                            the ``otherwise`` of ``spark_errors``, or
                                                         the error itself
=======================================================  =========================================

No sentence contains a record's content or a credential.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from posixpath import normpath
from typing import Any
from urllib.parse import unquote

from py4j.protocol import Py4JJavaError, Py4JNetworkError
from pyspark.errors import AnalysisException, IllegalArgumentException, PySparkException

from e5spark.errors import (
    ConflictError,
    E5SparkError,
    InputError,
    OptionError,
    TransientError,
    from_text,
)
from e5spark.names import redacted
from e5spark.tables import delta_session as delta

EXISTS = frozenset(
    {
        "PATH_ALREADY_EXISTS",
        "TABLE_OR_VIEW_ALREADY_EXISTS",
        "DELTA_PATH_EXISTS",
        "DELTA_TABLE_ALREADY_EXISTS",
    }
)
FILE_EXISTS = "org.apache.hadoop.fs.FileAlreadyExistsException"
_REFUSALS = frozenset(
    {
        FILE_EXISTS,
        "java.nio.file.AccessDeniedException",
        "org.apache.hadoop.fs.ParentNotDirectoryException",
        "org.apache.hadoop.fs.s3a.UnknownStoreException",
        "org.apache.hadoop.security.AccessControlException",
    }
)
# Spark's error condition and its sentence, as they appear in the text of any error.
_CONDITION = re.compile(r"\[([A-Z][A-Z_]*(?:\.[A-Z_]+)*)\] .+")
_UNREADABLE_FILE = re.compile(r"\[FAILED_READ_FILE[A-Z_.]*\] .*?\bfile (\S+?)\.?(?:\s|$)")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:(//[^/]*)?")
_FULL = re.compile(r"No space left on device|[Dd]isk quota exceeded|DSQuotaExceeded")
_READ_ONLY = re.compile(r"Read-only file system|Permission denied|AccessDenied|Access Denied")
# A worker that ends leaves Spark with a closed socket. A MemoryError comes from its own limit
# (spark.executor.pyspark.memory), a panic from the tokenizer.
_WORKER_DIED = re.compile(
    r"Python worker exited unexpectedly|ExecutorLostFailure|MemoryError|PanicException"
    r"|java\.io\.EOFException|Broken pipe|Connection reset"
)
# Threads are limited by the system, and no heap helps. 52 is the exit code of an executor with a
# full heap.
_HEAP = re.compile(
    r"OutOfMemoryError(?!: unable to create)|Java heap space|GC overhead limit exceeded"
    r"|\bexit(?:ed)?(?: with)?(?: exit)? code:? 52\b"
)
# A local master runs its tasks in the driver's JVM, as the executor of this name.
_ON_DRIVER = re.compile(r"\bexecutor driver\b")
# Spark's message for a stage whose input is lost in four attempts in a row.
_SHUFFLE_LOST = re.compile(r"has failed the maximum allowable number of times")
_AGAIN = "Start the same command again."


@contextmanager
def spark_errors(
    failure: str, *, otherwise: type[E5SparkError] | None = None, output: str = ""
) -> Iterator[None]:
    """Translates errors of Spark, its JVM and Hadoop into e5spark's, which pass unchanged.

    Args:
        failure: How the message begins, such as ``The input x cannot be read``.
        otherwise: The class for errors that the table above does not name; without it they pass
            unchanged.
        output: The directory of the output, to tell its files from the input's.
    """
    try:
        yield
    except E5SparkError:
        raise
    except Exception as error:  # py4j has errors that PySpark does not wrap
        translation = translated(error, failure, output=output)
        if translation is None and otherwise is not None:
            translation = _with_reason(otherwise, failure, error)
        if translation is None:
            raise
        raise translation from error


def translated(error: Exception, failure: str, *, output: str = "") -> E5SparkError | None:
    """Returns the e5spark error that an error of Spark means; None if there is none.

    Args:
        error: The error.
        failure: How the message begins; see ``spark_errors``.
        output: The directory of the output.
    """
    worker_error = from_text(str(error))
    if worker_error is not None:
        return worker_error
    name = condition(error)
    exhausted = _exhausted(str(error), failure)
    if exhausted is not None:
        return exhausted
    if name.startswith(("FAILED_READ_FILE", "MALFORMED_")):
        return _unreadable(error, failure, output)
    if name in EXISTS:
        return _with_reason(ConflictError, failure, error)
    if isinstance(error, Py4JNetworkError | ConnectionError):
        return TransientError(f"{redacted(failure)}: Spark's JVM does not answer. {_AGAIN}")
    if _is_refusal(error, name):
        return _with_reason(InputError, failure, error)
    return None


def _exhausted(text: str, failure: str) -> E5SparkError | None:
    """Returns the error for what a machine has run out of: heap, disk, or executors."""
    if _HEAP.search(text):
        on_executor = "stage failure" in text and not _ON_DRIVER.search(text)
        return no_heap(failure, on_executor=on_executor)
    if _FULL.search(text):
        return disk_full(failure)
    if _SHUFFLE_LOST.search(text):
        return TransientError(
            f"{redacted(failure)}: the shuffle files of a stage were lost more often than Spark "
            "computes them again (spark.stage.maxConsecutiveAttempts, 4 times by default), because "
            f"executors left or cannot be read from. {_AGAIN}"
        )
    return None


def worker_died(error: Exception) -> bool:
    """Returns whether a Spark job failed because a Python worker ended or had no memory left."""
    text = str(error)
    return (
        not isinstance(error, E5SparkError)
        and ("stage failure" in text or "Python worker" in text)
        and from_text(text) is None
        and not _HEAP.search(text)
        and _WORKER_DIED.search(text) is not None
    )


def no_heap(failure: str, *, on_executor: bool = False) -> OptionError:
    """Returns the error for a JVM that has no heap left.

    Args:
        failure: How the message begins; see ``spark_errors``.
        on_executor: Whether it was an executor's JVM, and not the driver's.
    """
    kind = "executor" if on_executor else "driver"
    return OptionError(
        f"{redacted(failure)}: the {kind}'s Java heap is full; long texts take several times their "
        f"size. Raise spark.{kind}.memory, in [spark] of the job file or as an option of "
        "spark-submit, and start the same command again: committed rows are safe."
    )


def disk_full(failure: str) -> TransientError:
    """Returns the error for a disk, or a quota, that has no space left."""
    return TransientError(
        f"{redacted(failure)}: no space is left on the device. Free some space, or raise the "
        "quota, and start the same command again: it continues where this run ended."
    )


def reason(error: Exception) -> str:
    """Returns Spark's message as one sentence, without a stack trace or a record's content."""
    if condition(error) == "DATA_SOURCE_NOT_FOUND" and "delta" in str(error):
        return f"this session has no Delta. Add to spark-submit: {delta.submit_flags()}"
    java: Any = getattr(error, "java_exception", None)
    text = str(java.getMessage() if java is not None else error).strip() or type(error).__name__
    # An error that stops a task is wrapped in others, which say only that a task was stopped.
    match = _CONDITION.search(text) or _CONDITION.search(str(error))
    sentence = (match[0] if match else text).splitlines()[0].partition(" SQLSTATE:")[0].rstrip()
    if match and match[1].startswith("MALFORMED_"):
        # What follows is the record itself, and texts are not logged.
        sentence = sentence.partition(":")[0]
    return redacted(sentence if sentence.endswith(".") else f"{sentence}.")


def condition(error: BaseException) -> str:
    """Returns Spark's error condition, such as ``PATH_NOT_FOUND``; empty if there is none."""
    if isinstance(error, PySparkException):
        # Spark 3.5 calls it the error class.
        name = getattr(error, "getCondition", error.getErrorClass)()
        if name:
            return str(name)
    match = _CONDITION.search(str(error))
    return match[1] if match else ""


def java_class(error: Exception) -> str:
    """Returns the class of the Java exception behind an error; empty if there is none."""
    if not isinstance(error, Py4JJavaError):
        return ""
    return str(error.java_exception.getClass().getName())


def _is_refusal(error: Exception, name: str) -> bool:
    return (
        isinstance(error, AnalysisException | IllegalArgumentException)
        or name == "DATA_SOURCE_NOT_FOUND"
        or java_class(error) in _REFUSALS
        or _READ_ONLY.search(str(error)) is not None
    )


def _unreadable(error: Exception, failure: str, output: str) -> E5SparkError:
    text = str(error)
    file = match[1] if (match := _UNREADABLE_FILE.search(text)) else ""
    is_record = "[MALFORMED_" in text
    if file and output and _is_inside(file, output):
        return ConflictError(
            f"The output cannot be read: its file {redacted(file)} is damaged: {reason(error)} "
            "Restore the file from a backup, or give a new output."
        )
    if file and is_record:
        return InputError(
            f"The input cannot be read: {redacted(file)} has a malformed record. Correct it, or "
            "set input.options.mode = 'DROPMALFORMED' to skip such records."
        )
    if is_record:
        return InputError(
            f"{redacted(failure)}: a record is malformed. Correct it, or set input.options.mode = "
            "'DROPMALFORMED' to skip such records."
        )
    if "FILE_NOT_EXIST" in condition(error):
        return InputError(f"The input cannot be read: {reason(error)} Start the job again.")
    return InputError(
        f"The input cannot be read: {reason(error)} The file is damaged or has another format: "
        "restore it, or take it out of the input."
    )


def _is_inside(file: str, directory: str) -> bool:
    """Returns whether a file's URI is inside a path: file:/x, file:///x and /x are the same."""
    path, parent = (_SCHEME.sub("", uri) for uri in (unquote(file), directory))
    parent = f"{normpath(parent)}/"
    return path.startswith(parent) or (not parent.startswith("/") and f"/{parent}" in path)


def _with_reason(kind: type[E5SparkError], failure: str, error: Exception) -> E5SparkError:
    if isinstance(error, Py4JNetworkError):
        sentence = "Spark's JVM does not answer."
    else:
        sentence = reason(error)
    again = f" {_AGAIN}" if kind is TransientError else ""
    return kind(f"{redacted(failure)}: {sentence}{again}")
