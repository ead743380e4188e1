"""python jobs/short_runs.py --model MODEL [--rounds N] [--rows N] [--changed N] [--warm] ...

What a short run costs beside a bare PySpark session that counts the table. Each round starts, one
after the other: the bare session; the job with a few changed rows; the job with nothing to do.
Seconds are those of the command; CPU seconds are those of all of its processes, with the JVM and
the Python workers. The table has the medians, and the medians of the ratios to the bare session of
the same round. With ``--warm``, all runs share one session, which has run the job once, and each
round begins with a first run into a new table. The last line is a JSON document.
"""

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from e5spark.job import job_file
from e5spark.job.run import run
from e5spark.job.session import session
from e5spark.tables.delta_session import session_settings

Runs = dict[str, list[tuple[float, float]]]
CORPUS = Path("jobs/demo_corpus/passages.jsonl")
_SUBREAPER = 36  # of Linux's prctl: orphans become children of this process
_BARE = """
import json, sys
from pyspark.sql import SparkSession
format, path, settings = sys.argv[1:]
spark = SparkSession.builder.config(map=json.loads(settings)).getOrCreate()
print(spark.read.format(format).load(path).count())
"""
_JOB = """
[input]
path = "set by --set"
id = "id"
[embed]
text = "text"
role = "passage"
[model]
name = "{model}"
[output]
path = "{output}"
format = "{format}"
"""


def main() -> int:
    """Measures, and prints the figures."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        figures = (_warm if options.warm else _cold)(options, Path(work))
    base = "bare" if "bare" in figures else "first"
    document = {**vars(options), "load": os.getloadavg()[2], "runs": _medians(figures, base)}
    _print(document["runs"])
    print(json.dumps(document))
    return 0


def _cold(options: argparse.Namespace, work: Path) -> Runs:
    """Runs each command in a process of its own."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    inputs = _inputs(work, options.rows, options.changed)
    job, output = _job(options, work, "vectors")
    settings = json.dumps(session_settings() if options.format == "delta" else {})
    bare = [sys.executable, "-c", _BARE, options.format, output, settings]

    def embed(input: Path) -> list[str]:
        command = [sys.executable, "-m", "e5spark", "embed", str(job)]
        return [*command, "--set", f"input.path={input}"]

    _run(embed(inputs[0]), embedded=options.rows)
    figures: Runs = {"bare": [], "changed": [], "nothing": []}
    for number in range(1, options.rounds + 1):
        input = inputs[number % 2]
        figures["bare"].append(_run(bare))
        figures["changed"].append(_run(embed(input), embedded=options.changed))
        figures["nothing"].append(_run(embed(input), embedded=0))
    return figures


def _warm(options: argparse.Namespace, work: Path) -> Runs:
    """Runs the job in one session."""
    inputs = _inputs(work, options.rows, options.changed)
    figures: Runs = {"first": [], "changed": [], "nothing": []}

    def timed(name: str, input: Path) -> None:
        config = job_file.load(job, [f"input.path={input}"])
        started, cpu = time.monotonic(), time.process_time()
        run(spark, config)
        figures[name].append((time.monotonic() - started, time.process_time() - cpu))

    job, _ = _job(options, work, "warm-up")
    with session(job_file.load(job, [])) as spark:
        timed("first", inputs[0])
        figures["first"].clear()
        for number in range(options.rounds):
            job, _ = _job(options, work, f"vectors-{number}")
            for name, input in zip(figures, (inputs[0], inputs[1], inputs[1]), strict=True):
                timed(name, input)
    return figures


def _job(options: argparse.Namespace, work: Path, name: str) -> tuple[Path, str]:
    """Writes a job file, and returns its path and that of its output."""
    file, output = work / f"{name}.toml", f"{work}/{name}"
    file.write_text(_JOB.format(model=options.model, output=output, format=options.format))
    return file, output


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--rows", type=int, default=424, help="rows of the table (424)")
    parser.add_argument("--changed", type=int, default=10, help="rows that change (10)")
    parser.add_argument("--format", default="parquet", help="of the output: parquet or delta")
    parser.add_argument("--model", required=True, help="a checkpoint: its name, directory or jar")
    parser.add_argument("--warm", action="store_true", help="all runs in one session")
    parser.add_argument("--work", help="the parent of the directory for the tables")
    return parser.parse_args()


def _inputs(directory: Path, rows: int, changed: int) -> tuple[Path, Path]:
    """Writes two tables that differ in the texts of some rows, and returns their paths."""
    passages = [json.loads(line)["text"] for line in CORPUS.read_text("utf-8").splitlines()]
    texts = [passages[row % len(passages)] for row in range(rows)]
    others = [f"{text} Again." if row < changed else text for row, text in enumerate(texts)]
    paths = []
    for name, column in (("before", texts), ("after", others)):
        path = directory / name
        path.mkdir()
        table = pa.table({"id": [f"row-{row}" for row in range(rows)], "text": column})
        pq.write_table(table, path / "part-0.parquet")
        paths.append(path)
    return paths[0], paths[1]


def _run(command: list[str], *, embedded: int | None = None) -> tuple[float, float]:
    """Runs a command, and returns its seconds and the CPU seconds of all of its processes."""
    before, started = _cpu_seconds(), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-3000:]}")
    if embedded is not None:
        report: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if report["embedded"] != embedded:
            raise SystemExit(f"{report['embedded']} rows were embedded, not {embedded}.")
    while _wait():  # the JVM outlives the command for a moment
        pass
    return seconds, _cpu_seconds() - before


def _wait() -> bool:
    try:
        os.wait()
    except ChildProcessError:
        return False
    return True


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _medians(figures: Runs, base: str) -> dict[str, dict[str, float]]:
    """Returns the medians of each kind of run, and the medians of its ratios to the base."""
    medians = {}
    for name, runs in figures.items():
        pairs = [
            (seconds / base_seconds, cpu / base_cpu)
            for (seconds, cpu), (base_seconds, base_cpu) in zip(runs, figures[base], strict=True)
        ]
        medians[name] = {
            "seconds": statistics.median(seconds for seconds, _ in runs),
            "cpu_seconds": statistics.median(cpu for _, cpu in runs),
            "ratio": statistics.median(ratio for ratio, _ in pairs),
            "cpu_ratio": statistics.median(ratio for _, ratio in pairs),
        }
    return medians


def _print(runs: Mapping[str, Mapping[str, float]]) -> None:
    print(f"{'':10}{'seconds':>9}{'ratio':>7}{'CPU, s':>8}{'ratio':>7}")
    for name, medians in runs.items():
        print(
            f"{name:10}{medians['seconds']:9.1f}{medians['ratio']:7.2f}"
            f"{medians['cpu_seconds']:8.1f}{medians['cpu_ratio']:7.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
