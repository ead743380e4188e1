"""Judgements and figures are read as their formats say; rankings are numbered again."""

import pyarrow as pa
import pytest

from e5spark.errors import InputError
from e5spark.evaluate import published
from e5spark.evaluate.config import RetrievalConfig, TableConfig
from e5spark.evaluate.datasets import format_of, of_layout, parse_qrels
from e5spark.evaluate.report import aligned
from e5spark.evaluate.retrieval import ranked, rankings

JUDGED = {"q1": {"d1": 1, "d 2": 0}, "q2": {"d1": 2}}


def test_beir_judgements_have_a_header_and_three_fields() -> None:
    lines = ["query-id\tcorpus-id\tscore", "q1\td1\t1", "q1\td 2\t0", "", "q2\td1\t2"]
    assert parse_qrels(lines, "test.tsv") == JUDGED


def test_trec_judgements_have_four_fields_and_no_header() -> None:
    tabs = ["q1\tQ0\td1\t1", "q1\tQ0\td 2\t0", "q2\tQ0\td1\t2"]
    assert parse_qrels(tabs, "dev.tsv") == JUDGED
    assert parse_qrels(["q1 0 d1 1"], "dev.qrels") == {"q1": {"d1": 1}}


@pytest.mark.parametrize("line", ["q1\td1", "q1\td1\tyes", "a b c d 1"])
def test_line_that_is_no_judgement_is_named_by_its_number(line: str) -> None:
    with pytest.raises(InputError, match=r"Line 2 of test\.tsv is no judgement"):
        parse_qrels(["q1\td1\t1", line], "test.tsv")


def test_layout_names_the_files_of_a_directory() -> None:
    beir = RetrievalConfig(data="/data/scifact/", split="train")
    assert of_layout(beir, "qrels").path == "/data/scifact/qrels/train.tsv"
    miracl = RetrievalConfig(data="s3a://b/miracl-v1.0-sw", layout="miracl", split="dev")
    assert of_layout(miracl, "queries").path == "s3a://b/miracl-v1.0-sw/topics/*-dev.tsv"
    assert of_layout(miracl, "queries").options == {"header": "false"}


@pytest.mark.parametrize(
    ("path", "format"),
    [
        ("en.tsv", "tsv"),
        ("a/corpus.jsonl*", "jsonl"),
        ("docs-*.jsonl.gz", "jsonl"),
        ("train.csv", "csv"),
        ("some/directory", "parquet"),
    ],
)
def test_format_is_what_the_name_ends_with(path: str, format: str) -> None:
    assert format_of(TableConfig(path=path)) == format


def test_hits_of_the_query_itself_are_kept_unless_they_are_to_be_dropped() -> None:
    hits = pa.table(
        {
            "query_id": ["b", "a", "a", "a"],
            "corpus_id": ["z", "y", "a", "x"],
            "score": [0.5, 0.8, 1.0, 0.7],
            "rank": [1, 2, 1, 3],
        }
    )
    assert rankings(ranked(hits, depth=2, drop_same_id=False)) == {"a": ["a", "y"], "b": ["z"]}
    dropped = ranked(hits, depth=2, drop_same_id=True)
    assert rankings(dropped) == {"a": ["y", "x"], "b": ["z"]}
    assert dropped["rank"].to_pylist() == [1, 2, 1]


def test_no_hits_are_no_rankings() -> None:
    kinds = {"query_id": pa.string(), "corpus_id": pa.string(), "score": pa.float32()}
    empty = pa.table({**{name: pa.array([], kind) for name, kind in kinds.items()}, "rank": []})
    assert rankings(ranked(empty, depth=5, drop_same_id=True)) == {}


PARTS = {
    "precision": "fp32",
    "recipe": {"prompts": {"query": "", "passage": ""}, "normalize": True, "max_tokens": 512},
}


def test_figure_of_the_same_protocol_comes_first_and_others_say_how_they_differ() -> None:
    protocol = published.protocol(PARTS)
    first, second = published.figures("intfloat/e5-small-v2", "STSBenchmark", "spearman", protocol)
    assert (first.value, first.differences) == (0.84916, {})
    assert (second.value, second.differences) == (0.859453, {"prompts": "e5", "precision": "fp16"})


def test_nothing_is_published_of_an_unknown_task() -> None:
    assert published.figures("intfloat/e5-small-v2", "ours", "spearman", {}) == []


def test_vectors_without_a_manifest_have_no_protocol() -> None:
    assert published.protocol({}) == {}


def test_published_figures_name_known_checkpoints_and_metrics() -> None:
    from e5spark.model.registry import CHECKPOINTS

    metrics = {"spearman", "ndcg@10", "mrr@10", "recall@100", "accuracy@8"}
    for group in published._groups():
        assert set(group["protocol"]) <= set(published.protocol(PARTS))
        for model, tasks in group["figures"].items():
            assert model in CHECKPOINTS
            for figures in tasks.values():
                assert set(figures) <= metrics
                assert all(0 < value < 1 for value in figures.values())


def test_table_is_aligned() -> None:
    assert aligned([["a", "bcd"], ["ef", "g"]]) == "a   bcd\n--  ---\nef  g"
