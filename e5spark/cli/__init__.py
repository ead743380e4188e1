"""The command line: each command is one call, and ends with a JSON document and an exit code."""

import argparse
import importlib
import json
import logging
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TextIO

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from e5spark import __version__
from e5spark.cli.failure import failed, stopped
from e5spark.errors import ConfigError, E5SparkError
from e5spark.job.interrupt import Interrupted, exit_now, interruptible
from e5spark.job.session import lost_jvm
from e5spark.names import redacted
from e5spark.tables.spark_errors import reason, translated

log = logging.getLogger("e5spark")

# What each command does. A command is a module of this package with add_arguments(parser), and
# run(options), which returns the JSON document of the last line. Only the module of the command
# that runs is imported: all of them take 0.3 s, with pandas and others that embed does not need.
COMMANDS = {
    "init": "write a commented job file, embed.toml",
    "doctor": "check the job, the session and every executor before a run",
    "embed": "embed the table of a job file",
    "search": "show the rows of a job's output that answer a query",
    "duplicates": "group the near-duplicates of a job's output, and mark the row to keep",
    "export": "hand the vectors of a job's output over to an index, or what has changed in it",
    "status": "show what a job's output holds, and how it came about; no model is needed",
    "report": "write the report of a run to look at, report.html, to a directory",
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

    With ``--json FILE`` the document goes to the file instead.

    Exit codes: 0 done, 1 unexpected, 2 usage or config, 3 input, 4 a gate failed, 5 conflict,
    75 transient, 130 ended by Ctrl-C, 143 ended by SIGTERM.
    """
    handler = _Stderr()
    handler.setFormatter(_Redacted("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments).parse_args(arguments)
    log.setLevel(logging.DEBUG if options.verbose else logging.INFO)
    # It logs each lost connection to a JVM, and the error says the same.
    logging.getLogger("py4j").setLevel(logging.NOTSET if options.verbose else logging.CRITICAL)

    def end_at_once(interrupted: Interrupted) -> None:
        with suppress(Exception):  # the main thread may be writing just now
            _write(stopped(interrupted), options.json)
        exit_now(interrupted.exit_code)

    with interruptible(end_at_once) as interrupts:
        document = _outcome(options)
        if interrupts is not None and interrupts.interrupted and document["status"] == "failed":
            # Code that calls back, such as a destructor, may have lost the exception, but the
            # jobs were cancelled.
            document = {**document, **stopped(interrupts.interrupted)}
    _write(document, options.json)
    return int(document.get("exit_code", 0))


def _outcome(options: argparse.Namespace) -> dict[str, Any]:
    try:
        if options.json:
            _empty(options.json)
        return {"status": "done", **_module(options.command).run(options)}
    except E5SparkError as error:
        return failed(lost_jvm(error) or error)
    except Interrupted as interrupted:
        return stopped(interrupted)
    except KeyboardInterrupt:  # outside the main thread, or while PySpark has the signal
        return stopped(Interrupted(signal.SIGINT))
    except Exception as error:  # the last line must be JSON whatever happens
        return failed(_as_e5spark_error(error))


def _write(document: dict[str, Any], file: Path | None) -> None:
    if file is not None:
        with suppress(OSError):  # stdout gets what says so
            file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
            return
    sys.stdout.flush()
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _empty(file: Path) -> None:
    """Empties the file of the document: a command that is killed must not leave an older one.

    Raises:
        ConfigError: If the file cannot be written.
    """
    try:
        file.write_text("")
    except OSError as error:
        raise ConfigError(f"--json {file} cannot be written: {error.strerror}.") from error


class _Parser(argparse.ArgumentParser):
    """Quotes a wrong command line without its secrets."""

    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="e5spark", description=__doc__)
    parser.add_argument("--version", action="version", version=f"e5spark {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, help in COMMANDS.items():
        command = commands.add_parser(name, help=help)
        if name in arguments:
            _module(name).add_arguments(command)
            command.add_argument(
                "-v", "--verbose", action="store_true", help="show the log of Spark's JVM, too"
            )
            command.add_argument(
                "--json",
                type=Path,
                metavar="FILE",
                help="write the JSON document to this file, and not to standard output",
            )
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{command}")


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time: while a bar is drawn, to the lines above it."""

    @property
    def stream(self) -> TextIO:
        """Returns stderr."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None: ...


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
