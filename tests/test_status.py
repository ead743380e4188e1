"""What a table holds and how it came about, and that looking at it changes nothing."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from e5spark.cli import main
from e5spark.cli.status import text
from e5spark.errors import ConflictError, GateError
from e5spark.job.history import locked
from e5spark.job.status import Status, status_columns
from e5spark.model.fingerprint import Fingerprint, in_words
from e5spark.model.registry import Recipe
from e5spark.tables.ledger import ledger as ledger_module
from e5spark.tables.ledger.layout import RUNS
from e5spark.tables.ledger.lock import acquire, unlock
from e5spark.tables.ledger.state import State, read_state
from e5spark.tables.sinks.protocol import Size
from e5spark.tables.storage.local import LocalStorage
from tests.conftest import Outcome
from tests.golden.write import GOLDEN
from tests.tables import Job, table_of

INTERRUPTED = GOLDEN / "0.1.0" / "interrupted"
COMPLETE = GOLDEN / "0.1.0" / "parquet"


@pytest.fixture
def files(tmp_path: Path) -> LocalStorage:
    return LocalStorage(str(tmp_path), tmp_path)


@pytest.fixture
def interrupted(tmp_path: Path) -> LocalStorage:
    """A table of 8 rows whose run was killed when 4 were visible and 4 recorded."""
    table = shutil.copytree(INTERRUPTED, tmp_path / "interrupted")
    return LocalStorage(str(table), table)


def contents(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def status_of(state: State | None, **fields: Any) -> Status:
    problems = () if state is None else state.problems
    values: dict[str, Any] = {"statuses": {}, "problems": problems, **fields}
    return Status(output="/data/vectors", kind="parquet", state=state, **values)


def test_the_state_of_a_killed_run_names_what_is_pending_and_who_holds_the_lock(
    interrupted: LocalStorage,
) -> None:
    before = contents(Path(interrupted.root))
    state = read_state(interrupted)
    assert state.manifest
    assert state.manifest.dim == 16
    assert [(record.name, record.rows) for record in state.pending] == [("00001-00002", 4)]
    assert (state.staged, state.lost, state.runs, state.problems) == ((), (), (), ())
    assert dict(state.commits) == {1: 1}
    assert state.last_commit_at
    assert state.holder
    assert (state.holder.epoch, state.holder.is_released, state.holder.is_alive) == (1, False, None)
    assert state.is_held  # nothing on this machine can tell
    assert contents(Path(interrupted.root)) == before


def test_a_table_that_does_not_exist_has_not_begun_and_is_not_created(tmp_path: Path) -> None:
    files = LocalStorage(str(tmp_path / "nothing"), tmp_path / "nothing")
    state = read_state(files)
    assert not state.has_begun
    assert not state.is_held
    assert (state.manifest, state.holder, state.problems) == (None, None, ())
    assert not (tmp_path / "nothing").exists()
    for status in (status_of(state), status_of(None)):
        assert "It does not exist yet" in text(status)
        assert (status.as_dict()["exists"], status.as_dict()["up_to_date_at"]) == (False, None)
        json.dumps(status.as_dict())


def test_records_that_came_too_late_and_rows_that_nobody_recorded_are_told_apart(
    interrupted: LocalStorage,
) -> None:
    interrupted.put("_e5spark/staging/00001-00003/part-0.parquet", b"")
    interrupted.delete("_e5spark/staging/00001-00002")
    state = read_state(interrupted)
    assert (state.pending, state.lost, state.staged) == ((), ("00001-00002",), ("00001-00003",))
    printed = text(status_of(state))
    assert "1 records that came too late; the next run removes them" in printed
    assert "1 chunks that are staged and not recorded" in printed


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "figures.json",
        "commits/00001-00002.json",
        "runs/00001.json",
        "lock/0000001.json",
    ],
)
def test_a_damaged_file_is_a_problem_and_everything_else_is_read(
    interrupted: LocalStorage, name: str
) -> None:
    interrupted.put(f"_e5spark/{name}", b'{"format": 1')
    state = read_state(interrupted)
    assert len(state.problems) == 1
    assert f"_e5spark/{name} is damaged: " in state.problems[0]
    assert (state.manifest is None) == (name == "manifest.json")
    assert len(state.pending) == (not name.startswith("commits"))
    assert state.holder
    assert (state.holder.owner is None) == name.startswith("lock")
    printed = text(status_of(state))
    assert state.problems[0] in printed
    assert "\nlock " in printed


def test_a_manifest_that_is_lost_is_a_problem(interrupted: LocalStorage) -> None:
    interrupted.delete("_e5spark/manifest.json")
    state = read_state(interrupted)
    assert "has lost _e5spark/manifest.json" in state.problems[0]


def test_files_of_a_later_release_are_problems(interrupted: LocalStorage) -> None:
    for name in ("manifest.json", "lock/0000001.json"):
        interrupted.put(f"_e5spark/{name}", b'{"format": 2}')
    assert all("reads formats up to" in problem for problem in read_state(interrupted).problems)
    assert len(read_state(interrupted).problems) == 2


def test_a_run_that_is_done_records_its_counts(files: LocalStorage) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    with locked(files, "embed", {"e5spark": "1"}) as (_, counts):
        counts["rows_in"] = 5
    (run,) = read_state(files).runs
    assert (run.epoch, run.command, run.outcome, run.error) == (1, "embed", "done", "")
    assert (run.counts, run.versions) == ({"rows_in": 5}, {"e5spark": "1"})
    assert before <= datetime.fromisoformat(run.started_at) <= datetime.fromisoformat(run.ended_at)
    assert status_of(read_state(files)).up_to_date_at == run.ended_at


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GateError("3 of s3a://KEY:SECRET@bucket failed."), "3 of s3a://bucket failed."),
        (ValueError("a text"), ""),
        (KeyboardInterrupt(), ""),
    ],
)
def test_a_run_that_fails_records_its_error_and_no_text(
    files: LocalStorage, error: BaseException, message: str
) -> None:
    with pytest.raises(type(error)), locked(files, "embed", {}):
        raise error
    (run,) = read_state(files).runs
    assert (run.outcome, run.error, run.message) == ("failed", type(error).__name__, message)
    assert status_of(read_state(files)).up_to_date_at is None
    printed = text(status_of(read_state(files)))
    assert f"failed, 0 commits: {type(error).__name__}" in printed
    assert "never: no run has finished" in printed


def test_a_run_that_has_lost_its_lock_raises_its_own_error_and_records_nothing(
    files: LocalStorage,
) -> None:
    with pytest.raises(ZeroDivisionError), locked(files, "embed", {}):
        _ = unlock(files, force=True), 1 / 0
    with pytest.raises(ConflictError), locked(files, "embed", {}):
        unlock(files, force=True)
    assert read_state(files).runs == ()


def test_up_to_date_is_the_end_of_the_last_embedding_that_was_done(files: LocalStorage) -> None:
    for command in ("embed", "compact"):
        with locked(files, command, {}):
            pass
    state = read_state(files)
    moments = ("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00")
    runs = [replace(run, ended_at=moment) for run, moment in zip(state.runs, moments, strict=True)]
    assert status_of(replace(state, runs=tuple(runs))).up_to_date_at == moments[0]


def test_a_table_of_an_earlier_release_is_up_to_date_since_its_last_commit() -> None:
    state = read_state(LocalStorage(str(COMPLETE), COMPLETE))
    assert state.runs == ()
    done = max((COMPLETE / "_e5spark" / "done").iterdir())
    moment = datetime.fromisoformat(str(status_of(state).up_to_date_at))
    assert abs(moment.timestamp() - done.stat().st_mtime) <= 1


def test_only_the_latest_runs_are_kept_and_read(
    files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_RUN_RECORDS", 4)
    for _ in range(6):
        with locked(files, "embed", {}):
            pass
    assert files.list(RUNS) == [f"{number:05d}.json" for number in (3, 4, 5, 6)]
    assert [run.epoch for run in read_state(files, runs=2).runs] == [5, 6]


def test_the_text_has_every_part_and_the_document_is_json(interrupted: LocalStorage) -> None:
    state = read_state(interrupted)
    status = status_of(
        state,
        rows=4321,
        statuses={"embedding": {"ok": 4320, "null_text": 1, "empty_text": 0, "error": 0}},
        size=Size(files=3, bytes=1_250_000),
    )
    printed = text(status)
    for part in (
        "output       /data/vectors (parquet)\n",
        "vectors      embedding of /tmp/e5spark-golden/model; one row for each 'id'\n",
        "             16 components of unit length, stored as float32\n",
        "             prompts: query 'query: ', passage 'passage: '\n",
        f"             fingerprint {state.manifest and state.manifest.fingerprint}\n",
        "             created with e5spark 0.1.0, Spark 4.1.4\n",
        "rows         4,321\n             embedding: 4,320 ok, 1 null_text\n",
        "files        3, 1.2 MB\n",
        "runs         1: 1 commits; it left no record, as a run that was killed\n",
        "pending      1 records of 4 embedded rows, which are not visible yet",
        "lock         Run 1 holds the lock: process 1 on golden, since 2026-11-24T23:07:05+00:00",
    ):
        assert part in printed, printed
    document = json.loads(json.dumps(status.as_dict()))
    assert document["rows_by_status"] == {"embedding": status.statuses["embedding"]}
    assert document["pending"] == {"records": 1, "rows": 4, "lost": 0, "staged": 0}
    assert (document["lock"]["state"], document["lock"]["alive"]) == ("held", None)
    assert document["vectors"]["fingerprint_in_words"][0].startswith("16 components")


@pytest.mark.parametrize(
    ("size", "printed"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (5 * 10**15, "5000.0 TB")],
)
def test_a_size_has_the_unit_that_fits(size: int, printed: str) -> None:
    status = status_of(read_state(LocalStorage(str(COMPLETE), COMPLETE)))
    assert f"1, {printed}\n" in text(replace(status, size=Size(files=1, bytes=size)))


def test_the_words_of_a_fingerprint_name_all_of_it() -> None:
    recipe = Recipe(
        dim=384,
        pooling="mean",
        prompts={"query": "query: "},
        max_tokens=512,
        long_text="mean",
        overlap=32,
        already_prompted="keep",
    )
    fingerprint = Fingerprint(
        weights="a" * 64,
        tokenizer="b" * 64,
        recipe=recipe,
        precision="int8",
        output_type="int8",
        calibration="c" * 64,
    )
    assert in_words(fingerprint.as_dict()) == [
        "384 components of unit length, stored as int8",
        "computed in int8, mean pooling",
        "prompts: query 'query: '",
        "a text that already begins with a prompt gets no other",
        "at most 512 tokens; a longer text gets the mean of its windows, which share 32 tokens",
        "weights aaaaaaaaaaaa, tokenizer bbbbbbbbbbbb, calibration cccccccccccc",
    ]


def test_the_words_of_a_manifest_with_little_in_it_are_no_error() -> None:
    assert in_words({"recipe": {}})[2] == "prompts: none"


def test_columns_of_statuses_are_those_beside_our_vectors() -> None:
    vector = {"type": "string", "nullable": True, "metadata": {"e5spark.fingerprint": "f"}}
    other = {"type": "string", "nullable": True, "metadata": {}}
    names = {
        "status": other,
        "title_embedding": vector,
        "title_status": other,
        "his_embedding": other,
        "his_status": other,
    }
    fields = [{"name": name, **field} for name, field in names.items()]
    schema = StructType.fromJson({"type": "struct", "fields": fields})
    assert status_columns(schema) == {"title_embedding": "title_status"}


def test_rows_by_status_are_exact_and_unlock_says_what_it_took(
    spark: SparkSession,
    base: Job,
    job_file: Callable[..., str],
    run_job: Callable[..., Outcome],
    poisoned_model: str,
    poison: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = {1: "a text", 2: None, 3: " ", 4: f"a {poison}", 5: "another", 6: "one more"}
    pq.write_table(table_of(rows), tmp_path / "docs.parquet")
    base["model"]["name"] = poisoned_model

    def command(name: str, *arguments: str) -> tuple[int, str, dict[str, Any]]:
        capsys.readouterr()
        code = main([name, job_file(**base), *arguments])
        *lines, last = capsys.readouterr().out.splitlines()
        return code, "\n".join(lines), json.loads(last)

    code, printed, document = command("status")
    assert (code, document["status"], document["exists"]) == (0, "done", False)
    assert not (tmp_path / "out").exists()

    assert run_job("run.max_error_rate=1.0", **base).code == 0
    before = contents(tmp_path / "out")
    base["model"]["name"] = "/nowhere"  # no model is needed
    code, printed, document = command("status")
    assert (code, document["problems"]) == (0, [])
    assert document["rows"] == 6
    assert document["rows_by_status"] == {
        "embedding": {"ok": 3, "null_text": 1, "empty_text": 1, "error": 1, "not_embedded": 0}
    }
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.parquet")]
    assert (document["files"], document["bytes"]) == (len(sizes), sum(sizes))
    assert (document["lock"]["state"], document["pending"]["records"]) == ("free", 0)
    assert [run["counts"]["embedded"] for run in document["runs"]] == [6]
    assert document["up_to_date_at"] == document["runs"][0]["ended_at"]
    assert document["vectors"]["model"] == poisoned_model
    assert "embedding: 3 ok, 1 null_text, 1 empty_text, 1 error\n" in printed
    assert contents(tmp_path / "out") == before

    part = next((tmp_path / "out").glob("*.parquet"))
    shutil.copy(part, tmp_path / "out" / "stray.parquet")
    code, printed, document = command("status")
    assert (code, document["error"], document["status"]) == (5, "ConflictError", "failed")
    assert document["files"] == len(sizes) + 1
    assert "has files that no commit has put there: stray.parquet" in document["message"]
    part.write_bytes(b"not Parquet")
    code, printed, document = command("status")
    assert (code, document["rows"], len(document["problems"])) == (5, None, 2)
    assert document["problems"][0].startswith("The output cannot be read: its file ")
    shutil.move(tmp_path / "out" / "stray.parquet", part)

    with acquire(LocalStorage(str(tmp_path / "out"), tmp_path / "out")):
        code, printed, document = command("unlock")
        assert (code, document["error"]) == (5, "ConflictError")
        assert printed.startswith(f"Run 2 holds the lock: process {os.getpid()} on ")
        code, printed, document = command("unlock", "--force")
    assert (code, document["unlocked"], document["lock"]["epoch"]) == (0, True, 2)
    code, printed, document = command("unlock")
    assert (code, document["unlocked"]) == (0, False)
