"""Real processes killed by SIGKILL: whatever dies, and when, the same command finishes the work."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e5spark.tables.sinks.delta_table import delta_name
from tests import chaos
from tests.chaos import CHUNK, IN_FLIGHT, NEXT, PLAYED, ROWS, Kill, Played, Scenario, Table
from tests.cluster import standalone_cluster
from tests.delta_driver import Driver, is_merging, session, start_classic
from tests.processes import await_, is_java, parent, processes, state
from tests.tables import check_nothing_left, check_rows
from tests.trace import Trace

pytestmark = [pytest.mark.chaos, pytest.mark.delta, pytest.mark.cluster]

SCENARIOS = chaos.scenarios()
SAMPLE = chaos.sample(SCENARIOS)
RUN_SECONDS = 400


@pytest.fixture
def victims(tmp_path: Path) -> Iterator[list[Driver]]:
    """Two processes that a test may kill, or must not outlive it."""
    drivers = [Driver(start_classic, str(tmp_path / f"warehouse{number}")) for number in range(2)]
    yield drivers
    for driver in drivers:
        driver.kill()


@pytest.fixture(scope="session")
def cluster(trace_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A process whose session has two executors of one core."""
    with standalone_cluster(tmp_path_factory.mktemp("chaos"), workers=2, cores=1) as url:
        driver = Driver(start_classic, str(tmp_path_factory.mktemp("warehouse")), url)
        yield driver
        driver.close()


@pytest.fixture(scope="session")
def begun(
    driver: Driver, model: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Table, bool], Path | None]:
    """Makes each table that scenarios begin with once."""
    places: dict[tuple[Table, bool], Path] = {}

    def make(table: Table, update: bool) -> Path | None:
        if not update and table != "columns":
            return None
        if (table, update) not in places:
            place = tmp_path_factory.mktemp("begun")
            out = place / "out"
            write_docs(place, ROWS)
            if table == "columns":
                driver(import_docs, place)
            if update:
                job = write_job(place, table, model)
                assert driver.job(job).code == 0
            if update and table == "columns":
                driver(change_docs, place)
            places[table, update] = out
        return places[table, update]

    return make


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(
            scenario, id=str(scenario), marks=[pytest.mark.chaos_sample] * (scenario in SAMPLE)
        )
        for scenario in SCENARIOS
    ],
)
def test_the_same_command_finishes_the_work_after_any_kill(
    scenario: Scenario,
    driver: Driver,
    victims: list[Driver],
    begun: Callable[[Table, bool], Path | None],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    model: str,
    trace: Trace,
) -> None:
    job = write_job(tmp_path, scenario.table, model)
    write_docs(tmp_path, scenario.rows)
    begin = begun(scenario.table, scenario.update)
    kills: list[tuple[Kill, int]] = []
    for attempt in range(4):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        if begin is not None:
            shutil.copytree(begin, tmp_path / "out")
        trace.mark()
        for kill in (planned.earlier(attempt) for planned in scenario.kills):
            if kill.cluster:
                run = request.getfixturevalue("cluster")
            else:
                run = driver if kill.what == "worker" else victims[0]
            code = strike(kill, run, job, tmp_path / "out", scenario, trace)
            victims[0].kill()
            if code is not None:
                kills.append((kill, code))
            elif not kills:
                break
        if kills:
            break
    assert kills, "every run was faster than its kill"

    outcome = driver.job(job)
    assert outcome.code == 0, outcome
    assert outcome.document["embedded"] == 0 or kills[-1][1] != 0
    embedded = trace.rows()
    difference = check_rows(rows_of(driver, tmp_path / "out", scenario.table), scenario.rows, model)
    assert scenario.todo <= embedded <= scenario.todo + CHUNK * IN_FLIGHT * len(kills)
    check_nothing_left(tmp_path / "out")
    played = Played(scenario=scenario, kills=tuple(kills), embedded=embedded, difference=difference)
    PLAYED.append(played)


@pytest.mark.chaos_sample
def test_the_scenarios_are_those_that_were_promised() -> None:
    assert [scenario.table == "parquet" for scenario in SCENARIOS] == [True] * 50 + [False] * 25
    assert len(set(SCENARIOS)) == 75
    assert [scenario.table == "parquet" for scenario in SAMPLE] == [True] * 3 + [False] * 2
    assert {kill.what for scenario in SAMPLE for kill in scenario.kills} == {
        *("driver", "jvm", "worker", "executor")
    }


