"""``e5spark prepare``: a checkpoint made ready once."""

import argparse
from pathlib import Path
from typing import Any

from e5spark.cli.overrides import add_overrides
from e5spark.errors import OptionError
from e5spark.job import job_file
from e5spark.job import run as job
from e5spark.job.session import session
from e5spark.model.spec import model_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments to its parser."""
    parser.add_argument(
        "model", help="a name on the hub, a directory, or a jar or zip of an ONNX model"
    )
    parser.add_argument("--to", type=Path, required=True, help="the directory to create")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16", "int8"],
        default="fp32",
        help="fp32 and bf16 share one prepared model; int8 needs --calibrate",
    )
    parser.add_argument("--calibrate", type=Path, help="the job file whose input calibrates int8")
    parser.add_argument("--sample", type=int, default=600, help="rows of the sample (600)")
    parser.add_argument(
        "--overflow-safe",
        action=argparse.BooleanOptionalAction,
        help="make int8 correct on CPUs without VNNI, too (the default if this CPU has none)",
    )
    add_overrides(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    # Imported here, because the other commands run on drivers that have no engine.
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
