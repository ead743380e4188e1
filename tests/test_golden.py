"""Files that earlier releases wrote: every later one reads them, and updates what they hold.

tests/golden/write.py writes them; files that are committed never change.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e5spark.cli import main
from e5spark.encoder import Encoder
from e5spark.errors import ConflictError
from e5spark.model import prepared
from e5spark.model.checkpoint import Files, earlier_hashes
from e5spark.model.output_type import load_calibration
from e5spark.model.resolve import make_plan
from e5spark.model.spec import model_spec
from e5spark.tables.ledger.manifest import read_manifest
from e5spark.tables.storage.open import LocalStorage
from tests.cluster import REPOSITORY
from tests.delta_driver import Driver, delta_rs
from tests.golden.write import GOLDEN, PROMPTS, WORKPLACE, job, write_documents
from tests.golden.write import job_file as write_job
from tests.oracle import FP32_TOLERANCE, assert_close, reference

Table = dict[int, dict[str, Any]]

RELEASES = sorted(path.name for path in GOLDEN.iterdir() if (path / "expected.json").is_file())
ENCODER = {"device": "cpu", "threads": 1}


@pytest.fixture(params=RELEASES)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what one release wrote: its own directory stays as it is."""
    return Path(shutil.copytree(GOLDEN / request.param, tmp_path / "golden"))


@pytest.fixture
def expected(golden: Path) -> dict[str, Any]:
    """What the release itself reported."""
    return json.loads((golden / "expected.json").read_text("utf-8"))


