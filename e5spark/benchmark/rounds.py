"""The contenders in turn, each in a process of its own, round after round."""

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
    """A contender could not start or run; the others go on."""


class Child:
    """A contender's process."""

    def __init__(self, task: Task, log_file: IO[str]) -> None:
        """Starts it, and waits for its first vectors.

        Raises:
            Failure: If there are none.
        """
        self._log = log_file
        self._process = subprocess.Popen(
            [task.python, "-m", "e5spark.benchmark.child"],
            # Spark sets the threads of its workers itself, if nobody else has.
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
            Failure: If it did not get through.
        """
        return self._ask("run")

    def close(self) -> None:
        """Ends the process, and what it has started."""
        assert self._process.stdin is not None
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
        return f"its process ended with code {code}; {self._log.name} says more"


class Children:
    """The processes of all contenders; those that are running, and how to start the others."""

    def __init__(self, tasks: dict[str, Task], *, work: Path, fresh: bool) -> None:
        """Starts nothing yet."""
        self._tasks = tasks
        self._fresh = fresh
        self._logs = work / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, Child] = {}

    def run(self, name: str) -> dict[str, Any]:
        """Returns the figures of one pass; with ``first`` if it was started for that.

        Raises:
            Failure: If the contender could not start or run; it is gone then.
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
        """Ends all of them."""
        for child in self._running.values():
            child.close()
        self._running.clear()


def run_rounds(
    children: Children, names: list[str], rounds: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Returns each contender's figures by round, and why some have none.

    One runs at a time. Each round begins with another contender, so that a slow drift of the
    machine meets them all.
    """
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for number in range(rounds):
        shift = number % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            if name in failed:
                continue
            try:
                found = children.run(name)
            except Failure as failure:
                failed[name] = str(failure)
                log.warning("%s is left out: %s", name, failure)
                continue
            figures[name].append(found)
            log.info("Round %d: %s took %.2f s.", number + 1, name, found["seconds"])
    return figures, failed
