"""The rounds: contenders run in turn, each in a process of its own."""

import contextlib
import dataclasses
import json
import logging
import subprocess
from pathlib import Path
from typing import IO, Any

from e5spark.benchmark.machine import environment
from e5spark.benchmark.task import Task

log = logging.getLogger("e5spark")


class Failure(Exception):
    """A contender could not start or run; the other contenders go on."""


class Child:
    """A contender's process."""

    def __init__(self, task: Task, log_file: IO[str]) -> None:
        """Starts the process, and waits for its first vectors.

        Args:
            task: The contender and its rows.
            log_file: The file of its standard error, which ``close`` closes.

        Raises:
            Failure: If it does not return vectors.
        """
        self._log = log_file
        self._process = subprocess.Popen(
            [task.python, "-m", "e5spark.benchmark.child"],
            # Spark sets the threads of its workers itself, unless this variable is set.
            env=environment(task.threads if task.workers == 0 else None, python=task.python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
        )
        self.first = self._ask(json.dumps(dataclasses.asdict(task)))

    def run(self) -> dict[str, Any]:
        """Returns the figures of one pass over all rows.

        Raises:
            Failure: If the pass did not finish.
        """
        return self._ask("run")

    def close(self) -> None:
        """Ends the process and its children."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died before it read a line
            self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        document: dict[str, Any] = json.loads(answer) if answer else {"error": self._end()}
        if "error" in document:
            self.close()
            raise Failure(document["error"])
        return document

    def _end(self) -> str:
        code = self._process.wait()
        return f"its process ended with exit code {code}; read {self._log.name} for the cause"


class Children:
    """The processes of all contenders, which start when they first run."""

    def __init__(self, tasks: dict[str, Task], *, work: Path, fresh: bool) -> None:
        """Remembers the tasks; starts no process.

        Args:
            tasks: Name of a contender to its task.
            work: The directory of the log files.
            fresh: Whether a process ends after each pass.
        """
        self._tasks = tasks
        self._fresh = fresh
        self._logs = work / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, Child] = {}

    def run(self, name: str) -> dict[str, Any]:
        """Returns the figures of one pass; with ``first`` if the process was started for it.

        Raises:
            Failure: If the contender could not start or run, in which case its process has ended.
        """
        child = self._running.pop(name, None)
        first = {}
        if child is None:
            log_file = open(self._logs / f"{name}.log", "w", encoding="utf-8")  # noqa: SIM115
            child = Child(self._tasks[name], log_file)
            first = {"first": child.first}
        figures = {**child.run(), **first}
        if self._fresh:
            child.close()
        else:
            self._running[name] = child
        return figures

    def close(self) -> None:
        """Ends all processes."""
        for child in self._running.values():
            child.close()
        self._running.clear()


def run_rounds(
    children: Children, names: list[str], rounds: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Returns the figures of each contender by round, and the reason for each failure.

    One contender runs at a time. Each round begins with a different contender, so that a slow
    drift of the machine affects them all.
    """
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for number in range(rounds):
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            if name in failed:
                continue
            try:
                run = children.run(name)
            except Failure as failure:
                failed[name] = str(failure)
                log.warning("%s is left out: %s", name, failure)
                continue
            figures[name].append(run)
            log.info("Round %d: %s took %.2f s.", number + 1, name, run["seconds"])
    return figures, failed
