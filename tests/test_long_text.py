"""Texts beyond the token limit: cut, split into windows, or the mean of their windows."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from transformers import AutoTokenizer

from e5spark.encoder import Encoder
from e5spark.encoder.tokenizer import EXACT_CHARS, Tokenizer
from e5spark.errors import OptionError
from e5spark.model.spec import model_spec
from e5spark.spark import embed, embedding_udf
from tests.frames import from_arrow, to_arrow
from tests.oracle import FP32_TOLERANCE, INVARIANCE_TOLERANCE, assert_close, reference, rows_of
from tests.texts import SENTENCES, all_texts, mixed_texts

settings.load_profile("ci")  # no deadlines, and the same examples every time

SHAPES = ["bert_wordpiece", "xlmr_unigram"]
ENGLISH = " ".join(SENTENCES["english"])
CHINESE = "".join(SENTENCES["chinese"])
EMOJI = " ".join(SENTENCES["emoji"])
NEIGHBOURS = ("A short text.", ENGLISH * 2, CHINESE * 3, f"{EMOJI} {ENGLISH}", "x")
LIMIT, OVERLAP = 64, 8


# The mean of windows


def mean_of_windows(encoders, shape, text, *, normalize=True):
    """The windows of a split, each embedded as a text of its own; then their weighted mean."""
    options = {"max_tokens": LIMIT, "overlap": OVERLAP, "normalize": True}
    windows = encoders(shape, long_text="split", **options).encode_rows([text], ["query: "]).windows
    parts = [text[window.start : window.end] for window in windows]
    options["normalize"] = normalize
    own = encoders(shape, **options).encode_rows(parts, ["query: "] * len(parts))
    mean = np.average(own.vectors.astype(np.float64), axis=0, weights=own.n_tokens)
    return mean / np.linalg.norm(mean) if normalize else mean


@settings(max_examples=15)
@pytest.mark.parametrize("shape", SHAPES)
@given(
    texts=st.lists(
        st.sampled_from([*NEIGHBOURS, *mixed_texts(20, longest=400)]), min_size=1, max_size=5
    )
)
def test_a_mean_is_that_of_the_windows_weighted_by_their_tokens(encoders, shape, texts):
    encoder = encoders(shape, long_text="mean", max_tokens=LIMIT, overlap=OVERLAP)
    actual = encoder.encode(texts, role="query")
    expected = np.stack([mean_of_windows(encoders, shape, text) for text in texts])
    assert_close(actual, expected, INVARIANCE_TOLERANCE)
    assert_close(np.linalg.norm(actual, axis=1), np.ones(len(texts)), INVARIANCE_TOLERANCE)


def test_a_mean_of_unnormalised_vectors_is_not_normalised(encoders):
    options = {"long_text": "mean", "max_tokens": LIMIT, "overlap": OVERLAP, "normalize": False}
    actual = encoders("bert_wordpiece", **options).encode(NEIGHBOURS, role="query")
    expected = np.stack(
        [mean_of_windows(encoders, "bert_wordpiece", text, normalize=False) for text in NEIGHBOURS]
    )
    assert (np.abs(np.linalg.norm(actual, axis=1) - 1) > 0.1).all()
    assert_close(actual, expected, 10 * INVARIANCE_TOLERANCE)  # vectors of length 5


def test_a_mean_has_the_tokens_of_all_windows_and_loses_none(encoders):
    options = {"max_tokens": LIMIT, "overlap": OVERLAP}
    prefixes = ["query: "] * len(NEIGHBOURS)
    mean = encoders("bert_wordpiece", long_text="mean", **options).encode_rows(NEIGHBOURS, prefixes)
    split = encoders("bert_wordpiece", long_text="split", **options).encode_rows(
        NEIGHBOURS, prefixes
    )
    sums = np.bincount(split.owner, weights=split.n_tokens)
    assert mean.n_tokens.tolist() == sums.tolist()
    assert not mean.truncated.any()
    assert mean.owner.tolist() == list(range(len(NEIGHBOURS)))


@pytest.mark.parametrize("long_text", ["mean", "truncate"])
def test_a_text_that_fits_has_its_usual_vector(encoders, models, long_text):
    short = tuple(text for text in all_texts() if len(text) < 60)
    actual = encoders("bert_wordpiece", long_text=long_text).encode(short, role="passage")
    assert_close(actual, reference(models["bert_wordpiece"], short, prompt="passage: "), 1e-5)


def test_a_mean_differs_from_the_cut_text(encoders):
    """Without a difference the tests above could pass although no windows are made."""
    options = {"max_tokens": LIMIT, "overlap": OVERLAP}
    cut = encoders("bert_wordpiece", **options).encode([ENGLISH], role="query")
    mean = encoders("bert_wordpiece", long_text="mean", **options).encode([ENGLISH], role="query")
    assert np.abs(cut - mean).max() > 100 * FP32_TOLERANCE


def test_a_window_that_breaks_the_engine_breaks_its_text_only(encoders, monkeypatch):
    encoder = encoders("bert_wordpiece", long_text="mean", max_tokens=LIMIT, overlap=OVERLAP)
    engine, mask = encoder._loaded.engine, encoder._loaded.tokenizer._backend.token_to_id("[MASK]")
    pool = engine._forward

    def fail(batch, pooling):
        if (batch.ids == mask).any():
            raise RuntimeError("poison")
        return pool(batch, pooling)

    texts = ["short", f"{ENGLISH} [MASK] {ENGLISH}", ENGLISH]
    expected = encoder.encode(texts, role="query")
    monkeypatch.setattr(engine, "_forward", fail)
    actual = encoder.encode_rows(texts, ["query: "] * 3)
    assert actual.errors == {1: "RuntimeError: poison"}
    assert_close(actual.vectors[[0, 2]], expected[[0, 2]], INVARIANCE_TOLERANCE)


# What is refused


@pytest.mark.parametrize("long_text", ["split", "mean"])
def test_an_overlap_that_leaves_a_window_no_room_is_refused(model, long_text):
    options = {"long_text": long_text, "max_tokens": 64, "overlap": 17}
    with pytest.raises(OptionError, match="overlap is 17, but a window has 64 tokens"):
        Encoder.load(model, **options) if long_text == "mean" else embedding_udf(
            role="query", model=model, **options
        )


@pytest.mark.parametrize("long_text", ["truncate", "split", "mean"])
def test_a_prompt_that_leaves_a_text_no_room_costs_its_own_row_only(encoders, long_text):
    options = {"long_text": long_text, "max_tokens": 32, "overlap": 8}
    encoder = encoders("bert_wordpiece", **options)
    prefixes = ["query: ", "a prompt of many words in all " * 8, "query: "]
    actual = encoder.encode_rows(["a text"] * 3, prefixes)
    assert list(actual.errors) == [1]
    assert "too few are left for a text" in actual.errors[1]
    alone = encoders("bert_wordpiece").encode(["a text"], role="query")
    assert_close(actual.vectors, np.stack([alone[0], 0 * alone[0], alone[0]]), INVARIANCE_TOLERANCE)


@pytest.mark.parametrize("overlap", [-1, 1.5, True])
def test_an_overlap_that_is_no_count_is_refused(model, overlap):
    with pytest.raises(OptionError, match=r"overlap is .*; it must be a whole number"):
        model_spec(model, {"overlap": overlap})


def test_an_unknown_long_text_is_refused(model):
    with pytest.raises(
        OptionError, match="long_text is 'chunk'; it must be one of truncate, split"
    ):
        model_spec(model, {"long_text": "chunk"})


def test_a_udf_does_not_split(model):
    with pytest.raises(OptionError, match="for long_text='split', use embed"):
        embedding_udf(role="query", model=model, long_text="split")


# Through Spark

ROWS = ["short", None, ENGLISH, " ", CHINESE * 3, f"{EMOJI} {ENGLISH}", "", "the last"]


@pytest.mark.usefixtures("udf_kind")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_split_makes_a_row_of_each_window(
    make_table: Callable[..., DataFrame], models: dict[str, str], encoders: Any, shape: str
) -> None:
    options = {"max_tokens": LIMIT, "overlap": OVERLAP}
    docs = make_table(ROWS, partitions=3).withColumn("other", F.col("id") * 10)
    df = embed(
        docs, text="text", role="query", model=models[shape], long_text="split", **options
    ).withColumn("part", F.expr('substring(text, start + 1, "end" - start)'.replace('"', "`")))
    assert df.columns == [
        *("id", "text", "other", "window", "start", "end", "embedding", "n_tokens"),
        *("truncated", "already_prompted", "status", "error", "part"),
    ]
    rows = to_arrow(df).sort_by([("id", "ascending"), ("window", "ascending")]).to_pylist()
    assert all(row["other"] == 10 * row["id"] and row["text"] == ROWS[row["id"]] for row in rows)
    for number, text in enumerate(ROWS):
        own = [row for row in rows if row["id"] == number]
        assert [row["window"] for row in own] == list(range(len(own)))
        if not (text or "").strip():
            assert [(row["status"], row["embedding"], row["start"], row["end"]) for row in own] == [
                ("null_text" if text is None else "empty_text", None, None, None)
            ]
            continue
        assert (len(own) > 1) == (len(text) > 50)
        assert [row["part"] for row in own] == [text[row["start"] : row["end"]] for row in own]
        for window, following in pairwise(own):
            assert not text[window["end"] : following["start"]].strip()
    good = [row for row in rows if row["status"] == "ok"]
    assert not any(row["truncated"] for row in good)
    alone = encoders(shape, **options).encode([row["part"] for row in good], role="query")
    assert_close(
        np.array([row["embedding"] for row in good], np.float32), alone, INVARIANCE_TOLERANCE
    )


@pytest.mark.usefixtures("udf_kind")
def test_a_mean_through_spark_is_that_of_the_library(
    make_table: Callable[..., DataFrame], model: str, encoders: Any
) -> None:
    options = {"long_text": "mean", "max_tokens": LIMIT, "overlap": OVERLAP}
    rows = rows_of(embed(make_table(ROWS), text="text", role="query", model=model, **options))
    assert [row["id"] for row in rows] == list(range(len(ROWS)))
    good = [row for row in rows if row["status"] == "ok"]
    assert [row["id"] for row in good] == [0, 2, 4, 5, 7]
    expected = encoders("bert_wordpiece", **options).encode(
        [ROWS[row["id"]] for row in good], role="query"
    )
    actual = np.array([row["embedding"] for row in good], np.float32)
    assert_close(actual, expected, INVARIANCE_TOLERANCE)


def test_n_tokens_of_a_truncated_text_count_the_tokens_before_truncation(
    make_table: Callable[..., DataFrame], model: str
) -> None:
    rows = rows_of(
        embed(make_table(ROWS), text="text", role="query", model=model, max_tokens=LIMIT)
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    for row, text in zip(rows, ROWS, strict=True):
        exact = len(tokenizer(f"query: {text}")["input_ids"]) if (text or "").strip() else 0
        assert row["n_tokens"] == exact
        assert row["truncated"] == (exact > LIMIT)


def test_a_split_row_that_a_role_column_refuses_keeps_one_row(
    spark: SparkSession, model: str
) -> None:
    roles = ["query", "wrong", "passage"]
    docs = from_arrow(spark, pa.table({"id": [0, 1, 2], "text": [ENGLISH] * 3, "role": roles}))
    rows = rows_of(
        embed(
            docs,
            text="text",
            role=F.col("role"),
            model=model,
            long_text="split",
            max_tokens=LIMIT,
            overlap=OVERLAP,
        )
    )
    assert [row["status"] for row in rows if row["id"] == 1] == ["error"]
    assert {row["status"] for row in rows if row["id"] != 1} == {"ok"}
    assert sum(row["id"] == 0 for row in rows) > 1


def test_a_split_text_that_breaks_the_engine_in_any_window_is_one_row(
    make_table: Callable[..., DataFrame],
    poisoned_model: str,
    poison: str,
    run_job: Callable[..., Any],
    tmp_path: Any,
) -> None:
    texts = ["short", f"{ENGLISH} {poison} {ENGLISH}", ENGLISH]
    make_table(texts).write.parquet(str(tmp_path / "in"))
    options = {"long_text": "split", "max_tokens": LIMIT, "overlap": OVERLAP}
    outcome = run_job(
        input={"path": str(tmp_path / "in")},
        embed={"text": "text", "role": "query"},
        model={"name": poisoned_model, **options},
        output={"path": str(tmp_path / "out")},
    )
    assert outcome.code == 4
    assert outcome.document["message"].startswith("1 of 3 texts could not be embedded")
    rows = pq.read_table(tmp_path / "out").sort_by("id").to_pylist()
    (broken,) = [row for row in rows if row["id"] == 1]
    assert "is out of range" in broken["error"]
    assert [broken[name] for name in ("status", "window", "start", "end", "embedding")] == [
        *("error", 0, None, None, None)
    ]
    assert {row["status"] for row in rows if row["id"] != 1} == {"ok"}
    assert sum(row["id"] == 2 for row in rows) > 1


def test_several_columns_are_not_split(spark: SparkSession, model: str) -> None:
    docs = from_arrow(spark, pa.table({"a": ["x"], "b": ["y"]}))
    with pytest.raises(OptionError, match="long_text='split' takes one text column"):
        embed(docs, text=["a", "b"], role="query", model=model, long_text="split")


def test_several_columns_that_are_joined_are_split(spark: SparkSession, model: str) -> None:
    docs = from_arrow(spark, pa.table({"id": [0], "a": [ENGLISH], "b": [CHINESE]}))
    options = {"long_text": "split", "max_tokens": LIMIT, "overlap": OVERLAP}
    rows = rows_of(embed(docs, text=["a", "b"], join="\n", role="query", model=model, **options))
    assert len(rows) > 5
    assert rows[-1]["end"] == len(ENGLISH) + 1 + len(CHINESE)


def test_the_job_reports_the_share_of_lost_tokens(
    make_table: Callable[..., DataFrame], model: str, run_job: Callable[..., Any], tmp_path: Any
) -> None:
    make_table(ROWS).write.parquet(str(tmp_path / "in"))
    documents = {}
    for long_text in ("truncate", "split", "mean"):
        outcome = run_job(
            input={"path": str(tmp_path / "in")},
            embed={"text": "text", "role": "query"},
            model={"name": model, "max_tokens": LIMIT, "overlap": OVERLAP, "long_text": long_text},
            output={"path": str(tmp_path / long_text)},
        )
        assert outcome.code == 0
        documents[long_text] = outcome.document
    tokenizer = AutoTokenizer.from_pretrained(model)
    counts = [
        len(tokenizer(f"query: {text}")["input_ids"]) for text in ROWS if (text or "").strip()
    ]
    lost = sum(max(count - LIMIT, 0) for count in counts)
    assert documents["truncate"]["tokens"] == sum(counts)
    assert documents["truncate"]["lost_tokens"] == lost
    assert documents["truncate"]["lost_token_share"] == pytest.approx(lost / sum(counts), abs=1e-6)
    assert documents["truncate"]["truncated"] == sum(count > LIMIT for count in counts)
    for long_text in ("split", "mean"):
        assert documents[long_text]["lost_tokens"] == documents[long_text]["truncated"] == 0
    for document in documents.values():
        assert (document["rows_in"], document["ok"]) == (len(ROWS), 5)
        assert (document["null_text"], document["empty_text"]) == (1, 2)
    assert documents["split"]["rows"] > documents["mean"]["rows"] == len(ROWS)


# Texts too long to be read whole


@pytest.fixture(scope="session")
def both(models: dict[str, str]) -> dict[str, Any]:
    """Ours and transformers' own, by shape."""
    return {
        shape: (Tokenizer.load(models[shape]), AutoTokenizer.from_pretrained(models[shape]))
        for shape in SHAPES
    }


