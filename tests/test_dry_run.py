"""A dry run says what the next run does, refuses what it refuses, and writes nothing."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from e5spark.cli import main
from e5spark.cli.dry_run import text
from e5spark.errors import E5SparkError
from e5spark.job import job_file as files
from e5spark.job.dry_run import _NoLock, dry_run
from e5spark.job.estimate import Rows
from e5spark.tables.ledger.lock import acquire
from e5spark.tables.storage.local import LocalStorage
from e5spark.tables.storage.read_only import ReadOnlyStorage
from tests.cluster import REPOSITORY
from tests.conftest import Outcome
from tests.delta_driver import Driver
from tests.frames import from_arrow
from tests.golden.write import GOLDEN
from tests.golden.write import job as golden_job
from tests.golden.write import job_file as golden_job_file
from tests.tables import Job, table_of

SECRET = "Nobody may read this sentence in a log."
TEXTS: dict[int, str | None] = {n: f"Text number {n}. " + "more " * (n % 7) for n in range(60)}
# What a run counts, by its name in a dry run.
SAME = {
    "rows_in": "rows_in",
    "to_embed": "embedded",
    "refreshed": "refreshed",
    "unchanged": "skipped",
    "deleted": "deleted",
    "recovered": "recovered",
    "duplicates": "duplicates",
}


@pytest.fixture
def dry(
    spark: SparkSession, job_file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs `e5spark embed --dry-run` in this process, on this session."""

    def run(*overrides: str, **sections: Mapping[str, object]) -> Outcome:
        capsys.readouterr()
        sets = [f"--set={override}" for override in overrides]
        code = main(["embed", job_file(**sections), "--dry-run", *sets])
        return Outcome(code=code, stdout=capsys.readouterr().out)

    return run


def tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and directory with its time and its content."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [directory, *directory.rglob("*")]
        if path.name != "job.toml"
    }


def write(rows: Mapping[int, str | None], path: Path, **columns: Any) -> None:
    table = table_of(rows)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)


def test_a_dry_run_counts_what_the_run_then_does_and_writes_nothing(
    dry: Callable[..., Outcome],
    run_job: Callable[..., Outcome],
    base: Job,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base["run"] = {"delete_missing": True, "price_per_hour": 3.6}
    base["model"] |= {"max_tokens": 12}
    write({**TEXTS, 60: None, 61: " ", 62: SECRET}, tmp_path / "docs.parquet", lang=["en"] * 63)
    for _ in range(2):  # a new table; then one with new, changed, refreshed and deleted rows
        tmp_path.joinpath("job.toml").touch()
        before = tree(tmp_path)
        predicted = dry(**base)
        assert tree(tmp_path) == before
        real = run_job(**base).document
        document = predicted.document
        assert predicted.code == 0
        assert {name: document[name] for name in SAME} == {
            name: real[other] for name, other in SAME.items()
        }
        assert document["tokens"] == dict.fromkeys(("value", "low", "high"), real["tokens"])
        assert document["lost_tokens"]["value"] == real["lost_tokens"]
        encoded = real["ok"]
        assert document["truncated_share"]["value"] == pytest.approx(real["truncated"] / encoded)
        assert document["fingerprint"] == real["fingerprint"]
        assert document["cost"] == round(document["executor_hours"] * 3.6, 2)
        assert SECRET not in predicted.stdout + caplog.text
        changed = {**TEXTS, 1: "Another text.", 70: "New."}
        del changed[0]
        write(changed, tmp_path / "docs.parquet", lang=["en"] * 59 + ["de"])
        changed_rows = {2: TEXTS[2]}
        languages = ["de" if number in changed_rows else "en" for number in changed]
        write(changed, tmp_path / "docs.parquet", lang=languages)
    assert {name: document[name] for name in ("new", "changed", "refreshed", "deleted")} == {
        "new": 1,
        "changed": 1,
        "refreshed": 1,
        "deleted": 4,
    }


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("model.max_tokens=20", 5),
        ("input.id=", 5),
        ("embed.text=nothing", 3),
        ("input.path=nowhere", 3),
        ("run.schema=refuse", 5),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    embedded: Path,
    dry: Callable[..., Outcome],
    run_job: Callable[..., Outcome],
    base: Job,
    change: str,
    code: int,
) -> None:
    base["input"]["path"] = str(embedded.parent / "docs.parquet")
    base["input"]["select"] = ["*", "1 AS more"]
    base["output"]["path"] = str(embedded)
    refused, real = dry(change, **base), run_job(change, **base)
    assert refused.code == real.code == code
    assert refused.document == real.document


