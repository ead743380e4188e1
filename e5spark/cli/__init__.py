"""The command line: each command is one call, and ends with a JSON document and an exit code."""

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Sequence

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from e5spark import __version__
from e5spark.cli import (
    benchmark,
    calibrate,
    compact,
    compare,
    duplicates,
    embed,
    evaluate,
    init,
    prepare,
    search,
    status,
    unlock,
    verify,
)
from e5spark.cli.failure import failed
from e5spark.errors import E5SparkError
from e5spark.job.session import lost_jvm
from e5spark.names import redacted
from e5spark.tables.spark_errors import reason, translated

log = logging.getLogger("e5spark")

# A command is a module with HELP, add_arguments(parser), and run(options), which returns the JSON
# document of the last line.
COMMANDS = {
    "init": init,
    "embed": embed,
    "search": search,
    "duplicates": duplicates,
    "status": status,
    "compact": compact,
    "unlock": unlock,
    "calibrate": calibrate,
    "prepare": prepare,
    "verify": verify,
    "evaluate": evaluate,
    "compare": compare,
    "benchmark": benchmark,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; the last line of stdout is a JSON document.

    Exit codes: 0 done, 1 unexpected, 2 usage or config, 3 input, 4 a gate failed, 5 conflict,
    75 transient.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacted("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    log.setLevel(logging.INFO)
    options = _parser().parse_args(arguments)
    try:
        document = {"status": "done", **COMMANDS[options.command].run(options)}
    except E5SparkError as error:
        document = failed(lost_jvm(error) or error)
    except Exception as error:  # the last line must be JSON whatever happens
        document = failed(_as_e5spark_error(error))
    sys.stdout.flush()
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()
    return int(document.get("exit_code", 0))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="e5spark", description=__doc__)
    parser.add_argument("--version", action="version", version=f"e5spark {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP))
    return parser


class _Redacted(logging.Formatter):
    """Removes credentials in paths from every message, whichever module logs it."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def _as_e5spark_error(error: Exception) -> E5SparkError:
    expected = lost_jvm(error) or translated(error, "The run stopped")
    if expected is not None:
        return expected
    # Only the first sentence of Spark's errors is logged: what follows may quote rows.
    trace = "".join(traceback.format_tb(error.__traceback__))
    sentence = _first_line(error)
    log.error("Unexpected error:\n%s%s", trace, sentence)
    return E5SparkError(sentence)


def _first_line(error: Exception) -> str:
    if isinstance(error, PySparkException | Py4JJavaError):
        return reason(error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