def test_golden_files_of_a_release_exist_and_are_small() -> None:
    assert RELEASES
    for release in RELEASES:
        files = [path for path in (GOLDEN / release).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 200_000


def test_golden_files_name_no_machine() -> None:
    claims = list(GOLDEN.rglob("_e5spark/lock/*.json"))
    assert claims
    assert {json.loads(claim.read_text("utf-8"))["host"] for claim in claims} == {"golden"}
    for path in GOLDEN.rglob("*"):
        if path.is_file() and path.suffix != ".py":
            content = path.read_bytes()
            assert set(re.findall(rb"/tmp/[\w-]+", content)) <= {str(WORKPLACE).encode()}, path
            assert str(REPOSITORY).encode() not in content, path


@pytest.mark.parametrize("table", ["parquet", "delta", "interrupted"])
def test_manifest_of_an_earlier_release_is_read(
    golden: Path, expected: dict[str, Any], table: str
) -> None:
    manifest = read_manifest(LocalStorage(str(golden / table), golden / table))
    assert manifest is not None
    assert manifest.fingerprint == expected["fingerprint"]
    assert (manifest.dim, manifest.id) == (16, "id")


def test_calibration_of_an_earlier_release_is_read(golden: Path, expected: dict[str, Any]) -> None:
    calibration = load_calibration(str(golden / "calibration.json"))
    assert calibration.ranges.shape == (2, 16)
    assert calibration.rows == len(documents(golden))
    assert calibration.fingerprint == expected["fingerprint"]


def test_calibration_of_an_earlier_release_belongs_to_the_same_vectors(golden: Path) -> None:
    """It names the hash of the weights' files, by which 0.1.0 identified them."""
    options = {"output_type": "int8", "calibration": str(golden / "calibration.json")}
    spec = model_spec(str(golden / "model"), options)
    plan = make_plan(spec, spec)
    assert plan.calibration is not None
    (golden / "model" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConflictError, match="was made from other vectors"):
        make_plan(spec, spec)


def test_prepared_model_of_an_earlier_release_has_the_identity_of_its_checkpoint(
    golden: Path,
) -> None:
    manifest = prepared.read(golden / "prepared")
    assert manifest is not None
    model = Files(model=golden / "model", tokenizer=golden / "model")
    assert manifest.weights == manifest.earlier_weights == earlier_hashes(model)


def test_prepared_model_of_an_earlier_release_gives_the_checkpoints_vectors(golden: Path) -> None:
    manifest = prepared.read(golden / "prepared")
    assert manifest is not None
    prepared.check(golden / "prepared", manifest)
    texts = list(documents(golden).values())
    vectors = encode(golden / "prepared", texts, engine="openvino")
    assert_close(vectors, encode(golden / "model", texts, engine="torch"), FP32_TOLERANCE)


def test_parquet_table_of_an_earlier_release_is_updated(
    spark: Any, golden: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_parquet(golden / "parquet")
    assert len(before) == expected["rows"]
    report = update(golden, "parquet", run_here(capsys))
    assert counts(report) == (expected["rows"] - 1, 2)
    check_updated(before, read_parquet(golden / "parquet"), golden)


def test_run_that_an_earlier_release_left_unfinished_is_finished(
    spark: Any, golden: Path, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of its two chunks is recorded and not visible."""
    table = golden / "interrupted"
    assert len(read_parquet(table)) == 4
    report = embed(golden, "interrupted", "parquet", run_here(capsys))
    assert counts(report) == (expected["rows"], 0)
    after = read_parquet(table)
    assert sorted(after) == list(range(expected["rows"]))
    check_vectors(after, golden)


@pytest.mark.delta
def test_delta_table_of_an_earlier_release_is_updated(
    driver: Driver, golden: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    def run(file: Path) -> dict[str, Any]:
        outcome = driver.job(str(file))
        assert outcome.code == 0, outcome.log
        return dict(outcome.document)

    before = rows_by_id(delta_rs(golden / "delta", tmp_path))
    assert len(before) == expected["rows"]
    report = update(golden, "delta", run)
    assert counts(report) == (expected["rows"] - 1, 2)
    check_updated(before, rows_by_id(delta_rs(golden / "delta", tmp_path)), golden)


def test_golden_files_are_committed_with_the_script_that_writes_them() -> None:
    """A file that .gitignore hides would be missing in every clone."""
    ignored = subprocess.run(
        ["git", "status", "--porcelain", "--ignored", "tests/golden"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in ignored.stdout.splitlines() if "__pycache__" not in line]
    assert [line for line in lines if line.startswith("!!")] == []


def update(golden: Path, table: str, run: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Changes the text of one document, adds another one, and runs the job that wrote the table."""
    texts = [*documents(golden).values(), None, ""]
    texts[1] = "The library opens at ten."
    write_documents(golden / "docs.jsonl", (*texts, "A new page."))
    return embed(golden, table, table, run)


def embed(
    golden: Path, table: str, kind: str, run: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    return run(write_job(golden / "job.toml", job(golden, golden / table, kind)))


def run_here(capsys: pytest.CaptureFixture[str]) -> Callable[[Path], dict[str, Any]]:
    """Runs a job on the session of the tests."""

    def run(file: Path) -> dict[str, Any]:
        capsys.readouterr()
        code = main(["embed", str(file)])
        report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert code == 0, report
        return report

    return run


def counts(report: dict[str, Any]) -> tuple[int, int]:
    """Rows that stay as they are, and rows that are written."""
    return report["skipped"], report["rows"]


def documents(golden: Path) -> dict[int, str]:
    """The documents that have a text."""
    lines = (golden / "docs.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["id"]: row["body"] for row in rows if row["body"]}


def read_parquet(path: Path) -> Table:
    return rows_by_id(pq.read_table(path))


def rows_by_id(table: pa.Table) -> Table:
    rows = table.to_pylist()
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def check_updated(before: Table, after: Table, golden: Path) -> None:
    """Only the changed row and the new one differ, and every vector belongs to its text."""
    assert sorted(after) == [*sorted(before), len(before)]
    assert {number for number in before if before[number] != after[number]} == {1}
    check_vectors(after, golden)


def check_vectors(table: Table, golden: Path) -> None:
    wanted = documents(golden)
    assert {number: row["body"] for number, row in table.items() if row["body"]} == wanted
    vectors = np.array([table[number]["embedding"] for number in wanted], np.float32)
    texts = tuple(wanted.values())
    expected = reference(str(golden / "model"), texts, prompt=PROMPTS["passage"], max_tokens=64)
    assert_close(vectors, expected, FP32_TOLERANCE)
    assert {row["status"] for row in table.values() if not row["body"]} == {
        "null_text",
        "empty_text",
    }


def encode(directory: Path, texts: list[str], *, engine: str) -> np.ndarray:
    encoder = Encoder.load(str(directory), engine=engine, precision="fp32", **ENCODER)
    return encoder.encode(texts, role="passage")