@pytest.fixture(scope="module")
def embedded(spark: SparkSession, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 60 rows, next to its input."""
    from e5spark.job.run import run

    directory = tmp_path_factory.mktemp("embedded")
    write(TEXTS, directory / "docs.parquet")
    job = directory / "table.toml"
    job.write_text(
        f"""[input]\npath = "{directory}/docs.parquet"\nid = "id"
[embed]\ntext = "body"\nrole = "passage"\n[model]\nname = "{model}"
[output]\npath = "{directory}/out"\n[quality]\ncanaries = false\n""",
        "utf-8",
    )
    run(spark, files.load(job))
    return directory / "out"


def test_nothing_to_do_costs_a_comparison(
    embedded: Path, dry: Callable[..., Outcome], base: Job
) -> None:
    base["input"]["path"] = str(embedded.parent / "docs.parquet")
    outcome = dry(f"output.path={embedded}", **base)
    document = outcome.document
    assert (document["to_embed"], document["unchanged"], document["sampled_rows"]) == (0, 60, 0)
    assert document["engine"] is None
    assert document["seconds"] == document["seconds_by_step"]["compare"]
    assert "to embed     nothing\n" in outcome.stdout
    page = (REPOSITORY / "docs" / "dry-run.md").read_text("utf-8")
    assert not {key for key in document if f"`{key}`" not in page} - {"status"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["input.id="], {"to_embed": 60, "texts": 60}),
        (["input.id=", "input.hash_id=true", "input.columns=['body']"], {"to_embed": 60}),
        (["embed.text=['body','title']"], {"to_embed": 60, "texts": 120}),
        (["model.long_text=split", "model.max_tokens=8", "model.overlap=1"], {"to_embed": 60}),
        (["model.text_deadline=60"], {"to_embed": 60}),
        (["input.where=id < 0"], {"rows_in": 0, "to_embed": 0}),
    ],
)
def test_every_kind_of_job_has_an_answer(
    dry: Callable[..., Outcome],
    run_job: Callable[..., Outcome],
    base: Job,
    tmp_path: Path,
    overrides: list[str],
    expected: dict[str, int],
) -> None:
    titles = [f"Title {number}" for number in TEXTS]
    write(TEXTS, tmp_path / "docs.parquet", title=titles)
    predicted = dry(*overrides, **base)
    document = predicted.document
    assert {name: document[name] for name in expected} == expected, document
    if expected["to_embed"]:
        assert document["seconds_by_step"]["embed"] > 0
        assert document["tokens"]["value"] == run_job(*overrides, **base).document["tokens"]


def test_a_sample_is_one_of_the_rows_to_embed(
    spark: SparkSession, dry: Callable[..., Outcome], base: Job, embedded: Path, tmp_path: Path
) -> None:
    """Of 460 rows 400 are new, and of another length; one window of 20 of them is looked at."""
    rows = {**TEXTS, **{number: "new " * 30 for number in range(1000, 1400)}}
    write(rows, tmp_path / "docs.parquet")
    document = dry(f"output.path={embedded}", "model.sort_window=20", **base).document
    assert (document["new"], document["unchanged"]) == (400, 60)
    assert 10 <= document["sampled_rows"] <= 20
    assert document["tokens_per_text"]["median"] == document["tokens_per_text"]["max"]
    assert document["tokens"]["low"] == document["tokens"]["high"]  # all are of one length


def test_rows_of_a_killed_run_are_not_to_be_embedded_again(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of a run that was killed when 4 of 8 rows were visible and 4 recorded."""
    golden = Path(shutil.copytree(GOLDEN / "0.1.0", tmp_path / "golden"))
    job = golden_job_file(
        golden / "job.toml", golden_job(golden, golden / "interrupted", "parquet")
    )
    documents = []
    for arguments in (["--dry-run"], []):
        before = tree(golden)
        capsys.readouterr()
        assert main(["embed", str(job), *arguments]) == 0
        documents.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        assert (tree(golden) == before) == bool(arguments)
    predicted, real = documents
    assert predicted["recovered"] == real["recovered"] > 0
    assert predicted["to_embed"] == real["embedded"]
    assert predicted["unchanged"] == real["skipped"]


def test_a_run_in_progress_is_named_and_not_disturbed(
    embedded: Path, dry: Callable[..., Outcome], base: Job
) -> None:
    base["input"]["path"] = str(embedded.parent / "docs.parquet")
    with acquire(LocalStorage(str(embedded), embedded)) as lock:
        outcome = dry(f"output.path={embedded}", **base)
        lock.check()
    assert outcome.code == 0
    (note,) = outcome.document["notes"]
    assert "holds the lock" in note
    assert "refused" in note


def test_a_stream_is_refused_with_what_to_do(
    dry: Callable[..., Outcome], base: Job, tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    write(TEXTS, tmp_path / "docs" / "a.parquet")
    base["input"] |= {"path": str(tmp_path / "docs"), "trigger": "available_now"}
    base["input"]["checkpoint_location"] = str(tmp_path / "checkpoint")
    outcome = dry(**base)
    assert outcome.code == 2
    assert "--set input.trigger=batch" in outcome.document["message"]
    assert not (tmp_path / "checkpoint").exists()
    assert dry("input.trigger=batch", **base).document["to_embed"] == 60


@pytest.mark.delta
def test_a_dry_run_leaves_a_delta_table_as_it_is(
    driver: Driver, job_file: Callable[..., str], model: str, tmp_path: Path
) -> None:
    """Columns of the input table: before they are there, and when they are."""
    driver(_create_delta, str(tmp_path / "docs"))
    place = {"path": str(tmp_path / "docs"), "format": "delta"}
    job = job_file(
        input={**place, "id": "id"},
        embed={"text": "body", "role": "passage"},
        model={"name": model},
        output={**place, "write": "columns"},
    )
    for to_embed in (60, 0):
        before = tree(tmp_path / "docs")
        counts = driver(_dry_counts, job)
        assert tree(tmp_path / "docs") == before
        assert (counts.rows_in, counts.to_embed) == (60, to_embed)
        assert driver.job(job).code == 0


def _create_delta(path: str) -> None:
    from tests.delta_driver import session

    from_arrow(session(), table_of(TEXTS)).write.format("delta").save(path)


def _dry_counts(job: str) -> Rows:
    from tests.delta_driver import session

    return dry_run(session(), files.load(Path(job))).estimate.rows


def test_whatever_would_change_a_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    storage = ReadOnlyStorage(LocalStorage(str(tmp_path), tmp_path))
    assert storage.read("file") == b"content"
    assert storage.list("") == ["file"]
    for change in (
        lambda: storage.put("file", b""),
        lambda: storage.create("other", b""),
        lambda: storage.rename("file", "other"),
        lambda: storage.delete("file"),
        lambda: _NoLock().check(),
    ):
        with pytest.raises(E5SparkError, match="nothing was changed"):
            change()
    assert ReadOnlyStorage(None).list("commits") == []
    assert ReadOnlyStorage(None).read("manifest") is None


def test_a_page_to_read_has_each_number_with_its_unit(
    spark: SparkSession, base: Job, job_file: Callable[..., str], tmp_path: Path
) -> None:
    write(TEXTS, tmp_path / "docs.parquet")
    page = text(dry_run(spark, files.load(Path(job_file(**base)))))
    for words in ("60 to embed", "every row was counted", "rows/s in a task", "executor hours"):
        assert words in page
    assert "1 executor with 2 cores, 2 tasks at a time" in page
