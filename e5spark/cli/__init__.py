"""The command line: each command is one call, and ends with a JSON document and an exit code."""

import argparse
import importlib
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from e5spark import __version__
from e5spark.cli.failure import failed
from e5spark.errors import E5SparkError
from e5spark.job.session import lost_jvm
from e5spark.names import redacted
from e5spark.tables.spark_errors import reason, translated

log = logging.getLogger("e5spark")

# What each command does. A command is a module of this package with add_arguments(parser), and
# run(options), which returns the JSON document of the last line. Only the module of the command
# that runs is imported: all of them take 0.3 s, with pandas and others that embed does not need.
COMMANDS = {
    "init": "write a commented job file, embed.toml",
    "embed": "embed the table of a job file",
    "search": "show the rows of a job's output that answer a query",
    "duplicates": "group the near-duplicates of a job's output, and mark the row to keep",
    "export": "hand the vectors of a job's output over to an index, or what has changed in it",
    "status": "show what a job's output holds, and how it came about; no model is needed",
    "compact": "merge the small files of a job's output; no row changes",
    "unlock": "take the lock of a job's output from a run that hangs or was lost; no row changes",
    "calibrate": "compute the ranges for int8 and uint8 vectors from a sample",
    "prepare": "prepare a checkpoint once, for machines with or without torch",
    "verify": "compare a checkpoint's vectors with transformers' own",
    "evaluate": "judge vectors that jobs wrote: retrieval, similarity, classification and others",
    "compare": "compare precisions, output types and dims on the sets of an evaluation file",
    "benchmark": "measure this machine, e5spark on it, and the alternatives",
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
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments).parse_args(arguments)
    try:
        document = {"status": "done", **_module(options.command).run(options)}
    except E5SparkError as error:
        document = failed(lost_jvm(error) or error)
    except Exception as error:  # the last line must be JSON whatever happens
        document = failed(_as_e5spark_error(error))
    sys.stdout.flush()
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()
    return int(document.get("exit_code", 0))


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="e5spark", description=__doc__)
    parser.add_argument("--version", action="version", version=f"e5spark {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, help in COMMANDS.items():
        command = commands.add_parser(name, help=help)
        if name in arguments:
            _module(name).add_arguments(command)
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{command}")


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
