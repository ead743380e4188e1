"""Arguments, a session, one call, one summary, an exit code."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from e5spark import __version__, config, errors, job
from e5spark.config import JobConfig
from e5spark.errors import E5SparkError
from e5spark.tables import delta, source

log = logging.getLogger("e5spark")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; the last line of stdout is a JSON document.

    Exit codes: 0 done, 1 unexpected, 2 usage or config, 3 input, 4 a gate failed, 5 conflict,
    75 transient.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    log.setLevel(logging.INFO)
    given = _parser().parse_args(arguments)
    try:
        document, code = _embed(given.config, given.set), 0
    except E5SparkError as error:
        document, code = _failed(error), error.exit_code
    except Exception as error:  # the last line must be JSON whatever happens
        known = errors.from_text(str(error))
        if known is None:
            log.exception("Unexpected error")
            document, code = _failed(E5SparkError(_first_line(error))), 1
        else:
            document, code = _failed(known), known.exit_code
    sys.stdout.flush()
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="e5spark", description=__doc__)
    parser.add_argument("--version", action="version", version=f"e5spark {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    embed = commands.add_parser("embed", help="embed the table that a job file names")
    embed.add_argument("config", type=Path, help="a job file, such as conf/embed.toml")
    embed.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one key of the job file; may be repeated",
    )
    return parser


def _embed(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    job_config = config.load(path, overrides)
    started_here = SparkSession.getActiveSession() is None
    spark = _session(job_config)
    try:
        account = job.run(spark, job_config)
        _summarize(account)
        job.check_errors(account, job_config.run.max_error_rate)
    finally:
        if started_here:
            spark.stop()
    return {"status": "done", **account}


def _session(job_config: JobConfig) -> SparkSession:
    settings = dict(job_config.spark)
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    if not submitted:
        # Without spark-submit the JVM starts here: workers run this interpreter, and Delta can
        # still be had. (spark-submit resolves packages before any Python runs.)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        if "delta" in (job_config.input.format, job_config.output.format):
            settings = {**delta.session_settings(), **settings}
    builder = SparkSession.builder.appName("e5spark")
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def _summarize(account: dict[str, Any]) -> None:
    log.info(
        "%d rows: %d embedded, %d null, %d empty, %d errors; %d truncated.",
        *(account[name] for name in ("rows", "ok", "null_text", "empty_text", "error")),
        account["truncated"],
    )
    log.info(
        "%.1f s: %.1f texts/s, %.0f tokens/s. Vectors of %d dimensions are in %s.",
        *(account[name] for name in ("seconds", "texts_per_second", "tokens_per_second")),
        account["dim"],
        account["output"],
    )


def _failed(error: E5SparkError) -> dict[str, Any]:
    log.error("%s", error)
    return {
        "status": "failed",
        "exit_code": error.exit_code,
        "error": type(error).__name__,
        "message": str(error),
    }


def _first_line(error: Exception) -> str:
    if isinstance(error, PySparkException):
        return source.reason(error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


if __name__ == "__main__":
    sys.exit(main())
