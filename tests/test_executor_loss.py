"""Executors that leave a real standalone cluster: one command ends well and no row is affected."""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from e5spark.tables.sinks.delta_table import delta_name
from tests import executor_loss
from tests.chaos import ROWS
from tests.delta_driver import SHORT_LIVED, Driver, is_replacing, session, start_classic
from tests.executor_loss import (
    CHUNK,
    IN_FLIGHT,
    PARTITIONS,
    PLAYED,
    Change,
    EventLog,
    Node,
    Nodes,
    Played,
    Scenario,
    settings,
)
from tests.processes import await_
from tests.tables import check_nothing_left, check_rows, rows_of, table_of
from tests.trace import Trace

pytestmark = [pytest.mark.chaos, pytest.mark.delta, pytest.mark.cluster]

SCENARIOS = executor_loss.scenarios()
SAMPLE = executor_loss.sample(SCENARIOS)
RUN_SECONDS = 300


@pytest.fixture(scope="module")
def nodes(
    jvm: None, trace_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nodes]:
    """A cluster without nodes."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        # Without it a worker ignores the signal.
        patch.setenv("SPARK_WORKER_OPTS", "-Dspark.decommission.enabled=true")
        patch.setenv("SPARK_DAEMON_JAVA_OPTS", SHORT_LIVED)
        yield Nodes(tmp_path_factory.mktemp("nodes"), stack)


@pytest.fixture(scope="module")
def application(
    nodes: Nodes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[Driver, EventLog]]]:
    """The application of a name; one at a time, because it takes the whole cluster."""
    running: dict[str, tuple[Driver, EventLog]] = {}

    def get(name: str) -> tuple[Driver, EventLog]:
        if name not in running:
            for driver, _ in running.values():
                driver.close()
            running.clear()
            place = tmp_path_factory.mktemp("application")
            options = settings(name, place)
            driver = Driver(start_classic, str(place / "warehouse"), nodes.url, options)
            running[name] = driver, EventLog(place / "events")
        return running[name]

    yield get
    for driver, _ in running.values():
        driver.close()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tables that updates begin with, by their format; filled by the first that needs one."""
    return {}


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(
            scenario,
            id=str(scenario),
            marks=[pytest.mark.chaos_sample] * (scenario == SAMPLE),
        )
        for scenario in SCENARIOS
    ],
)
def test_an_executor_that_leaves_costs_the_tasks_in_flight_and_no_row(
    scenario: Scenario,
    nodes: Nodes,
    application: Callable[[str], tuple[Driver, EventLog]],
    begun: dict[str, Path],
    job_file: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    model: str,
    trace: Trace,
) -> None:
    nodes.restore(scenario.nodes)
    driver, events = application(scenario.application)
    out = tmp_path / "out"
    job = write_job(job_file, tmp_path, scenario, model)
    if scenario.update:
        if scenario.format not in begun:
            pq.write_table(table_of(ROWS), tmp_path / "docs.parquet")
            assert driver.job(job).code == 0
            begun[scenario.format] = tmp_path_factory.mktemp("begun") / "out"
            shutil.copytree(out, begun[scenario.format])
        else:
            shutil.copytree(begun[scenario.format], out)
    pq.write_table(table_of(scenario.rows), tmp_path / "docs.parquet", row_group_size=CHUNK)
    if not scenario.application.startswith("dynamic"):
        await_(lambda: driver(executors) == len(nodes.alive))
    trace.mark()
    events.mark()

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(driver.job, job)
        for change in scenario.changes:
            await_(lambda change=change: run.done() or is_time(change, out, scenario, trace))
            time.sleep(change.delay)
            assert not run.done(), f"the run ended before {change}: {run.result()}"
            nodes.apply(change, victim(change, nodes, trace))
        outcome = run.result(timeout=RUN_SECONDS)

    assert outcome.code == 0, outcome
    log = events.read()
    assert outcome.document["embedded"] == scenario.todo
    rows = rows_of(out) if scenario.format == "parquet" else delta_rows(driver, out)
    difference = check_rows(rows, scenario.rows, model)
    check_nothing_left(out)
    # No task that had written its rows ran again, wherever its executor went: what is embedded
    # again was in a task in flight on an executor that left.
    assert log.repeated == 0
    again = trace.rows() - scenario.todo
    assert 0 <= again <= log.unfinished * log.task_rows, log
    left = sum(change.how in ("spot", "node") for change in scenario.changes)
    assert again <= left * CHUNK, log
    # That one comes where one has gone is Spark's to decide; the other one may do all the work.
    if scenario.serial or scenario.application.startswith("dynamic"):
        assert log.left + log.joined > 0, log
    PLAYED.append(Played(scenario=scenario, log=log, again=again, difference=difference))


@pytest.mark.chaos_sample
def test_the_scenarios_cover_every_way_to_leave() -> None:
    assert len(set(SCENARIOS)) == 20
    changes = [change for scenario in SCENARIOS for change in scenario.changes]
    assert {change.how for change in changes} == {"decommission", "spot", "node", "join", "idle"}
    assert {scenario.application for scenario in SCENARIOS} == set(executor_loss.APPLICATIONS)


def is_time(change: Change, out: Path, scenario: Scenario, trace: Trace) -> bool:
    """Whether the instant of a change has come."""
    if change.at == "work list":
        return any(out.glob("_e5spark/work/*/*"))
    if change.at == "replace":
        return is_replacing(out)
    share = {"begin": 0.0, "commit": 1.0}.get(change.at, change.share)
    return trace.rows() >= share * scenario.todo


def victim(change: Change, nodes: Nodes, trace: Trace) -> Node | None:
    """The node that a change hits."""
    if change.how in ("join", "idle"):
        return None
    return nodes.working(trace) if change.at == "share" else nodes.holding()


def executors() -> int:
    """The executors that the application has; in its process."""
    context: Any = session().sparkContext
    return len(context._jsc.sc().statusTracker().getExecutorInfos()) - 1


def delta_rows(driver: Driver, out: Path) -> list[dict[str, Any]]:
    return driver.sql(f"SELECT id, body, embedding FROM {delta_name(str(out))}")


def write_job(job_file: Callable[..., str], directory: Path, scenario: Scenario, model: str) -> str:
    """A job from docs.parquet to out, in small tasks of several windows."""
    run = {"chunk_rows": CHUNK, "partitions": PARTITIONS, "concurrent_chunks": IN_FLIGHT}
    if scenario.serial:
        run |= {"partitions": 1, "concurrent_chunks": 1}
    return job_file(
        input={"path": str(directory / "docs.parquet"), "id": "id"},
        embed={"text": "body", "role": "passage"},
        model={"name": model, "sort_window": 2},
        output={"path": str(directory / "out"), "format": scenario.format},
        run={**run, "delete_missing": True},
    )