# test_ledger has two runs on Parquet that meet.
@pytest.mark.parametrize(
    "table", ["parquet", pytest.param("delta", marks=pytest.mark.chaos_sample)]
)
def test_one_of_three_concurrent_runs_commits_and_the_others_do_when_alone(
    table: Table,
    driver: Driver,
    victims: list[Driver],
    tmp_path: Path,
    model: str,
    trace: Trace,
) -> None:
    drivers = [driver, *victims]
    rows = [{100 * run + id: f"run {run} has {id}" for id in range(40)} for run in range(3)]
    job = write_job(tmp_path, table, model, run={})
    for number, texts in enumerate(rows):
        write_docs(tmp_path / str(number), texts)
    pids = [process(os.getpid) for process in drivers]
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(process.job, job, f"input.path={tmp_path / str(number) / 'docs.parquet'}")
            for number, process in enumerate(drivers)
        ]
        lock = tmp_path / "out/_e5spark/lock"
        await_(lambda: any(lock.glob("*.json")) or all(run.done() for run in runs))
        # The first run waits until the others have started, however slow they are.
        winner = pids.index(json.loads(min(lock.glob("*.json")).read_text())["pid"])
        os.kill(pids[winner], signal.SIGSTOP)
        try:
            await_(lambda: sum(run.done() for run in runs) == 2)
        finally:
            os.kill(pids[winner], signal.SIGCONT)
        outcomes = [run.result() for run in runs]
    losers = [number for number in range(3) if number != winner]
    assert [run.code for run in outcomes] == [0 if number == winner else 5 for number in range(3)]
    for number in losers:
        assert "Another run writes to" in outcomes[number].document["message"]
    assert trace.rows() == 40
    there = rows[winner]
    check_rows(rows_of(driver, tmp_path / "out", table), there, model)
    for number in losers:
        outcome = driver.job(job, f"input.path={tmp_path / str(number) / 'docs.parquet'}")
        assert (outcome.code, outcome.document["embedded"]) == (0, 40), outcome
        there = {**there, **rows[number]}
        check_rows(rows_of(driver, tmp_path / "out", table), there, model)
    assert trace.rows() == 120


def strike(
    kill: Kill, driver: Driver, job: str, out: Path, scenario: Scenario, trace: Trace
) -> int | None:
    """Starts the job and kills; returns the run's exit code, or None if it ended before."""
    if kill.at and kill.at != "merging":
        driver.killed(job, at=kill.at)
        return -signal.SIGKILL
    pid = driver(os.getpid)
    before = trace.rows()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(driver.job, job)
        if kill.at == "merging":
            await_(lambda: run.done() or is_merging(out))
        else:
            share = kill.share * scenario.todo
            await_(lambda: run.done() or trace.rows() - before >= share)
            time.sleep(kill.delay)
        if kill.what == "worker":
            await_(lambda: run.done() or any(state(worker) == "R" for worker in workers(trace)))
        if run.done():
            return None
        os.kill(target(kill, pid, trace), signal.SIGKILL)
        try:
            code = run.result(timeout=RUN_SECONDS).code
        except BrokenProcessPool:
            return -signal.SIGKILL
    assert kill.what != "driver"
    assert code in (0, 1, 75), run.result()
    return code


def target(kill: Kill, driver: int, trace: Trace) -> int:
    """The process to kill: workers are known by their trace, their parents by them."""
    if kill.what == "driver":
        return driver
    if kill.what == "jvm":
        return next(pid for pid in processes() if parent(pid) == driver and is_java(pid))
    alive = workers(trace)
    worker = next((pid for pid in alive if state(pid) == "R"), alive[0])
    # A worker is forked by its daemon, which the executor has started.
    return worker if kill.what == "worker" else parent(parent(worker))


def workers(trace: Trace) -> list[int]:
    """The Python workers that have embedded something and live."""
    pids = {event["pid"] for event in trace.events("window")}
    return sorted(pid for pid in pids if parent(pid))


def write_docs(directory: Path, rows: Mapping[int, str]) -> None:
    directory.mkdir(exist_ok=True)
    table = pa.table({"id": list(rows), "body": list(rows.values())})
    pq.write_table(table, directory / "docs.parquet", row_group_size=CHUNK)


def write_job(
    directory: Path, table: Table, model: str, *, run: Mapping[str, Any] | None = None
) -> str:
    """A job from docs.parquet to out; or, for columns, of out alone."""
    source, out = directory / "docs.parquet", directory / "out"
    sections: dict[str, Mapping[str, Any]] = {
        "input": {"path": str(source), "id": "id"},
        "embed": {"text": "body", "role": "passage"},
        "model": {"name": model},
        "output": {"path": str(out), "format": "parquet" if table == "parquet" else "delta"},
        "run": {"chunk_rows": CHUNK, "concurrent_chunks": IN_FLIGHT, "partitions": 1},
    }
    if table == "columns":
        sections["input"] = {"path": str(out), "format": "delta", "id": "id"}
        sections["output"] = {**sections["output"], "write": "columns"}
    elif run is None:
        sections["run"] = {**sections["run"], "delete_missing": True}
    lines = [
        line
        for name, values in sections.items()
        for line in (
            f"[{name}]",
            *(f"{key} = {json.dumps(value)}" for key, value in values.items()),
        )
    ]
    path = directory / "job.toml"
    path.write_text("\n".join(lines), "utf-8")
    return str(path)


def import_docs(directory: Path) -> None:
    """A Delta table of a user's own, in a few files."""
    docs = session().read.parquet(str(directory / "docs.parquet"))
    docs.repartition(3).write.format("delta").save(str(directory / "out"))


def change_docs(directory: Path) -> None:
    """What turns ROWS into NEXT."""
    table = delta_name(str(directory / "out"))
    changed = [id for id, text in NEXT.items() if id in ROWS and text != ROWS[id]]
    new = [f"({id}, '{text}')" for id, text in NEXT.items() if id not in ROWS]
    ids = ", ".join(map(str, changed))
    for query in (
        f"DELETE FROM {table} WHERE id < 5",
        f"UPDATE {table} SET body = concat('changed ', id) WHERE id IN ({ids})",
        f"INSERT INTO {table} (id, body) VALUES {', '.join(new)}",
    ):
        session().sql(query).collect()


def rows_of(driver: Driver, out: Path, table: Table) -> list[dict[str, Any]]:
    if table == "parquet":
        return pq.read_table(out).to_pylist()
    return driver.sql(f"SELECT id, body, embedding FROM {delta_name(str(out))}")
