"""Arguments, a session, one call, one summary, an exit code."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from e5spark import __version__, benchmark
from e5spark.errors import ConflictError, E5SparkError, GateError, OptionError
from e5spark.job import job_file
from e5spark.job import run as job
from e5spark.job.session import session
from e5spark.model.spec import model_spec
from e5spark.tables.spark_errors import reason, translated

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
        document = {"status": "done", **given.command(given)}
    except E5SparkError as error:
        document = _failed(error)
    except Exception as error:  # the last line must be JSON whatever happens
        known = translated(error, "The run stopped")
        if known is None:
            log.exception("Unexpected error")
        document = _failed(known or E5SparkError(_first_line(error)))
    sys.stdout.flush()
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()
    return int(document.get("exit_code", 0))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="e5spark", description=__doc__)
    parser.add_argument("--version", action="version", version=f"e5spark {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    embed = commands.add_parser("embed", help="embed the table that a job file names")
    embed.add_argument("config", type=Path, help="a job file, such as conf/embed.toml")
    embed.set_defaults(command=_embed)

    compact = commands.add_parser(
        "compact", help="merge the small files of the table that a job file writes; no row changes"
    )
    compact.add_argument("config", type=Path, help="the job file")
    compact.add_argument("--megabytes", type=int, default=512, help="size of a file (512)")
    compact.set_defaults(command=_compact)

    calibrate = commands.add_parser(
        "calibrate", help="compute the ranges that int8 and uint8 vectors need, over a sample"
    )
    calibrate.add_argument("config", type=Path, help="the job file whose vectors are meant")
    calibrate.add_argument("--to", type=Path, required=True, help="the file to write")
    calibrate.add_argument("--sample", type=int, default=10_000, help="rows to look at (10000)")
    calibrate.set_defaults(command=_calibrate)

    prepare = commands.add_parser(
        "prepare", help="make a checkpoint ready once, for machines with or without torch"
    )
    prepare.add_argument("model", help="a name on the hub, or a directory")
    prepare.add_argument("--to", type=Path, required=True, help="the directory to make")
    prepare.add_argument(
        "--precision",
        choices=["fp32", "bf16", "int8"],
        default="fp32",
        help="fp32 and bf16 share one prepared model; int8 needs --calibrate",
    )
    prepare.add_argument(
        "--calibrate", type=Path, help="the job file of the corpus that int8 is calibrated on"
    )
    prepare.add_argument("--sample", type=int, default=600, help="rows to look at (600)")
    prepare.add_argument(
        "--overflow-safe",
        action=argparse.BooleanOptionalAction,
        help="whether int8 is right on CPUs without VNNI too (by default if this one has none)",
    )
    prepare.set_defaults(command=_prepare)

    verify = commands.add_parser(
        "verify", help="compare a checkpoint's vectors with transformers' own"
    )
    verify.add_argument("model", help="a name on the hub, or a directory")
    verify.add_argument("--known-answers", help="a JSON file of texts and published scores")
    verify.set_defaults(command=_verify)

    measure = commands.add_parser(
        "benchmark", help="measure this machine, e5spark on it, and what others would use"
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


def _embed(given: argparse.Namespace) -> dict[str, Any]:
    config = job_file.load(given.config, given.set)
    with session(config) as spark:
        account = job.run(spark, config)
    _summarize(account)
    try:
        job.check_errors(account, config.run.max_error_rate)
    except GateError as error:  # the account of what was written is wanted all the same
        return {**account, **_failed(error)}
    return account


def _compact(given: argparse.Namespace) -> dict[str, Any]:
    config = job_file.load(given.config, given.set)
    with session(config) as spark:
        done = job.compact(spark, config, target_bytes=given.megabytes << 20)
    log.info("%(files_before)d files of %(output)s became %(files_after)d.", done)
    return done


def _calibrate(given: argparse.Namespace) -> dict[str, Any]:
    if given.to.exists():
        raise ConflictError(f"{given.to} exists already; give a new file.")
    config = job_file.load(given.config, given.set)
    with session(config) as spark:
        calibration = job.calibrate(spark, config, sample=given.sample)
    calibration.save(given.to)
    log.info("The ranges of %d vectors are in %s.", calibration.rows, given.to)
    return {"rows": calibration.rows, "fingerprint": calibration.fingerprint, "to": str(given.to)}


def _prepare(given: argparse.Namespace) -> dict[str, Any]:
    from e5spark.encoder.prepare import prepare, prepare_int8

    if (given.precision == "int8") != (given.calibrate is not None):
        raise OptionError("--precision int8 and --calibrate JOB.toml belong together; give both.")
    model = job_file.load_model(given.model, given.set)
    spec = model_spec(model.name, model.options)
    if given.calibrate is None:
        return prepare(spec, given.to)
    config = job_file.load(given.calibrate)
    with session(config) as spark:
        sample = job.sample(spark, config, spec, rows=given.sample)
    return prepare_int8(spec, given.to, *sample, overflow_safe=given.overflow_safe)


def _verify(given: argparse.Namespace) -> dict[str, Any]:
    # Here and not at the top: the other commands run on drivers that have no engine.
    from e5spark.encoder.verify import verify

    model = job_file.load_model(given.model, given.set)
    return verify(model_spec(model.name, model.options), given.known_answers)


def _benchmark(given: argparse.Namespace) -> dict[str, Any]:
    settings = benchmark.settings_of(given)
    if given.plot is not None:
        benchmark.check_plot(given.plot)
    document = benchmark.run(settings)
    if given.json is not None:
        given.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    if given.plot is not None:
        benchmark.plot(document, given.plot)
    return document


def _summarize(account: dict[str, Any]) -> None:
    log.info(
        "%d rows: %d to do, %d unchanged, %d removed, %d finished for an earlier run.",
        *(account[name] for name in ("rows_in", "embedded", "skipped", "deleted", "recovered")),
    )
    if account["duplicates"]:
        log.info(
            "%d more rows had the id of another one, and were left out.", account["duplicates"]
        )
    log.info(
        "%d rows written: %d embedded, %d null, %d empty, %d errors; %d truncated (%.2f %% of all "
        "tokens lost), %d with a prompt of their own.",
        *(account[name] for name in ("rows", "ok", "null_text", "empty_text", "error")),
        account["truncated"],
        100 * account["lost_token_share"],
        account["already_prompted"],
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
    if isinstance(error, PySparkException | Py4JJavaError):
        return reason(error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


if __name__ == "__main__":
    sys.exit(main())
