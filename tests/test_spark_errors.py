"""What Spark raises, as e5spark's errors: texts that Spark 4.1 really gives; no JVM is needed."""

import pytest
from pyspark.errors import AnalysisException, IllegalArgumentException

from e5spark.errors import (
    ConflictError,
    E5SparkError,
    InputError,
    ModelError,
    OptionError,
    TransientError,
)
from e5spark.job.isolation import isolated_after_death
from e5spark.names import redacted
from e5spark.tables.sources import stream
from e5spark.tables.spark_errors import (
    condition,
    reason,
    spark_errors,
    translated,
    worker_died,
)

SECRET = "SECRET"
UNREADABLE = (
    "An error occurred while calling o38.parquet.\n: org.apache.spark.SparkException: "
    "[FAILED_READ_FILE.NO_HINT] Encountered error while reading file {file}.  SQLSTATE: KD001\n"
    "\tat org.apache.spark.sql.errors.QueryExecutionErrors$.cannotReadFilesError\n"
)
MALFORMED = (
    "Caused by: org.apache.spark.SparkException: [MALFORMED_RECORD_IN_PARSING.WITHOUT_SUGGESTION] "
    f"Malformed records are detected in record parsing: [2,{SECRET}].\nParse Mode: FAILFAST.\n"
    f"Caused by: org.apache.spark.SparkRuntimeException: [MALFORMED_CSV_RECORD] Malformed CSV "
    f"record: 2,{SECRET},more,x SQLSTATE: KD000\n"
)
FULL = (
    "[TASK_WRITE_FAILED] Task failed while writing rows to file:/out/_e5spark/staging/1. SQLSTATE: "
    "58030\n\tat x\nCaused by: java.io.IOException: No space left on device\n"
)


def test_a_malformed_record_names_its_file_and_shows_no_content():
    error = translated(
        Exception(UNREADABLE.format(file="file:///data/a.csv") + MALFORMED), "The run stopped"
    )
    assert type(error) is InputError
    assert "file:///data/a.csv has a malformed record" in str(error)
    assert SECRET not in str(error)
    assert "\tat" not in str(error)


def test_a_malformed_record_without_a_file_shows_no_content():
    error = translated(Exception(MALFORMED), "The input a.csv cannot be read")
    assert type(error) is InputError
    assert str(error).startswith("The input a.csv cannot be read: a record is malformed.")
    assert SECRET not in str(error)


@pytest.mark.parametrize("record", ["", MALFORMED])
def test_a_stream_names_the_file_that_stopped_it(record: str):
    text = UNREADABLE.partition(": org")[2].format(file="file:///data/two.csv")
    error = RuntimeError(f"[STREAM_FAILED] Query terminated with exception: org{text}{record}")
    failure = stream._failure("s3a://KEY:SECRET@b/in", error)
    assert type(failure) is InputError
    assert "file:///data/two.csv" in str(failure)
    assert ("malformed record" in str(failure)) == bool(record)
    assert SECRET not in str(failure)


@pytest.mark.parametrize(
    "output", ["/data/o t", "file:///data/o t/", "file:/data/o t", "o t", "./o t"]
)
def test_a_damaged_file_of_the_output_is_not_called_the_input(output):
    error = Exception(UNREADABLE.format(file="file:///data/o%20t/part-0.parquet"))
    damaged = translated(error, "The run stopped", output=output)
    assert type(damaged) is ConflictError
    assert "The output cannot be read: its file file:///data/o%20t/part-0.parquet" in str(damaged)
    other = translated(error, "The run stopped", output="/data/o")
    assert type(other) is InputError


def test_a_full_disk_is_transient_and_says_so():
    with pytest.raises(TransientError) as caught, spark_errors("The output x cannot be written"):
        raise RuntimeError(FULL)
    assert str(caught.value).startswith("The output x cannot be written: no space is left on the")


def test_shuffle_files_that_are_lost_again_and_again_are_transient():
    error = RuntimeError(
        "Job aborted due to stage failure: ResultStage 258 (collect at chunks.py:112) has failed "
        "the maximum allowable number of times: 4. Most recent failure reason:\n"
        "org.apache.spark.shuffle.FetchFailedException\n\tat org.apache.spark.errors"
    )
    translation = translated(error, "The run stopped")
    assert type(translation) is TransientError
    assert "The run stopped: the shuffle files of a stage were lost" in str(translation)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AnalysisException("[PATH_NOT_FOUND] Path does not exist: x."), InputError),
        (AnalysisException("[PATH_ALREADY_EXISTS] Path x already exists."), ConflictError),
        (
            IllegalArgumentException("[CODEC_NOT_AVAILABLE.X] No codec zzz."),
            InputError,
        ),
        (RuntimeError("java.nio.file.FileSystemException: /x: Read-only file system"), InputError),
        (ConnectionRefusedError("[Errno 111] Connection refused"), TransientError),
        (RuntimeError("\ne5spark.errors.ModelError: No model.\n at x"), ModelError),
    ],
)
def test_errors_of_spark_get_the_class_of_their_cause(error: Exception, kind: type[E5SparkError]):
    with pytest.raises(E5SparkError) as caught, spark_errors("The output x cannot be written"):
        raise error
    assert type(caught.value) is kind


