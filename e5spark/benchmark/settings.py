"""The settings of a benchmark, from the command line."""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

from e5spark.benchmark.corpus import MIXES
from e5spark.benchmark.shapes import SHAPES
from e5spark.cpus import available_cpus
from e5spark.errors import OptionError

_PREPARED = re.compile(r"(\w+-\w+)=(.+)")
_PYTHON = re.compile(r"([^=]+)=(.+)")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a benchmark.

    Attributes:
        shape: The shape of the model with random weights; see ``SHAPES``.
        model: The directory of a real checkpoint, in place of one with random weights.
        checkpoint: The known checkpoint that ``model`` holds, if its files do not say so.
        prepared: Engine and precision to the directory of a model prepared for them.
        pythons: Pattern of contenders' names to the interpreter that runs them.
        mix: The distribution of the texts' lengths; see ``MIXES``.
        rows: Number of texts.
        transport_rows: Number of texts for contenders without a model.
        rounds: Number of runs of each contender.
        threads: CPUs that each contender may use.
        partitions: Spark partitions of the rows.
        device: ``cpu`` or a torch device.
        seed: The seed of weights and texts.
        gemm_seconds: Seconds that each library multiplies each size of matrix, before and after
            the rounds.
        only: Patterns of the names of contenders that run; without patterns all run.
        skip: Patterns of the names of contenders that do not run.
        fresh: Whether each round restarts each contender, so that two are never in memory.
        work: The directory for models and texts; None for a temporary one.
    """

    shape: str = "small"
    model: str | None = None
    checkpoint: str | None = None
    prepared: dict[str, str] = field(default_factory=dict)
    pythons: dict[str, str] = field(default_factory=dict)
    mix: str = "passages"
    rows: int = 1500
    transport_rows: int = 300_000
    rounds: int = 3
    threads: int
    partitions: int
    device: str = "cpu"
    seed: int = 0
    gemm_seconds: float = 0.3
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    fresh: bool = False
    work: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's arguments to a command."""
    parser.add_argument(
        "--shape", choices=SHAPES, default="small", help="shape of the model (small)"
    )
    parser.add_argument("--model", help="directory of a real checkpoint, in place of a shape")
    parser.add_argument("--checkpoint", help="the published checkpoint that --model holds")
    parser.add_argument(
        "--prepared",
        action="append",
        default=[],
        metavar="ENGINE-PRECISION=DIR",
        help="a prepared model for one engine and precision; may be repeated",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="PATTERN=PYTHON",
        help="the interpreter of some contenders, whose packages conflict; may be repeated",
    )
    parser.add_argument(
        "--mix", choices=MIXES, default="passages", help="distribution of lengths (passages)"
    )
    parser.add_argument("--rows", type=int, default=1500, help="number of texts (1500)")
    parser.add_argument(
        "--transport-rows",
        type=int,
        default=300_000,
        help="number of texts without a model (300000)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument("--threads", type=int, help="CPUs of each contender (all)")
    parser.add_argument("--partitions", type=int, help="Spark partitions (as many as threads)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (cpu)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and texts (0)")
    parser.add_argument(
        "--gemm-seconds", type=float, default=0.3, help="seconds for each GEMM peak (0.3)"
    )
    for name, verb in (("--only", "run"), ("--skip", "leave out")):
        parser.add_argument(
            name,
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"names of contenders to {verb}, such as 'st-*'; may be repeated",
        )
    parser.add_argument(
        "--fresh", action="store_true", help="never keep two contenders in memory at once"
    )
    parser.add_argument("--work", type=Path, help="keep models and texts in this directory")
    parser.add_argument("--plot", type=Path, help="write a chart, such as benchmark.png")


def parse_settings(arguments: argparse.Namespace) -> Settings:
    """Returns the settings of a command line.

    Raises:
        OptionError: If a value is invalid.
    """
    threads = available_cpus() if arguments.threads is None else arguments.threads
    partitions = threads if arguments.partitions is None else arguments.partitions
    counts = {
        "--rows": arguments.rows,
        "--transport-rows": arguments.transport_rows,
        "--rounds": arguments.rounds,
        "--threads": threads,
        "--partitions": partitions,
    }
    for name, value in counts.items():
        if value < 1:
            raise OptionError(f"{name} is {value}; it must be a positive whole number.")
    if not arguments.gemm_seconds > 0:
        raise OptionError(
            f"--gemm-seconds is {arguments.gemm_seconds}; it must be a positive number."
        )
    if threads > available_cpus():
        raise OptionError(
            f"--threads is {threads}, but this process may use {available_cpus()} CPUs; use at "
            "most that many."
        )
    return Settings(
        shape=arguments.shape,
        model=arguments.model,
        checkpoint=arguments.checkpoint,
        prepared=dict(map(_prepared, arguments.prepared)),
        pythons=dict(map(_python, arguments.python)),
        mix=arguments.mix,
        rows=arguments.rows,
        transport_rows=arguments.transport_rows,
        rounds=arguments.rounds,
        threads=threads,
        partitions=partitions,
        device=arguments.device,
        seed=arguments.seed,
        gemm_seconds=arguments.gemm_seconds,
        only=tuple(arguments.only),
        skip=tuple(arguments.skip),
        fresh=arguments.fresh,
        work=arguments.work,
    )


def _prepared(argument: str) -> tuple[str, str]:
    match = _PREPARED.fullmatch(argument)
    if match is None:
        raise OptionError(
            f"--prepared is {argument!r}; pass engine, precision and directory, such as "
            "openvino-int8=DIR."
        )
    return match[1], str(Path(match[2]).absolute())


def _python(argument: str) -> tuple[str, str]:
    match = _PYTHON.fullmatch(argument)
    if match is None or not Path(match[2]).is_file():
        raise OptionError(
            f"--python is {argument!r}; pass a pattern of names and an existing interpreter, "
            "such as 'st-onnx=other/bin/python'."
        )
    # Not resolved: Python finds a virtual environment through its interpreter's symbolic link.
    return match[1], str(Path(match[2]).absolute())
