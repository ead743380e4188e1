"""e5spark evaluate on a session: sets that it embeds itself, and tables that a job wrote."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from e5spark.cli import main
from e5spark.encoder import Encoder
from e5spark.evaluate import metrics

DOCUMENTS = {
    f"d{number}": word for number, word in enumerate(["ant", "bee", "cat", "dog", "eel", "fox"])
}
QUERIES = {"q1": "an ant", "q2": "a fox", "q3": "unjudged"}
QRELS = {"q1": {"d0": 2, "d1": 1}, "q2": {"d5": 1, "d0": 0}}
SIDES = ("sentence1", "sentence2")


@pytest.fixture
def evaluate(spark: SparkSession, tmp_path: Path, capsys) -> Callable[..., dict[str, Any]]:
    """Runs the command on the text of an evaluation file; returns its document."""

    def run(text: str, *arguments: str) -> dict[str, Any]:
        path = tmp_path / "eval.toml"
        path.write_text(text, "utf-8")
        capsys.readouterr()
        code = main(["evaluate", str(path), *arguments])
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert document.get("exit_code", 0) == code
        return document

    return run


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A retrieval set in BEIR's layout."""
    directory = tmp_path / "set"
    (directory / "qrels").mkdir(parents=True)
    corpus = [{"_id": id, "title": "The", "text": text} for id, text in DOCUMENTS.items()]
    queries = [{"_id": id, "text": text} for id, text in QUERIES.items()]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(lines, "utf-8")
    lines = [
        f"{query}\t{each}\t{value}" for query, row in QRELS.items() for each, value in row.items()
    ]
    header = "query-id\tcorpus-id\tscore"
    (directory / "qrels" / "test.tsv").write_text("\n".join([header, *lines]) + "\n", "utf-8")
    return directory


def scores(document: Mapping[str, Any], task: int = 0) -> dict[str, float]:
    return {name: score["value"] for name, score in document["tasks"][task]["scores"].items()}


def test_retrieval_embeds_what_has_no_vectors_and_equals_brute_force(
    evaluate, beir: Path, tmp_path: Path, model: str
) -> None:
    text = f"""
        [model]
        name = "{model}"
        [output]
        path = "{tmp_path}/vectors"
        [tasks.animals]
        kind = "retrieval"
        data = "{beir}"
        """
    document = evaluate(text, "--runs", str(tmp_path / "runs"))
    encoder = Encoder.load(model, engine="torch")
    passages = encoder.encode([f"The {each}" for each in DOCUMENTS.values()], role="passage")
    queries = encoder.encode([QUERIES[each] for each in QRELS], role="query")
    order = np.argsort(-(queries @ passages.T), axis=1, kind="stable")
    rankings = {query: [f"d{row}" for row in order[number]] for number, query in enumerate(QRELS)}
    expected = metrics.ranking_metrics(rankings, QRELS)
    assert scores(document) == pytest.approx({name: each.mean() for name, each in expected.items()})

    task = document["tasks"][0]
    assert task["counts"] == {"queries": 2, "searched": 2, "judgements": 4, "hits": 12}
    assert task["protocol"]["prompts"] == "e5"
    assert {side: report["embedded"] for side, report in task["embedding"].items()} == {
        "queries": 2,  # the third is not judged
        "corpus": 6,
    }
    run = [line.split() for line in (tmp_path / "runs/animals.run").read_text("utf-8").splitlines()]
    assert [line[2] for line in run if line[0] == "q1"] == rankings["q1"]
    assert [line[3] for line in run] == [*"123456", *"123456"]
    rows = (tmp_path / "runs/animals.queries.tsv").read_text("utf-8").splitlines()
    assert rows[0].split("\t") == ["query", *expected]
    assert float(rows[1].split("\t")[1]) == pytest.approx(expected["ndcg@10"][0])

    again = evaluate(text)
    assert scores(again) == scores(document)
    reports = again["tasks"][0]["embedding"].values()
    assert [report["embedded"] for report in reports] == [0, 0]


@pytest.fixture
def vectors(tmp_path: Path) -> Callable[..., str]:
    """Writes a table with vectors, as a job would have; returns its path."""

    def write(name: str, **columns: Any) -> str:
        arrays = {
            key: pa.array(list(value), pa.list_(pa.float32())) if "embedding" in key else value
            for key, value in columns.items()
        }
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(arrays), path)
        return str(path)

    return write