def test_an_unknown_error_passes_unless_a_class_for_it_is_set():
    with pytest.raises(ZeroDivisionError), spark_errors("It failed"):
        raise ZeroDivisionError("x")
    with pytest.raises(TransientError) as caught, spark_errors("It f", otherwise=TransientError):
        raise ZeroDivisionError("x")
    assert str(caught.value) == "It f: x. Start the same command again."


def test_an_error_of_e5spark_passes_as_it_is():
    error = InputError("No column 'body'.")
    with pytest.raises(InputError) as caught, spark_errors("It failed", otherwise=TransientError):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3a://KEY:SECRET@bucket/docs", "s3a://bucket/docs"),
        ("abfss://c@account/docs?sig=SECRET", "abfss://c@account/docs"),
        ("/data/a@b?c", "/data/a@b?c"),
        ("The input s3a://KEY:SECRET@b/x is no table.", "The input s3a://b/x is no table."),
        ("hdfs://host:8020/x", "hdfs://host:8020/x"),
    ],
)
def test_no_credential_of_a_path_is_shown(text, shown):
    assert redacted(text) == shown


def test_a_reason_and_a_failure_show_no_credential():
    error = AnalysisException("[PATH_NOT_FOUND] Path does not exist: s3a://KEY:SECRET@b/x.")
    assert reason(error) == "[PATH_NOT_FOUND] Path does not exist: s3a://b/x."
    assert condition(error) == "PATH_NOT_FOUND"
    with pytest.raises(InputError) as caught, spark_errors("The input s3a://KEY:SECRET@b/x"):
        raise error
    assert SECRET not in str(caught.value)


ABORTED = (
    "Job aborted due to stage failure: Task 0 in stage 3.0 failed 1 times, most recent failure: "
    "Lost task 0.0 in stage 3.0 (TID 3) (localhost executor driver): "
)
RAISED = "An exception was thrown from the Python worker. Please see the stack trace below.\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{ABORTED}org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)",
        f"{ABORTED}java.net.SocketException: Broken pipe",
        f"{ABORTED}ExecutorLostFailure (executor 1 exited caused by one of the running tasks)",
        f"{RAISED}Traceback (most recent call last):\n  File x\nMemoryError",
        f"{RAISED}Traceback (most recent call last):\npyo3_runtime.PanicException: index out of",
    ],
)
def test_a_job_whose_worker_died_is_told_from_others(text: str):
    assert worker_died(Exception(text))


@pytest.mark.parametrize(
    "error",
    [
        Exception(f"{ABORTED}org.apache.spark.SparkException: [FAILED_READ_FILE] x"),
        Exception("java.io.EOFException"),  # of a file, not of a task
        Exception(f"{RAISED}Traceback\ne5spark.errors.ModelError: a model\nMemoryError"),
        ModelError(f"{ABORTED}Python worker exited unexpectedly"),
    ],
)
def test_a_job_that_failed_for_another_reason_is_not_run_again(error: Exception):
    assert not worker_died(error)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        (f"{ABORTED}java.lang.OutOfMemoryError: Java heap space", "spark.driver.memory"),
        ("java.lang.OutOfMemoryError: GC overhead limit exceeded", "spark.driver.memory"),
        (
            f"{ABORTED.replace('executor driver', '10.0.0.2 executor 1')}"
            "java.lang.OutOfMemoryError: Java heap space",
            "spark.executor.memory",
        ),
        (
            f"{ABORTED.replace('executor driver', '10.0.0.2 executor 1')}ExecutorLostFailure "
            "(executor 1 exited caused by one of the running tasks) Reason: Command exited with "
            "code 52",
            "spark.executor.memory",
        ),
    ],
)
def test_a_full_heap_names_the_setting_that_helps_and_is_not_tried_again(text: str, setting: str):
    error = translated(Exception(f"{text}\n\tat java.base/java.util.Arrays.copyOf"), "It stopped")
    assert type(error) is OptionError
    assert f"Raise {setting}, " in str(error)
    assert "\tat" not in str(error)
    assert not worker_died(Exception(text))


def test_a_limit_on_threads_is_no_full_heap():
    error = Exception("java.lang.OutOfMemoryError: unable to create native thread")
    assert translated(error, "It stopped") is None


def test_work_is_done_again_in_isolation_after_a_death_only():
    attempts: list[bool] = []

    def work(isolated: bool) -> str:
        attempts.append(isolated)
        if not isolated:
            raise RuntimeError(f"{ABORTED}Python worker exited unexpectedly (crashed)")
        return "done"

    assert isolated_after_death(work) == "done"
    assert attempts == [False, True]
    with pytest.raises(ZeroDivisionError):
        isolated_after_death(lambda isolated: 1 // 0)
