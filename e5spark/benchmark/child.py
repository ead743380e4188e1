"""The process of one contender: JSON lines in, JSON lines out, until its standard input ends.

It lives through all rounds, so that starting a JVM and loading a model are measured once and
separately. The first line is a ``Task``; each later line makes the contender embed all rows once.
"""

import json
import os
import shutil
import sys
import time
from typing import Any, TextIO

from e5spark.benchmark import passes, processes
from e5spark.benchmark.machine import pin, versions
from e5spark.benchmark.task import LoadedContender, Task, passes_directory


def main() -> int:
    """Runs the child; standard output carries only its answers, whatever libraries print."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task = Task(**json.loads(sys.stdin.readline()))
    try:
        pin(task.threads)
        directory = passes_directory(task.work, task.name)
        passes.open_log(directory)
        contender = _start(task)
        _answer(answers, _first_answer(contender))
        try:
            for _ in sys.stdin:
                _answer(answers, _run(contender, in_process=task.workers == 0))
        finally:
            contender.stop()
            shutil.rmtree(directory)
    except Exception as error:  # whatever a contender raises, the others go on
        _answer(answers, {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"})
        raise
    return 0


def _start(task: Task) -> LoadedContender:
    if task.workers == 0:
        from e5spark.benchmark.in_process import start

        return start(task)
    from e5spark.benchmark.on_spark import start as start_spark

    return start_spark(task)


def _first_answer(contender: LoadedContender) -> dict[str, Any]:
    vectors = None if contender.vectors is None else contender.vectors.tolist()
    return {
        "vectors": vectors,
        "first_vector_seconds": contender.first_vector_seconds,
        "versions": versions(),
    }


def _run(contender: LoadedContender, *, in_process: bool) -> dict[str, Any]:
    contender.warm_up()
    since = time.time()
    before = processes.cpu_seconds(processes.tree(os.getpid()))
    started = time.perf_counter()
    contender.embed()
    seconds = time.perf_counter() - started
    family = processes.tree(os.getpid())
    after = processes.cpu_seconds(family)
    totals = passes.totals(since)
    workers = [os.getpid()] if in_process else processes.workers(family)
    return {
        "seconds": seconds,
        "cpu_seconds": after[0] - before[0],
        "worker_cpu_seconds": None if in_process else after[1] - before[1],
        "tokens": totals.tokens,
        "padded": totals.padded,
        "workers": [processes.memory(pid) for pid in workers],
    }


def _answer(answers: TextIO, document: dict[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
