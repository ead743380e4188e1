"""A contender's own process: JSON lines in, JSON lines out, until its standard input ends.

It stays alive over all rounds, so that starting a JVM and loading a model are measured once and
apart. The first line is a ``Task``; each line after it makes the contender embed all rows once.
"""

import json
import os
import shutil
import sys
import time
from typing import Any, TextIO

from e5spark.benchmark import ledger, processes
from e5spark.benchmark.machine import pin, versions
from e5spark.benchmark.task import Started, Task, ledger_directory


def main() -> int:
    """Runs the child; standard output is its pipe alone, whatever libraries print there."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task = Task(**json.loads(sys.stdin.readline()))
    try:
        pin(task.threads)
        directory = ledger_directory(task.work, task.name)
        ledger.open_ledger(directory)
        started = _start(task)
        _answer(answers, _first(started))
        try:
            for _ in sys.stdin:
                _answer(answers, _run(started, in_process=task.workers == 0))
        finally:
            started.stop()
            shutil.rmtree(directory)
    except Exception as error:  # whatever a contender does, the others go on
        _answer(answers, {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"})
        raise
    return 0


def _start(task: Task) -> Started:
    if task.workers == 0:
        from e5spark.benchmark.in_process import start

        return start(task)
    from e5spark.benchmark.on_spark import start as start_spark

    return start_spark(task)


def _first(started: Started) -> dict[str, Any]:
    vectors = None if started.vectors is None else started.vectors.tolist()
    return {
        "vectors": vectors,
        "first_vector_seconds": started.first_vector_seconds,
        "versions": versions(),
    }


def _run(started: Started, *, in_process: bool) -> dict[str, Any]:
    started.warm_up()
    since = time.time()
    before = processes.cpu_seconds(processes.tree(os.getpid()))
    begun = time.perf_counter()
    started.embed()
    seconds = time.perf_counter() - begun
    family = processes.tree(os.getpid())
    after = processes.cpu_seconds(family)
    account = ledger.account(since)
    embedding = [os.getpid()] if in_process else processes.workers(family)
    return {
        "seconds": seconds,
        "cpu_seconds": after[0] - before[0],
        "worker_cpu_seconds": None if in_process else after[1] - before[1],
        "tokens": account.tokens,
        "padded": account.padded,
        "workers": [processes.memory(pid) for pid in embedding],
    }


def _answer(answers: TextIO, document: dict[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
