"""The command line: each command is one call, and ends with a JSON document and an exit code."""

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from e5spark import __version__, benchmark
from e5spark.errors import ConflictError, E5SparkError, GateError, OptionError
from e5spark.job import job_file
from e5spark.job import run as job
from e5spark.job.report import check_errors
from e5spark.job.session import lost_jvm, session
from e5spark.model.spec import model_spec
from e5spark.names import redacted
from e5spark.tables.spark_errors import reason, translated

log = logging.getLogger("e5spark")


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
        document = {"status": "done", **options.command(options)}
    except E5SparkError as error:
        document = _failed(lost_jvm(error) or error)
    except Exception as error:  # the last line must be JSON whatever happens
        document = _failed(_as_e5spark_error(error))
    sys.stdout.flush()
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()
    return int(document.get("exit_code", 0))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="e5spark", description=__doc__)
    parser.add_argument("--version", action="version", version=f"e5spark {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="write a commented job file, embed.toml")
    init.add_argument(
        "directory", type=Path, nargs="?", default=Path(), help="where to write it (this directory)"
    )
    init.set_defaults(command=_init)

    embed = commands.add_parser("embed", help="embed the table of a job file")
    embed.add_argument("config", type=Path, help="the job file; e5spark init writes one")
    embed.set_defaults(command=_embed)

    compact = commands.add_parser(
        "compact", help="merge the small files of a job's output; no row changes"
    )
    compact.add_argument("config", type=Path, help="the job file")
    compact.add_argument("--megabytes", type=int, default=512, help="size of a merged file (512)")
    compact.set_defaults(command=_compact)

    calibrate = commands.add_parser(
        "calibrate", help="compute the ranges for int8 and uint8 vectors from a sample"
    )
    calibrate.add_argument("config", type=Path, help="the job file of the vectors")
    calibrate.add_argument("--to", type=Path, required=True, help="the file to write")
    calibrate.add_argument("--sample", type=int, default=10_000, help="rows of the sample (10000)")
    calibrate.set_defaults(command=_calibrate)

    prepare = commands.add_parser(
        "prepare", help="prepare a checkpoint once, for machines with or without torch"
    )
    prepare.add_argument("model", help="a name on the hub, or a directory")
    prepare.add_argument("--to", type=Path, required=True, help="the directory to create")
    prepare.add_argument(
        "--precision",
        choices=["fp32", "bf16", "int8"],
        default="fp32",
        help="fp32 and bf16 share one prepared model; int8 needs --calibrate",
    )
    prepare.add_argument("--calibrate", type=Path, help="the job file whose input calibrates int8")
    prepare.add_argument("--sample", type=int, default=600, help="rows of the sample (600)")
    prepare.add_argument(
        "--overflow-safe",
        action=argparse.BooleanOptionalAction,
        help="make int8 correct on CPUs without VNNI, too (the default if this CPU has none)",
    )
    prepare.set_defaults(command=_prepare)

    verify = commands.add_parser(
        "verify", help="compare a checkpoint's vectors with transformers' own"
    )
    verify.add_argument("model", help="a name on the hub, or a directory")
    verify.add_argument("--known-answers", help="a JSON file of texts and published scores")
    verify.set_defaults(command=_verify)

    measure = commands.add_parser(
        "benchmark", help="measure this machine, e5spark on it, and the alternatives"
    )
    benchmark.add_arguments(measure)
    measure.set_defaults(command=_benchmark)

    for command in (embed, compact, calibrate, prepare, verify):
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            help="override one key of the job file; may be repeated",
        )
    return parser


def _init(options: argparse.Namespace) -> dict[str, Any]:
    path = job_file.write_example(options.directory)
    log.info("The job file is %s; edit it, then run: e5spark embed %s", path, path)
    return {"file": str(path)}


def _embed(options: argparse.Namespace) -> dict[str, Any]:
    config = job_file.load(options.config, options.set)
    with session(config) as spark:
        report = job.run(spark, config)
    for sentence in report.sentences():
        log.info("%s", sentence)
    try:
        check_errors(report, config.run.max_error_rate)
    except GateError as error:  # the document still says what was written
        return {**report.as_dict(), **_failed(error)}
    return report.as_dict()


def _compact(options: argparse.Namespace) -> dict[str, Any]:
    if options.megabytes < 1:
        raise OptionError(
            f"--megabytes is {options.megabytes}; it must be a positive whole number."
        )
    config = job_file.load(options.config, options.set)
    with session(config) as spark:
        files = job.compact(spark, config, target_bytes=options.megabytes << 20)
    log.info("%(files_before)d files of %(output)s became %(files_after)d.", files)
    return files


def _calibrate(options: argparse.Namespace) -> dict[str, Any]:
    if options.to.exists():
        raise ConflictError(
            f"{options.to} already exists and was not overwritten; give a new file."
        )
    config = job_file.load(options.config, options.set)
    with session(config) as spark:
        calibration = job.calibrate(spark, config, sample=options.sample)
    calibration.save(options.to)
    log.info("The ranges of %d vectors are in %s.", calibration.rows, options.to)
    return {"rows": calibration.rows, "fingerprint": calibration.fingerprint, "to": str(options.to)}


def _prepare(options: argparse.Namespace) -> dict[str, Any]:
    from e5spark.encoder.prepare import prepare, prepare_int8

    if (options.precision == "int8") != (options.calibrate is not None):
        raise OptionError("--precision int8 and --calibrate JOB.toml belong together; give both.")
    model = job_file.load_model(options.model, options.set)
    spec = model_spec(model.name, model.options)
    if options.calibrate is None:
        return prepare(spec, options.to)
    config = job_file.load(options.calibrate)
    with session(config) as spark:
        sample = job.sample(spark, config, spec, rows=options.sample)
    return prepare_int8(spec, options.to, *sample, overflow_safe=options.overflow_safe)


def _verify(options: argparse.Namespace) -> dict[str, Any]:
    # Imported here, because the other commands run on drivers that have no engine.
    from e5spark.encoder.verify import verify

    model = job_file.load_model(options.model, options.set)
    return verify(model_spec(model.name, model.options), options.known_answers)


def _benchmark(options: argparse.Namespace) -> dict[str, Any]:
    settings = benchmark.parse_settings(options)
    if options.plot is not None:
        benchmark.check_plot(options.plot)
    document = benchmark.run(settings)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    if options.plot is not None:
        benchmark.plot(document, options.plot)
    return document


class _Redacted(logging.Formatter):
    """Removes credentials in paths from every message, whichever module logs it."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def _failed(error: E5SparkError) -> dict[str, Any]:
    message = redacted(str(error))
    log.error("%s", message)
    return {
        "status": "failed",
        "exit_code": error.exit_code,
        "error": type(error).__name__,
        "message": message,
    }


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


if __name__ == "__main__":
    sys.exit(main())
