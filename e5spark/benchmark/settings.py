"""What the command line asks of the benchmark."""

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
    """A benchmark.

    Attributes:
        shape: Of the model that is made, if none is given.
        model: Directory of a real checkpoint, in place of one with random weights.
        checkpoint: The known checkpoint that ``model`` holds, if it does not say so itself.
        prepared: Engine and precision to the directory of a model prepared for it.
        pythons: Pattern of contenders' names to the interpreter that runs them.
        mix: Lengths of the texts.
        rows: How many texts.
        transport_rows: How many the contenders without a model get.
        rounds: How often each contender runs.
        threads: CPUs that each contender may use.
        partitions: Spark tasks that the rows are cut into.
        device: ``cpu`` or a torch device.
        seed: Of weights and texts.
        only: Patterns of the names of contenders that run; all, if there are none.
        skip: Patterns of those that do not.
        fresh: Whether each round starts each contender anew, so that never two are in memory.
        work: Directory for models and texts; a temporary one if None.
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
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    fresh: bool = False
    work: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's arguments to a command."""
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the model (small)")
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
        help="the interpreter of some contenders, for packages that need others; may be repeated",
    )
    parser.add_argument("--mix", choices=MIXES, default="passages", help="lengths (passages)")
    parser.add_argument("--rows", type=int, default=1500, help="texts (1500)")
    parser.add_argument(
        "--transport-rows", type=int, default=300_000, help="texts without a model (300000)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender (3)")
    parser.add_argument("--threads", type=int, help="CPUs of each contender (all)")
    parser.add_argument("--partitions", type=int, help="Spark tasks (as many as threads)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N (cpu)")
    parser.add_argument("--seed", type=int, default=0)
    for name, what in (("--only", "run"), ("--skip", "leave out")):
        parser.add_argument(
            name,
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"names of contenders to {what}, such as 'st-*'; may be repeated",
        )
    parser.add_argument(
        "--fresh", action="store_true", help="never keep two contenders in memory at once"
    )
    parser.add_argument("--work", type=Path, help="keep models and texts in this directory")
    parser.add_argument("--json", type=Path, help="write the JSON document to this file too")
    parser.add_argument("--plot", type=Path, help="write a chart, such as benchmark.png")


def settings_of(given: argparse.Namespace) -> Settings:
    """Returns the benchmark that a command line asks for.

    Raises:
        OptionError: If a value cannot be right.
    """
    threads = available_cpus() if given.threads is None else given.threads
    partitions = threads if given.partitions is None else given.partitions
    counts = {
        "--rows": given.rows,
        "--transport-rows": given.transport_rows,
        "--rounds": given.rounds,
        "--threads": threads,
        "--partitions": partitions,
    }
    for name, value in counts.items():
        if value < 1:
            raise OptionError(f"{name} is {value}; it must be a positive whole number.")
    if threads > available_cpus():
        raise OptionError(f"--threads is {threads}; this process may use {available_cpus()} CPUs.")
    return Settings(
        shape=given.shape,
        model=given.model,
        checkpoint=given.checkpoint,
        prepared=dict(map(_prepared, given.prepared)),
        pythons=dict(map(_python, given.python)),
        mix=given.mix,
        rows=given.rows,
        transport_rows=given.transport_rows,
        rounds=given.rounds,
        threads=threads,
        partitions=partitions,
        device=given.device,
        seed=given.seed,
        only=tuple(given.only),
        skip=tuple(given.skip),
        fresh=given.fresh,
        work=given.work,
    )


def _prepared(given: str) -> tuple[str, str]:
    found = _PREPARED.fullmatch(given)
    if found is None:
        raise OptionError(
            f"--prepared is {given!r}; give engine, precision and directory, such as "
            "openvino-int8=DIR."
        )
    return found[1], str(Path(found[2]).absolute())


def _python(given: str) -> tuple[str, str]:
    found = _PYTHON.fullmatch(given)
    if found is None or not Path(found[2]).is_file():
        raise OptionError(
            f"--python is {given!r}; give a pattern of names and an interpreter that exists, such "
            "as 'st-onnx=other/bin/python'."
        )
    # Not resolved: a virtual environment is known by the link that its interpreter is.
    return found[1], str(Path(found[2]).absolute())