def huge_texts() -> Iterator[Any]:
    random = np.random.default_rng(5)
    words = [word for text in all_texts() for word in text.split()]
    letters = "".join(SENTENCES["chinese"] + SENTENCES["japanese"] + SENTENCES["thai"])
    for size in (EXACT_CHARS - 1, EXACT_CHARS + 1, 70_000, 300_000):
        prose = " ".join(random.choice(words, size // 4))[:size]
        yield pytest.param(prose, id=f"{size} of prose")
        unspaced = "".join(random.choice(list(letters), size))
        yield pytest.param(unspaced, id=f"{size} of CJK and Thai")
        yield pytest.param("ab" * (size // 2), id=f"{size} in one word")
        dense = "".join(random.choice(list(".,;!?-+"), size))
        yield pytest.param(dense, id=f"{size} of punctuation")
    yield pytest.param(f"{ENGLISH} {'x' * 100_000} {ENGLISH * 90}", id="a word of 100,000 in prose")
    yield pytest.param("y" * 100_000 + f" {ENGLISH * 60}", id="a word of 100,000, then prose")
    yield pytest.param(f"a {' ' * 100_000} b {ENGLISH * 60}", id="100,000 spaces")
    yield pytest.param("e\u0301" * 40_000, id="accents of their own")
    yield pytest.param("👨‍👩‍👧‍👦" * 12_000, id="emoji of several code points")
    yield pytest.param("\u200b" * 70_000 + ENGLISH, id="nothing to see, then prose")


@pytest.mark.parametrize("max_tokens", [8, 512])
@pytest.mark.parametrize("text", list(huge_texts()))
@pytest.mark.parametrize("shape", SHAPES)
def test_the_ids_that_are_kept_are_those_of_the_whole_text(both, shape, text, max_tokens):
    ours, theirs = both[shape]
    tokens = ours.tokenize(["query: " + text, "short"], max_tokens)
    whole = theirs("query: " + text, truncation=True, max_length=max_tokens)["input_ids"]
    assert tokens.ids[: tokens.offsets[1]].tolist() == whole
    assert tokens.ids[tokens.offsets[1] :].tolist() == theirs("short")["input_ids"]


@pytest.mark.parametrize("language", SENTENCES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_estimated_tokens_of_a_huge_text_are_near_the_exact_number(both, shape, language):
    ours, theirs = both[shape]
    random = np.random.default_rng(11)
    text = " ".join(random.choice(list(SENTENCES[language]), 4 * EXACT_CHARS // 40))
    assert len(text) > EXACT_CHARS
    estimate = int(ours.tokenize([text], 512).n_tokens[0])
    exact = len(theirs(text, verbose=False)["input_ids"])
    assert estimate == pytest.approx(exact, rel=0.2)


@pytest.mark.parametrize("text", ["z" * 200_000, f"{'z' * 200_000} {ENGLISH}"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_huge_text_is_truncated_only_if_tokens_were_lost(both, shape, text):
    ours, theirs = both[shape]
    tokens = ours.tokenize([text], 512)
    exact = len(theirs(text, verbose=False)["input_ids"])
    assert tokens.truncated.tolist() == [exact > 512]


@pytest.mark.parametrize("shape", SHAPES)
def test_spans_of_a_huge_text_are_those_of_the_whole(both, shape):
    ours, theirs = both[shape]
    random = np.random.default_rng(3)
    words = [word for text in SENTENCES.values() for line in text for word in line.split()]
    text = " ".join(random.choice(words, 40_000))
    assert len(text) > 3 * EXACT_CHARS
    spans = ours.spans(text)
    whole = theirs(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)[
        "offset_mapping"
    ]
    assert list(zip(spans.starts.tolist(), spans.ends.tolist(), strict=True)) == whole
    # Every word has its own number.
    changes = np.flatnonzero(np.diff(spans.words))
    assert (np.diff(spans.words) >= 0).all()
    assert len(changes) >= 40_000 - 1
