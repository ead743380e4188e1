"""Scenarios of executors that leave, as data; a cluster whose nodes come and go; what Spark did."""

import json
import os
import random
import shutil
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from tests import slow_model
from tests.chaos import NEXT, ROWS
from tests.cluster import REGISTERED, Running, python_path, standalone_master, standalone_worker
from tests.delta_driver import SHORT_LIVED
from tests.processes import descendants, parent
from tests.trace import Trace

How = Literal["decommission", "spot", "node", "join", "idle"]
At = Literal["begin", "work list", "share", "commit", "replace"]

SEED = 13
CHUNK, PARTITIONS, IN_FLIGHT = 12, 3, 2
NODES = 2

_DECOMMISSION = {"spark.decommission.enabled": "true"}
# Not where executors come: in Spark 4.1 one that is given a block while it starts never reads a
# shuffle (``BlockManager.shuffleManager`` is null from then on), and the job ends after 4 attempts.
_MIGRATION = {
    **_DECOMMISSION,
    "spark.storage.decommission.enabled": "true",
    "spark.storage.decommission.shuffleBlocks.enabled": "true",
    "spark.storage.decommission.rddBlocks.enabled": "true",
    "spark.storage.decommission.replicationReattemptInterval": "1s",
}
_DYNAMIC = {
    "spark.dynamicAllocation.enabled": "true",
    "spark.dynamicAllocation.shuffleTracking.enabled": "true",
    "spark.dynamicAllocation.shuffleTracking.timeout": "1s",
    "spark.dynamicAllocation.minExecutors": "0",
    "spark.dynamicAllocation.executorIdleTimeout": "1s",
}
# What an application asks for, by a name for it.
APPLICATIONS: dict[str, Mapping[str, str]] = {
    "defaults": {},
    "decommission": _DECOMMISSION,
    "migration": _MIGRATION,
    "dynamic": _DYNAMIC,
    "dynamic and decommission": {**_DYNAMIC, **_DECOMMISSION},
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that happens to the cluster while a job runs.

    Attributes:
        how: ``decommission``: a worker is told to decommission, and its machine goes on;
            ``spot``: the same, and ``grace`` seconds later the machine is gone with its files;
            ``node``: a machine is gone with its files, unannounced; ``join``: a machine comes;
            ``idle``: nothing, dynamic allocation lets executors go.
        at: When: as the job begins; when the work list is written; once a share of the rows went
            through the model; at the commit, once all of them did; when the rows that replace
            others are recorded, as the MERGE begins.
        share: For ``at = "share"``.
        delay: Seconds that are waited then.
        grace: See ``spot``.
        replaced: Whether another machine comes at once.
    """

    how: How
    at: At
    share: float = 0.0
    delay: float = 0.0
    grace: float = 0.0
    replaced: bool = False

    def __str__(self) -> str:
        when = f"{self.share:.2f}" if self.at == "share" else self.at
        grace = f", killed {self.grace:.1f}s later" if self.how == "spot" else ""
        after = f"+{self.delay:.2f}s" if self.delay else ""
        return f"{self.how} at {when}{after}{grace}{' (replaced)' * self.replaced}"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A first run or an update of a table, on an application whose cluster changes.

    Attributes:
        application: A key of ``APPLICATIONS``.
        changes: What happens, in this order.
        update: Whether the table is there and ROWS become NEXT.
        format: Of the table.
        nodes: Machines when the run begins.
        serial: Whether one task runs at a time, so that all other executors are idle.
    """

    application: str
    changes: tuple[Change, ...]
    update: bool = False
    format: Literal["parquet", "delta"] = "parquet"
    nodes: int = NODES
    serial: bool = False

    @property
    def rows(self) -> dict[int, str]:
        """What the table has in the end."""
        return NEXT if self.update else ROWS

    @property
    def todo(self) -> int:
        """Rows to embed."""
        return sum(not self.update or ROWS.get(id) != text for id, text in self.rows.items())

    @property
    def kind(self) -> str:
        """What happens, and dynamic allocation where the application has it."""
        if self.application.startswith("dynamic"):
            return "dynamic allocation"
        return " and ".join(sorted({change.how for change in self.changes}))

    def __str__(self) -> str:
        what = "update" if self.update else "first run"
        changes = ", ".join(map(str, self.changes))
        return f"{self.application}, {self.format} {what}, {changes}"


def scenarios() -> list[Scenario]:
    """Twenty: each way to leave, early, in the middle and late."""
    chance = random.Random(SEED)

    def middle() -> float:
        return chance.uniform(0.1, 0.8)

    def change(how: How, at: At, **more: Any) -> Change:
        share = middle() if at == "share" else 0.0
        delay = 0.0 if at == "begin" else chance.uniform(0, 0.4)
        grace = chance.uniform(0.1, 1.5) if how == "spot" else 0.0
        return Change(how=how, at=at, share=share, delay=delay, grace=grace, **more)

    def one(application: str, how: How, at: At, **more: Any) -> Scenario:
        return Scenario(application=application, changes=(change(how, at),), **more)

    both = (
        Change(how="node", at="share", share=0.2, replaced=True),
        Change(how="node", at="share", share=0.6, replaced=True),
    )
    everything = (
        change("spot", "work list", replaced=True),
        Change(how="decommission", at="share", share=0.3),
        Change(how="node", at="share", share=0.7, replaced=True),
    )
    grown = (Change(how="join", at="share", share=0.1),)
    return [
        Scenario(application="dynamic", changes=grown, nodes=1),
        Scenario(application="dynamic", changes=(Change(how="idle", at="begin"),), serial=True),
        one("dynamic", "node", "share", update=True),
        one("dynamic and decommission", "spot", "share", update=True),
        one("defaults", "node", "work list", update=True),
        one("defaults", "node", "share"),
        one("defaults", "node", "share", update=True),
        one("defaults", "node", "commit", update=True),
        one("defaults", "node", "replace", update=True, format="delta"),
        Scenario(application="defaults", changes=both),
        one("decommission", "decommission", "work list", update=True),
        one("decommission", "decommission", "share"),
        one("decommission", "spot", "work list"),
        one("decommission", "spot", "share"),
        one("decommission", "spot", "commit", update=True),
        one("migration", "decommission", "work list", update=True),
        one("migration", "decommission", "share", update=True),
        one("migration", "decommission", "commit", update=True),
        one("migration", "spot", "share", update=True),
        Scenario(application="decommission", changes=everything, update=True),
    ]


def sample(all_scenarios: list[Scenario]) -> Scenario:
    """A first run that loses a machine in the middle, with Spark's defaults."""
    return next(
        scenario
        for scenario in all_scenarios
        if scenario.application == "defaults" and not scenario.update
    )


class Node:
    """A machine: a Spark worker with an address and disks of its own, and all its processes."""

    def __init__(self, running: Running, directory: Path) -> None:
        self.running = running
        self.directory = directory

    @property
    def pids(self) -> list[int]:
        """The worker, its executors, their Python daemons and workers."""
        return [self.running.process.pid, *descendants(self.running.process.pid)]

    @property
    def shuffle_files(self) -> int:
        """The files that its executors hold for stages to come."""
        return sum(1 for _ in self.directory.glob("local/**/shuffle_*.data"))

    def decommission(self) -> None:
        """Tell the worker that it has to go, as Spark's own script does."""
        os.kill(self.running.process.pid, signal.SIGPWR)

    def lose(self) -> None:
        """Kill every process, the worker first, and delete its disks."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.running.process.wait()
        for name in ("local", "work"):
            shutil.rmtree(self.directory / name, ignore_errors=True)


class Nodes:
    """A standalone master, and the nodes that are alive."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self._numbers = count(2)  # the master and the driver are 127.0.0.1
        self.url = stack.enter_context(standalone_master(directory / "master"))
        self.alive: list[Node] = []

    def join(self, nodes: int = 1) -> None:
        """Start nodes; they have registered when this returns."""
        for node in [self._start() for _ in range(nodes)]:
            node.running.wait_for(REGISTERED)
            self.alive.append(node)

    def _start(self) -> Node:
        number = next(self._numbers)
        directory = self._directory / f"node-{number}"
        worker = standalone_worker(directory, self.url, host=f"127.0.0.{number}")
        return Node(self._stack.enter_context(worker), directory)

    def restore(self, number: int) -> None:
        """As many nodes as that."""
        while len(self.alive) > number:
            self.alive.pop().lose()
        self.join(number - len(self.alive))

    def working(self, trace: Trace) -> Node:
        """The node that has embedded last; before that, the one with the most shuffle files."""
        owners = {pid: node for node in self.alive for pid in node.pids}
        for event in sorted(trace.events("window"), key=lambda event: -event["time"]):
            if event["pid"] in owners and parent(event["pid"]):
                return owners[event["pid"]]
        return self.holding()

    def holding(self) -> Node:
        """The node with the most shuffle files."""
        return max(self.alive, key=lambda node: node.shuffle_files)

    def apply(self, change: Change, node: Node | None) -> None:
        """Let a change happen to a node."""
        if change.how == "join":
            self.join()
        if node is None or change.how in ("join", "idle"):
            return
        self.alive.remove(node)
        if change.how in ("decommission", "spot"):
            node.decommission()
        if change.how == "spot":
            time.sleep(change.grace)
        if change.how in ("spot", "node"):
            node.lose()
        if change.replaced:
            self.join()


@dataclass(frozen=True, kw_only=True)
class SparkLog:
    """What Spark's event log says about a part of an application.

    Attributes:
        joined: Executors that came.
        left: Executors that went away.
        ends: How tasks ended that did not succeed, by Spark's name for it.
        stages_again: Stages of which a part was computed again.
        unfinished: Embedding tasks that did not succeed: those that were in flight.
        repeated: Embedding tasks whose rows were written twice.
        task_rows: The most rows of an embedding task.
    """

    joined: int
    left: int
    ends: Counter[str]
    stages_again: int
    unfinished: int
    repeated: int
    task_rows: int


class EventLog:
    """The event log of one application."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._begin = 0

    def mark(self) -> None:
        """Forget everything so far."""
        self._begin = sum(path.stat().st_size for path in self._directory.glob("*"))

    def read(self) -> SparkLog:
        """What has happened since the mark."""
        events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in self._events():
            events[event["Event"].removeprefix("SparkListener")].append(event)
        stages = [event["Stage Info"] for event in events["StageSubmitted"]]
        embedding = {stage["Stage ID"] for stage in stages if _has_python(stage)}
        ended = [(event["Task End Reason"]["Reason"], event) for event in events["TaskEnd"]]
        tasks = [
            (reason, event)
            for reason, event in ended
            if event["Stage ID"] in embedding and event["Task Type"] == "ResultTask"
        ]
        # By partition: a second attempt of a stage gives its tasks other indices.
        written = Counter(
            (event["Stage ID"], event["Task Info"]["Partition ID"])
            for reason, event in tasks
            if reason == "Success"
        )
        return SparkLog(
            joined=len(events["ExecutorAdded"]),
            left=len(events["ExecutorRemoved"]),
            ends=Counter(reason for reason, _ in ended if reason != "Success"),
            stages_again=sum(stage["Stage Attempt ID"] > 0 for stage in stages),
            unfinished=sum(reason != "Success" for reason, _ in tasks),
            repeated=sum(number > 1 for number in written.values()),
            task_rows=max((_rows_written(event) for _, event in tasks), default=0),
        )

    def _events(self) -> Iterator[dict[str, Any]]:
        for path in self._directory.glob("*"):
            with path.open("rb") as file:
                file.seek(self._begin)
                for line in file:
                    if line.endswith(b"\n"):
                        yield json.loads(line)


def _has_python(stage: Mapping[str, Any]) -> bool:
    return any("EvalPython" in rdd.get("Scope", "") for rdd in stage["RDD Info"])


def _rows_written(event: Mapping[str, Any]) -> int:
    metrics = event.get("Task Metrics") or {}
    return int(metrics.get("Output Metrics", {}).get("Records Written", 0))


def settings(application: str, directory: Path) -> dict[str, str]:
    """What the session of an application is made with; the directory gets its event log."""
    (directory / "events").mkdir(parents=True)
    return {
        **APPLICATIONS[application],
        "spark.driver.host": "127.0.0.1",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": f"file://{directory / 'events'}",
        "spark.eventLog.rolling.enabled": "false",
        "spark.eventLog.compress": "false",
        "spark.executor.cores": "1",
        "spark.executor.memory": "600m",
        "spark.executor.extraJavaOptions": SHORT_LIVED,
        "spark.executorEnv.PYTHONPATH": python_path(slow_model.arm(directory)),
        "spark.network.timeout": "60s",
        "spark.shuffle.io.maxRetries": "1",
        "spark.shuffle.io.retryWait": "1s",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "2",
    }


@dataclass(frozen=True, kw_only=True)
class Played:
    """How a scenario ended."""

    scenario: Scenario
    log: SparkLog
    again: int
    difference: float


PLAYED: list[Played] = []


def figures() -> list[str]:
    """The figures of all scenarios of this process, in lines: of each way to leave, and of all."""
    if not PLAYED:
        return []
    kinds: dict[str, list[Played]] = defaultdict(list)
    for played in PLAYED:
        kinds[played.scenario.kind].append(played)
    return [
        *(_figures(kind, played) for kind, played in kinds.items()),
        _figures("all", PLAYED),
        f"worst difference of a component: {max(played.difference for played in PLAYED):.2g}",
    ]


def _figures(kind: str, played: list[Played]) -> str:
    logs = [one.log for one in played]
    ends = sum((log.ends for log in logs), Counter[str]())
    return (
        f"{kind}: {len(played)} scenarios; executors that left {sum(log.left for log in logs)}, "
        f"that came {sum(log.joined for log in logs)}; tasks that did not succeed: "
        f"{_listed(ends)}; stages computed again in part {sum(log.stages_again for log in logs)}; "
        f"rows to embed {sum(one.scenario.todo for one in played)}, embedded twice "
        f"{sum(one.again for one in played)}, where tasks in flight allow "
        f"{sum(log.unfinished * log.task_rows for log in logs)}"
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items()) or "none"
