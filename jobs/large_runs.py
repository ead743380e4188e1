"""python jobs/large_runs.py [--rows N ...] [--work DIR] [--json FILE] ...

What e5spark costs around a model as the rows grow: jobs of 10^5 to 10^8 rows with an engine that
returns one constant vector, of 32 bits. Each size has three runs, each in a process of its own: the
first run; a run with nothing to do; and a run in which the texts of one row in a thousand have
changed.

For each run: seconds from the call to the report, and per row; the driver's peak memory; the JVM's
heap after a collection and its peak memory; the largest Python worker; files and bytes of the table
and of its state; and the operations on the store, by e5spark itself. 10^8 rows take 10 GB of disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

_RUNS = ("first run", "nothing to do", "0.1 % changed")
# A change in the query of the input, so that no second input is written.
_SELECT = {
    _RUNS[0]: ["id", "body"],
    _RUNS[1]: ["id", "body"],
    _RUNS[2]: ["id", "CASE WHEN id % 1000 = 0 THEN concat(body, '!') ELSE body END AS body"],
}
_ROWS_PER_FILE = 1_000_000


def main() -> int:
    """Measures, prints a table, and prints the figures as a JSON document in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6], help="sizes")
    parser.add_argument("--work", help="where to write the tables (the system's directory)")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--driver-memory", default="2g", help="of the JVM, executors included (2g)")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="task slots (all cores)")
    parser.add_argument(
        "--file-megabytes", type=int, default=0, help="run.file_megabytes of the job (0)"
    )
    parser.add_argument("--run", nargs=2, metavar=("JOB", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        job, file = map(Path, options.run)
        file.write_text(json.dumps(_run(job, options.cores, options.driver_memory)), "utf-8")
        return 0
    figures = []
    print(
        "| rows | run | s | µs a row | driver | heap | JVM | worker | files | state | operations |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.work, prefix="large-runs-") as directory:
            for figure in _size(rows, Path(directory), options):
                figures.append(figure)
                print(_line(figure), flush=True)
    document = json.dumps({"cores": options.cores, "figures": figures})
    if options.json:
        options.json.write_text(document, "utf-8")
    print(document)
    return 0


def _size(rows: int, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    from e5spark.benchmark import synthetic
    from e5spark.benchmark.shapes import SHAPES

    model = synthetic.checkpoint(SHAPES["tiny"], work, name="tiny")
    common = [f"--cores={options.cores}", f"--driver-memory={options.driver_memory}"]
    figures = []
    for run in (None, *_RUNS):
        job, result = work / "job.toml", work / "figures.json"
        job.write_text(_job(work, model, rows, run, options.file_megabytes), "utf-8")
        command = [sys.executable, __file__, *common, "--run", str(job), str(result)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if run is not None:
            figures.append({"rows": rows, "run": run, **json.loads(result.read_text("utf-8"))})
    return figures


def _job(work: Path, model: Path, rows: int, run: str | None, file_megabytes: int) -> str:
    """Returns a job file; without a run, one that makes the input."""
    document: dict[str, dict[str, Any]] = {
        "input": {"path": f"{work}/input", "id": "id", "select": _SELECT.get(run or "", [])},
        "embed": {"text": "body", "role": "passage"},
        "model": {"name": str(model), "engine": "torch", "output_type": "binary"},
        "output": {"path": f"{work}/output"},
        "run": {"file_megabytes": file_megabytes},
        # All vectors are equal, and the gates of a run would say so.
        "quality": {"min_vectors": 10**12, "canaries": False},
    }
    lines = [f"# {rows if run is None else ''}"]
    for name, values in document.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines)


def _run(job: Path, cores: int, memory: str) -> dict[str, Any]:
    """Runs a job in this process, or makes its input, and returns the figures."""
    from pyspark.sql import SparkSession

    from e5spark.benchmark import constant, counter, processes
    from e5spark.job import job_file
    from e5spark.job.run import run

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings: dict[str, bool | float | int | str | None] = {
        "spark.driver.memory": memory,
        "spark.driver.host": "127.0.0.1",
        "spark.log.level": "ERROR",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master(f"local[{cores}]").appName("large runs")
    spark = builder.config(map=settings).getOrCreate()
    config = job_file.load(job)
    rows = job.read_text("utf-8").splitlines()[0].removeprefix("#").strip()
    if rows:
        _write_input(spark, int(rows), config.input.path)
        spark.stop()
        return {}
    counter.install(partial(constant.run_constant, tokenizer=False))
    operations = _count_operations()
    started = time.monotonic()
    report = run(spark, config)
    seconds = time.monotonic() - started
    memories = {
        process.pid: processes.memory(process.pid).get("peak_rss", 0)
        for process in processes.tree(os.getpid())
    }
    python = set(processes.workers(processes.tree(os.getpid())))
    jvm = max(value for pid, value in memories.items() if pid not in {os.getpid(), *python})
    heap = _live_heap(spark)
    spark.stop()
    output = Path(config.output.path)
    state = [path for path in (output / "_e5spark").rglob("*") if path.is_file()]
    files = sorted(path.stat().st_size for path in output.glob("*.parquet"))
    return {
        "seconds": seconds,
        "embedded": report.counts.embedded,
        "chunks": report.counts.chunks,
        "driver_bytes": memories[os.getpid()],
        "jvm_bytes": jvm,
        "heap_bytes": heap,
        "worker_bytes": max((memories[pid] for pid in python), default=0),
        "files": len(files),
        "median_file_bytes": files[len(files) // 2],
        "table_bytes": sum(files),
        "state_files": len(state),
        "state_bytes": sum(path.stat().st_size for path in state),
        "operations": dict(operations),
    }


def _write_input(spark: Any, rows: int, path: str) -> None:  # noqa: ANN401  # imported late
    files = max(1, rows // _ROWS_PER_FILE)
    ids = spark.range(0, rows, 1, files)
    ids.selectExpr("id", "concat('This is text number ', id) AS body").write.parquet(path)


def _live_heap(spark: Any) -> int:  # noqa: ANN401  # imported late
    """Returns the bytes that are live in the JVM after a collection."""
    lang = spark._jvm.java.lang
    lang.System.gc()
    runtime = lang.Runtime.getRuntime()
    return int(runtime.totalMemory() - runtime.freeMemory())


def _count_operations() -> Counter[str]:
    """Counts e5spark's operations on local storage from now on."""
    from e5spark.tables.storage.local import LocalStorage

    counts: Counter[str] = Counter()
    for name in ("read", "put", "create", "list", "modified", "rename", "delete"):
        setattr(LocalStorage, name, _counted(getattr(LocalStorage, name), name, counts))
    return counts


def _counted(method: Callable[..., Any], name: str, counts: Counter[str]) -> Callable[..., Any]:
    @wraps(method)
    def call(*arguments: Any) -> Any:  # noqa: ANN401  # any method
        counts[name] += 1
        return method(*arguments)

    return call


def _line(figure: dict[str, Any]) -> str:
    megabytes = {
        name: f"{figure[f'{name}_bytes'] / 1e6:,.0f} MB"
        for name in ("driver", "heap", "jvm", "worker")
    }
    cells = [
        f"{figure['rows']:,}",
        figure["run"],
        f"{figure['seconds']:.1f}",
        f"{figure['seconds'] * 1e6 / figure['rows']:.1f}",
        *megabytes.values(),
        f"{figure['files']:,} of {figure['median_file_bytes'] / 1e6:.1f} MB",
        f"{figure['state_files']} of {figure['state_bytes'] / 1e3:,.0f} kB",
        str(sum(figure["operations"].values())),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
