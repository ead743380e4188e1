"""State directories of real tables, which the real job on Spark updates after a mutation.

A run ends with each row once and with its vector, or with an exit code other than 1, which an
unexpected error has, and the rows from before. Some of the tables were left by a run that failed
at a failpoint. Staged files of rows are spared: a damaged Parquet file is its readers' to find.
A case takes about a second, most of it Spark's.
"""

import contextlib
import io
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from e5spark.cli import main
from e5spark.encoder import Encoder
from e5spark.errors import TransientError
from e5spark.tables.ledger import ledger as ledger_module
from e5spark.tables.ledger import lock as lock_module
from tests import checkpoints
from tests.fuzz.mutate import mutate_bytes, mutate_directory, mutate_json
from tests.fuzz.states import Clock

BEFORE = {number: f"text {number}" for number in range(6)}
AFTER = {**BEFORE, 0: "another text", 9: "a new text"}
Rows = Counter[tuple[int, str]]


@dataclass(frozen=True)
class Corpus:
    """What all cases share.

    Attributes:
        tables: Outputs, finished and not.
        docs: The file of the input.
        model: The checkpoint's directory.
        vectors: Text to vector.
    """

    tables: list[Path]
    docs: Path
    model: Path
    vectors: dict[str, Any]


def corpus(directory: Path) -> Corpus:
    """A table, and copies of it that runs have left at each failpoint."""
    os.environ["E5SPARK_CACHE"] = str(directory / "cache")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    builder.config("spark.sql.shuffle.partitions", "1").config(
        "spark.log.level", "OFF"
    ).getOrCreate()
    model = checkpoints.bert_wordpiece(directory / "model", layers=1, hidden=16, heads=2, ffn=24)
    checkpoints.sentence_transformers_layout(
        model, prompts={"query": "query: ", "passage": "passage: "}
    )
    texts = sorted({*BEFORE.values(), *AFTER.values()})
    vectors = Encoder.load(str(model), engine="torch", device="cpu").encode(texts, role="passage")
    made = Corpus([], directory / "docs.parquet", model, dict(zip(texts, vectors, strict=True)))
    _write(made.docs, BEFORE)
    assert _embed(made, directory / "finished", directory)["exit_code"] == 0
    made.tables.append(directory / "finished")
    _write(made.docs, AFTER)
    for name in ("written", "recorded", "rewritten", "replacing"):
        output = directory / name
        shutil.copytree(made.tables[0], output)

        def fail(at: str, name: str = name) -> None:
            if at == name:
                raise TransientError("The run fails here.")

        with patch.object(ledger_module, "failpoint", fail):
            assert _embed(made, output, directory)["exit_code"] == 75
        made.tables.append(output)
    return made


def case(corpus: Corpus, directory: Path, rng: Random, notes: list[str]) -> str:
    """Updates a table whose state is mutated."""
    table, output = rng.choice(corpus.tables), directory / "out"
    shutil.copytree(table, output)
    notes.append(table.name)
    for _ in range(rng.choice((1, 1, 2))):
        notes.append(mutate_directory(output / "_e5spark", rng, _mutate_file, spare=".parquet"))
    before = _rows(corpus, output)
    clock = Clock()
    fake = SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep)
    with patch.object(lock_module, "time", fake):
        document = _embed(corpus, output, directory)
    rows = _rows(corpus, output)
    code = document["exit_code"]
    assert code != 1, document
    if code == 0:
        assert rows == Counter(AFTER.items()), f"other rows: {rows}"
        return "right rows"
    assert set(rows) <= {*BEFORE.items(), *AFTER.items()}, f"wrong rows: {rows}"
    assert all(rows[row] <= max(before[row], 1) for row in rows), f"rows twice: {rows}"
    kept = set(before) & set(BEFORE.items()) & set(AFTER.items())
    assert kept <= set(rows), f"rows lost: {rows}"
    return f"refused ({document['error']})"


def cleanup(directory: Path) -> None:
    shutil.rmtree(directory)


def _mutate_file(name: str, data: bytes, rng: Random) -> bytes:
    return mutate_json(data, rng) if name.endswith(".json") else mutate_bytes(data, rng)


def _write(path: Path, rows: dict[int, str]) -> None:
    table = pa.table({"id": pa.array(rows, pa.int64()), "body": list(rows.values())})
    pq.write_table(table, path)


def _embed(corpus: Corpus, output: Path, directory: Path) -> dict[str, Any]:
    """The document of the last line, with the exit code."""
    job = directory / "job.toml"
    job.write_text(
        f"""
        [input]
        path = "{corpus.docs}"
        id = "id"
        [embed]
        text = "body"
        role = "passage"
        [model]
        name = "{corpus.model}"
        engine = "torch"
        [output]
        path = "{output}"
        [run]
        partitions = 1
        [quality]
        canaries = false
        """
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["embed", str(job)])
    return {**json.loads(out.getvalue().splitlines()[-1]), "exit_code": code}


def _rows(corpus: Corpus, output: Path) -> Rows:
    """How often a reader of the table sees each row; each with the vector of its text."""
    rows: Rows = Counter()
    for path in sorted(output.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            rows[row["id"], row["body"]] += 1
            difference = np.abs(np.array(row["embedding"]) - corpus.vectors[row["body"]]).max()
            assert difference < 1e-5, f"a vector is {difference} off: {row}"
    return rows
