"""e5spark calibrate: ranges over a sample of the table, and what uses them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame
from sentence_transformers.util import quantize_embeddings

from e5spark.cli import main
from e5spark.model.output_type import load_calibration
from e5spark.spark import embed
from tests.oracle import FP32_TOLERANCE, assert_close, reference, vectors_of
from tests.trace import Trace

ROWS = 300
Sections = dict[str, dict[str, object]]


@pytest.fixture(scope="module")
def corpus(
    make_table: Callable[..., DataFrame],
    texts: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """ROWS texts, a null, a blank."""
    path = str(tmp_path_factory.mktemp("corpus") / "in")
    make_table([*texts[:ROWS], None, " "], partitions=3).write.parquet(path)
    return path


@pytest.fixture
def sections(corpus: str, model: str, tmp_path: Path) -> Sections:
    return {
        "input": {"path": corpus},
        "embed": {"text": "text", "role": "passage"},
        "model": {"name": model},
        "output": {"path": str(tmp_path / "out")},
        "run": {},
    }


@pytest.fixture
def calibrate(
    spark: object,
    sections: Sections,
    job_file: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, dict[str, Any], Path]]:
    """Runs `e5spark calibrate`, and returns its exit code, its document and the file."""

    def run(*arguments: str, name: str = "ranges.json") -> tuple[int, dict[str, Any], Path]:
        capsys.readouterr()
        code = main(["calibrate", job_file(**sections), "--to", str(tmp_path / name), *arguments])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1]), tmp_path / name

    return run


def test_the_ranges_are_the_smallest_and_largest_values_of_the_vectors(
    calibrate: Callable[..., Any], corpus: str, model: str, texts: tuple[str, ...]
) -> None:
    code, document, path = calibrate()
    assert code == 0
    assert document["status"] == "done"
    assert document["rows"] == ROWS
    ranges = load_calibration(str(path)).ranges
    vectors = reference(model, texts[:ROWS], prompt="passage: ")
    expected = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    assert ranges.dtype == np.float32
    assert_close(ranges, expected, FP32_TOLERANCE)


def test_the_ranges_are_those_of_the_very_vectors_that_embed_gives(
    calibrate: Callable[..., Any], spark: Any, corpus: str, model: str
) -> None:
    _, _, path = calibrate()
    docs = spark.read.parquet(corpus)
    vectors = vectors_of(
        embed(docs, text="text", role="passage", model=model).filter("status = 'ok'")
    )
    ranges = load_calibration(str(path)).ranges
    assert ranges[0].tobytes() == vectors.min(axis=0).tobytes()
    assert ranges[1].tobytes() == vectors.max(axis=0).tobytes()


@pytest.mark.parametrize("partitions", [1, 7, 40])
def test_the_ranges_are_the_same_however_the_table_is_partitioned(
    calibrate: Callable[..., Any], partitions: int
) -> None:
    """So they come from no single batch; and vectors differ by less than 1e-6 between batches."""
    _, _, first = calibrate("--set=run.partitions=2", name="first.json")
    _, _, other = calibrate(f"--set=run.partitions={partitions}", name="other.json")
    assert_close(load_calibration(str(other)).ranges, load_calibration(str(first)).ranges, 1e-6)


def test_the_same_command_writes_the_same_bytes(calibrate: Callable[..., Any]) -> None:
    files = [calibrate(name=f"{number}.json")[2] for number in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_sample_is_repeatable_and_about_as_large_as_requested(
    calibrate: Callable[..., Any], trace: Trace
) -> None:
    _, document, first = calibrate("--sample=60", name="one.json")
    assert 30 <= document["rows"] <= 100
    assert document["rows"] <= trace.rows() <= document["rows"] + 2
    _, _, again = calibrate("--sample=60", name="again.json")
    assert first.read_bytes() == again.read_bytes()


def test_each_sampled_row_runs_through_the_model_once(
    calibrate: Callable[..., Any], trace: Trace
) -> None:
    calibrate()
    assert trace.rows() == ROWS


def test_several_columns_share_their_ranges(
    calibrate: Callable[..., Any], sections: Sections, spark: Any, model: str, tmp_path: Path
) -> None:
    docs = spark.read.parquet(str(sections["input"]["path"]))
    two = docs.selectExpr("id", "text AS a", "reverse(text) AS b").limit(50)
    two.write.parquet(str(tmp_path / "two"))
    sections["input"]["path"] = str(tmp_path / "two")
    sections["embed"]["text"] = ["a", "b"]
    code, document, path = calibrate()
    assert code == 0
    rows = pq.read_table(tmp_path / "two").to_pylist()
    texts = tuple(row[side] for side in "ab" for row in rows if (row[side] or "").strip())
    assert document["rows"] == len(texts)
    vectors = reference(model, texts, prompt="passage: ")
    expected = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    assert_close(load_calibration(str(path)).ranges, expected, FP32_TOLERANCE)


@pytest.mark.parametrize("output_type", ["int8", "uint8"])
def test_a_job_with_its_own_calibration_equals_sentence_transformers(
    calibrate: Callable[..., Any],
    run_job: Callable[..., Any],
    sections: Sections,
    tmp_path: Path,
    output_type: str,
) -> None:
    # The job file of the int8 job itself: calibrate takes the float vectors of it.
    sections["model"]["output_type"] = output_type
    sections["model"]["calibration"] = str(tmp_path / "ranges.json")
    code, _, path = calibrate()
    assert code == 0
    assert run_job(**sections).code == 0
    floats = f'output.path="{tmp_path}/floats"'
    assert run_job("model.output_type=float32", "model.calibration=", floats, **sections).code == 0
    actual, whole = (
        pq.read_table(tmp_path / name).sort_by("id").to_pylist() for name in ("out", "floats")
    )
    vectors = np.array([row["embedding"] for row in whole if row["embedding"]], np.float32)
    expected = quantize_embeddings(vectors, output_type, ranges=load_calibration(str(path)).ranges)
    values = [row["embedding"] for row in actual if row["embedding"] is not None]
    if output_type == "uint8":
        values = [list(value) for value in values]
    assert np.array(values).tolist() == expected.tolist()
    assert [row["id"] for row in actual if row["embedding"] is None] == [ROWS, ROWS + 1]


def test_a_job_without_the_calibration_it_needs_ends_with_2(
    run_job: Callable[..., Any], sections: Sections
) -> None:
    sections["model"]["output_type"] = "int8"
    outcome = run_job(**sections)
    assert outcome.code == 2
    assert "needs calibration" in outcome.document["message"]


def test_a_calibration_of_other_vectors_ends_with_5(
    calibrate: Callable[..., Any],
    run_job: Callable[..., Any],
    sections: Sections,
    tmp_path: Path,
) -> None:
    _, _, path = calibrate()
    sections["model"] |= {"output_type": "int8", "calibration": str(path), "pooling": "cls"}
    outcome = run_job(**sections)
    assert outcome.code == 5
    assert "was made from other vectors" in outcome.document["message"]
    assert not (tmp_path / "out").exists()


def test_a_broken_calibration_ends_with_2(
    run_job: Callable[..., Any], sections: Sections, tmp_path: Path
) -> None:
    path = tmp_path / "ranges.json"
    path.write_text("{}")
    sections["model"] |= {"output_type": "int8", "calibration": str(path)}
    outcome = run_job(**sections)
    assert outcome.code == 2
    assert "cannot be read" in outcome.document["message"]


def test_a_table_without_texts_has_no_ranges(
    calibrate: Callable[..., Any], sections: Sections, spark: Any, tmp_path: Path
) -> None:
    spark.createDataFrame([(1, None), (2, " ")], "id int, text string").write.parquet(
        str(tmp_path / "blank")
    )
    sections["input"]["path"] = str(tmp_path / "blank")
    code, document, path = calibrate()
    assert code == 3
    assert "No text of the sample has a vector" in document["message"]
    assert not path.exists()


@pytest.mark.parametrize("sample", ["0", "-5"])
def test_a_sample_of_no_rows_ends_with_2(calibrate: Callable[..., Any], sample: str) -> None:
    code, document, _ = calibrate(f"--sample={sample}")
    assert code == 2
    assert "sample" in document["message"]


def test_a_directory_that_is_missing_is_made(calibrate: Callable[..., Any]) -> None:
    code, document, path = calibrate("--sample=20", name="a/new/directory/ranges.json")
    assert code == 0
    assert load_calibration(str(path)).rows == document["rows"]


def test_a_file_that_cannot_be_written_ends_with_2(
    calibrate: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, document, path = calibrate("--sample=20", name="file/ranges.json")
    assert code == 2
    assert str(path) in document["message"]


def test_a_calibration_that_exists_is_not_overwritten(
    calibrate: Callable[..., Any], trace: Trace
) -> None:
    calibrate("--sample=20")
    trace.mark()
    code, document, path = calibrate()
    assert code == 5
    assert f"{path} already exists" in document["message"]
    assert trace.rows() == 0
