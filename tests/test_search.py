"""e5spark search and e5spark duplicates: on the table that a job wrote."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from e5spark.cli import main
from tests.oracle import reference

BODIES = {
    "a": "how much protein should a female eat",
    "b": "the summit of a mountain",
    "c": "the summit of a mountain",
    "d": "a recipe for bread\nwith two lines",
    "e": None,
}


@dataclass(frozen=True)
class Completed:
    """What a command printed."""

    code: int
    table: str
    document: dict[str, Any]


Command = Callable[..., Completed]


@pytest.fixture(scope="module")
def job(spark: SparkSession, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a job that has run."""
    directory = tmp_path_factory.mktemp("job")
    pq.write_table(
        pa.table(
            {"id": list(BODIES), "body": list(BODIES.values()), "lang": ["en"] * 3 + ["de"] * 2}
        ),
        directory / "docs.parquet",
    )
    path = directory / "job.toml"
    path.write_text(
        f'[input]\npath = "{directory}/docs.parquet"\nid = "id"\n'
        '[embed]\ntext = "body"\nrole = "passage"\n'
        f'[model]\nname = "{model}"\n[output]\npath = "{directory}/out"\n',
        "utf-8",
    )
    assert main(["embed", str(path)]) == 0
    return path


@pytest.fixture
def run(job: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command on the job."""

    def call(command: str, *arguments: str) -> Completed:
        capsys.readouterr()
        code = main([command, str(job), *arguments])
        *table, document = capsys.readouterr().out.splitlines()
        return Completed(code, "\n".join(table), json.loads(document))

    return call


def test_the_answers_are_the_rows_with_the_highest_cosines(run: Command, model: str) -> None:
    completed = run("search", "mountain summit", "bread", "--k=3")
    assert completed.code == 0
    texts = [text for text in BODIES.values() if text]
    passages = reference(model, tuple(texts), prompt="passage: ")
    queries = reference(model, ("mountain summit", "bread"), prompt="query: ")
    ids = [id for id, text in BODIES.items() if text]
    for answer, scores in zip(completed.document["queries"], queries @ passages.T, strict=True):
        order = sorted(range(4), key=lambda row: (-round(float(scores[row]), 5), ids[row]))[:3]
        assert [hit["id"] for hit in answer["hits"]] == [ids[row] for row in order]
        assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
        assert [hit["text"] for hit in answer["hits"]] == [texts[row] for row in order]
        expected = [float(scores[row]) for row in order]
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx(expected, abs=1e-5)
    assert "mountain summit\n    1  " in completed.table
    assert "a recipe for bread with two lines" in completed.table
    assert "Only the order of the scores means anything" in completed.table


def test_queries_come_from_a_file_and_a_filter_restricts_the_rows(
    run: Command, tmp_path: Path
) -> None:
    # As an editor on Windows writes it; a vertical tab is no end of a line.
    (tmp_path / "queries.txt").write_text("\ufeffone\x0bmore\r\n\r\ntwo\r\n", "utf-8", newline="")
    completed = run("search", f"--queries={tmp_path}/queries.txt", "--filter=lang = 'de'")
    assert [answer["query"] for answer in completed.document["queries"]] == [
        "one\x0bmore",
        "two",
    ]
    assert [[hit["id"] for hit in answer["hits"]] for answer in completed.document["queries"]] == [
        ["d"],
        ["d"],
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "There is no query"),
        ([" "], 2, "A query is empty"),
        (["--queries=/nowhere"], 2, "cannot be read"),
        (["text", "--k=0"], 2, "k is 0"),
        (["text", "--set=input.id="], 2, "no input.id"),
        (["text", "--vector=title_embedding"], 2, "it writes 'embedding'"),
        (["text", "--set=output.path=/nowhere"], 3, "cannot be read"),
        (["text", "--set=model.max_tokens=7"], 5, "must not be compared"),
        (["text", "--filter=no_column = 1"], 3, "no_column"),
    ],
)
def test_wrong_input_has_its_exit_code_and_message(
    run: Command, arguments: list[str], code: int, message: str
) -> None:
    completed = run("search", *arguments)
    assert (completed.code, completed.document["status"]) == (code, "failed")
    assert message in completed.document["message"]


def test_duplicates_are_written_with_the_row_to_keep(run: Command, tmp_path: Path) -> None:
    completed = run("duplicates", f"--to={tmp_path}/groups")
    document = completed.document
    assert (document["groups"], document["rows"], document["redundant"]) == (1, 2, 1)
    assert 0.9 < document["threshold"] < 1
    rows = pq.read_table(tmp_path / "groups").sort_by("id").to_pylist()
    assert rows == [
        {"id": "b", "group_id": "b", "keep": True},
        {"id": "c", "group_id": "b", "keep": False},
    ]
    assert run("duplicates", f"--to={tmp_path}/groups").code == 5


def test_a_threshold_can_be_set(run: Command) -> None:
    assert run("duplicates", "--threshold=-1").document["rows"] == 4
    assert run("duplicates", "--threshold=2").code == 2