def points(rows: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, 8))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def test_pairs_labels_and_clusters_are_judged_in_the_order_of_their_ids(
    evaluate, vectors: Callable[..., str]
) -> None:
    left, right = points(20), points(20) + 0.4 * points(20, seed=1)
    truth = np.round(metrics.cosines(left, right) * 5)
    shuffled = np.random.default_rng(2).permutation(20)
    pairs = vectors(
        "pairs",
        id=shuffled,
        sentence1_embedding=left[shuffled],
        sentence2_embedding=right[shuffled],
        score=truth[shuffled],
    )
    centres = np.repeat(points(3, seed=3), 20, axis=0)
    labels = np.repeat(["x", "y", "z"], 20)
    rows = vectors("rows", embedding=centres + 0.02 * points(60), label=labels)
    document = evaluate(
        f"""
        [tasks.similar]
        kind = "similarity"
        pairs = "{pairs}"
        [tasks.translated]
        kind = "bitext"
        pairs = "{pairs}"
        [tasks.classes]
        kind = "classification"
        train = "{rows}"
        test = "{rows}"
        [tasks.clusters]
        kind = "clustering"
        texts = "{rows}"
        """
    )
    cosines = metrics.cosines(left, right)
    assert scores(document, 0) == pytest.approx(
        {"spearman": metrics.spearman(cosines, truth), "pearson": metrics.pearson(cosines, truth)}
    )
    hits = metrics.bitext_hits(left, right)
    assert scores(document, 1)["accuracy"] == pytest.approx((hits == np.arange(20)).mean())
    assert scores(document, 2) == {"accuracy@8": 1.0, "accuracy": 1.0}
    assert scores(document, 3)["v_measure"] == pytest.approx(1.0)


def test_reranking_ranks_only_the_judged_documents(
    evaluate, vectors: Callable[..., str], tmp_path: Path
) -> None:
    corpus, query = points(6), points(1, seed=5)
    queries = vectors("queries", id=["q1"], embedding=query)
    documents = vectors("documents", id=list(DOCUMENTS), embedding=corpus)
    (tmp_path / "q.tsv").write_text("q1\td1\t1\nq1\td2\t0\nq1\td4\t0\n", "utf-8")
    document = evaluate(
        f"""
        [tasks.x]
        kind = "reranking"
        queries = "{queries}"
        corpus = "{documents}"
        qrels = "{tmp_path}/q.tsv"
        """
    )
    order = [each for each in np.argsort(-(corpus @ query[0])) if each in (1, 2, 4)]
    assert scores(document)["map"] == pytest.approx(1 / (order.index(1) + 1))
    assert document["tasks"][0]["counts"]["hits"] == 3


def test_wrong_input_is_refused_before_anything_is_embedded(
    evaluate, vectors: Callable[..., str], spark: SparkSession, tmp_path: Path
) -> None:
    numbers = vectors("numbers", id=[1, 2], embedding=points(2))
    (tmp_path / "q.tsv").write_text("query-id\tcorpus-id\tscore\na\t1\t1\n", "utf-8")
    (tmp_path / "none.tsv").write_text("query-id\tcorpus-id\tscore\n", "utf-8")
    search = f'[tasks.x]\nkind = "retrieval"\nqueries = "{numbers}"\ncorpus = "{numbers}"\n'
    pairs = '[tasks.x]\nkind = "similarity"\npairs = '

    unknown = evaluate(search + f'qrels = "{tmp_path}/q.tsv"')
    assert unknown["exit_code"] == 3
    assert "None of the 1 judged queries, such as 'a', is in column 'id'" in unknown["message"]

    empty = evaluate(search + f'qrels = "{tmp_path}/none.tsv"')
    assert (empty["exit_code"], "has no judgements" in empty["message"]) == (3, True)

    texts = tmp_path / "pairs.tsv"
    with texts.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([[*SIDES, "score"], ["a", "b", "1"]])
    unembedded = evaluate(pairs + f'"{texts}"')
    assert unembedded["exit_code"] == 2
    assert "has no column 'sentence1_embedding'" in unembedded["message"]

    holes = vectors(
        "holes", sentence1_embedding=[None, [1.0]], sentence2_embedding=[[1.0]] * 2, score=[1, 2]
    )
    null = evaluate(pairs + f'"{holes}"')
    assert null["exit_code"] == 3
    assert "1 of 2 rows have no value in column 'sentence1_embedding'" in null["message"]

    mixed = spark.read.parquet(numbers)
    for name, fingerprint in (("one", "a" * 64), ("other", "b" * 64)):
        metadata = {"e5spark.fingerprint": fingerprint}
        mixed.withMetadata("embedding", metadata).write.parquet(str(tmp_path / name))
    different = evaluate(
        f'[tasks.x]\nkind = "retrieval"\nqueries = "{tmp_path}/one"\n'
        f'corpus = "{tmp_path}/other"\nqrels = "{tmp_path}/q.tsv"'
    )
    assert different["exit_code"] == 5
    assert "fingerprint" in different["message"]
