"""Texts that begin with a prompt already; prompts are never missing, doubled or cut apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from transformers import AutoTokenizer

from e5spark.errors import OptionError, TextError
from e5spark.model import prompts
from e5spark.spark import embed, embedding_udf
from tests.oracle import FP32_TOLERANCE, INVARIANCE_TOLERANCE, assert_close, reference, rows_of
from tests.texts import all_texts

settings.load_profile("ci")  # no deadlines, and the same examples every time

TASK = "Find similar questions"
CARRY = (
    "query: how much protein",
    "passage: the library opens",
    " Passage: in the middle of a document",
    "\n\tQUERY: shouted",
    "query:without a space",
    "query: passage: twice",
)
DO_NOT = (
    "query languages are many",
    "a passage: of text",
    "Query",
    "my query: is it there?",
    "passages: several",
    "",
    " ",
    "Q: what?",
    "Instruct: a\nQuery: b",
)
CARRY_INSTRUCTION = ("Instruct: a\nQuery: b", " instruct: a task", "INSTRUCT:\tx")


@pytest.mark.parametrize("text", CARRY)
def test_a_text_with_a_prompt_of_e5_is_detected(text):
    assert prompts.already_prompted(prompts.E5, [text]) == [True]


@pytest.mark.parametrize("text", DO_NOT)
def test_a_text_without_one_is_not(text):
    assert prompts.already_prompted(prompts.E5, [text]) == [False]


@pytest.mark.parametrize("text", CARRY_INSTRUCTION)
def test_a_text_with_an_instruction_is_detected(text):
    assert prompts.already_prompted(prompts.E5_INSTRUCT, [text]) == [True]


@pytest.mark.parametrize("text", ["instructions follow", "Instruct me", "Query: b", "query: b"])
def test_a_text_without_an_instruction_is_not(text):
    """An instruct checkpoint was not trained with E5's prompts."""
    assert prompts.already_prompted(prompts.E5_INSTRUCT, [text]) == [False]


@given(st.lists(st.text(), max_size=5))
def test_a_checkpoint_without_prompts_detects_none(texts):
    assert prompts.already_prompted(prompts.NONE, texts) == [False] * len(texts)


@given(
    text=st.text(), space=st.text(" \n\t\u3000", max_size=12), role=st.sampled_from(prompts.ROLES)
)
def test_what_e5spark_itself_would_add_is_detected_behind_white_space(text, space, role):
    assert prompts.already_prompted(prompts.E5, [space + prompts.E5[role] + text]) == [True]


# The options report, refuse and keep


MIXED = ("query: how much protein", "a plain text", " Passage: x", "query languages")
HAVE = [True, False, True, False]


def test_report_adds_the_prompt_all_the_same_and_marks_the_text(encoders, model):
    actual = encoders().encode_rows(MIXED, ["query: "] * 4)
    assert actual.already_prompted.tolist() == HAVE
    assert actual.errors == {}
    assert_close(actual.vectors, reference(model, MIXED, prompt="query: "), FP32_TOLERANCE)


def test_keep_adds_no_second_prompt_to_a_text_that_has_one_to_the_letter(encoders, model):
    """A text that only resembles one, such as " Passage: x", is marked, and still gets a prompt."""
    actual = encoders(already_prompted="keep").encode_rows(MIXED, ["query: "] * 4)
    assert actual.already_prompted.tolist() == HAVE
    once = reference(model, MIXED, prompt="")
    twice = reference(model, MIXED, prompt="query: ")
    assert_close(actual.vectors, np.concatenate([once[:1], twice[1:]]), FP32_TOLERANCE)
    assert np.abs(actual.vectors - twice)[0].max() > 100 * FP32_TOLERANCE


def test_keep_takes_the_prompt_of_either_role_for_the_text_s_own(encoders, model):
    texts = ("passage: a text with its own role", "query: another")
    actual = encoders(already_prompted="keep").encode(texts, role="query")
    assert_close(actual, reference(model, texts, prompt=""), FP32_TOLERANCE)


@pytest.mark.parametrize("long_text", ["truncate", "mean"])
def test_refuse_makes_an_error_of_the_text_and_harms_no_other(encoders, model, long_text):
    actual = encoders(already_prompted="refuse", long_text=long_text).encode_rows(
        MIXED, ["query: "] * 4
    )
    assert sorted(actual.errors) == [0, 2]
    assert "begins with a prompt already" in actual.errors[0]
    assert not actual.vectors[[0, 2]].any()
    expected = reference(model, MIXED, prompt="query: ")
    assert_close(actual.vectors[[1, 3]], expected[[1, 3]], FP32_TOLERANCE)


def test_refuse_names_the_text_to_a_user_of_the_library(encoders):
    with pytest.raises(TextError, match=r"texts\[2\] could not be encoded: The text begins with"):
        encoders(already_prompted="refuse").encode(["a", "b", "query: c"], role="query")


def test_keep_of_an_instruct_text_leaves_its_own_instruction(encoders, model):
    own = "Instruct: A task of its own\nQuery: protein"
    encoder = encoders(already_prompted="keep", prompts=prompts.E5_INSTRUCT)
    actual = encoder.encode([own, "protein"], role="query", instruction=TASK)
    expected = reference(model, (own, f"Instruct: {TASK}\nQuery: protein"), prompt="")
    assert_close(actual, expected, FP32_TOLERANCE)


@pytest.mark.usefixtures("udf_kind")
@pytest.mark.parametrize("already_prompted", ["report", "refuse", "keep"])
def test_a_table_says_which_rows_carried_a_prompt(
    make_table: Callable[..., DataFrame], encoders: Any, model: str, already_prompted: str
) -> None:
    docs = make_table([*MIXED, None, " "])
    rows = rows_of(
        embed(docs, text="text", role="query", model=model, already_prompted=already_prompted)
    )
    assert [row["already_prompted"] for row in rows] == [*HAVE, False, False]
    refused = ["error" if has and already_prompted == "refuse" else "ok" for has in HAVE]
    assert [row["status"] for row in rows] == [*refused, "null_text", "empty_text"]
    messages = [row["error"] for row in rows]
    assert [message is not None for message in messages] == [s == "error" for s in refused] + [
        False
    ] * 2
    expected = encoders(already_prompted="keep" if already_prompted == "keep" else "report").encode(
        MIXED, role="query"
    )
    for row, vector in zip(rows, expected, strict=False):
        if row["status"] == "ok":
            assert_close(np.array(row["embedding"], np.float32), vector, INVARIANCE_TOLERANCE)
        else:
            assert row["embedding"] is None


@pytest.mark.parametrize(
    ("already_prompted", "code", "errors"), [("report", 0, 0), ("keep", 0, 0), ("refuse", 4, 2)]
)
def test_a_job_counts_them_and_ends_with_4_where_they_are_refused(
    make_table: Callable[..., DataFrame],
    model: str,
    run_job: Callable[..., Any],
    tmp_path: Path,
    already_prompted: str,
    code: int,
    errors: int,
) -> None:
    make_table([*MIXED, None, " "]).write.parquet(str(tmp_path / "in"))
    sections = {
        "input": {"path": str(tmp_path / "in")},
        "embed": {"text": "text", "role": "query"},
        "model": {"name": model, "already_prompted": already_prompted},
        "output": {"path": str(tmp_path / "out")},
    }
    outcome = run_job(**sections)
    assert outcome.code == code
    rows = pq.read_table(tmp_path / "out").sort_by("id").to_pylist()
    assert [row["already_prompted"] for row in rows] == [*HAVE, False, False]
    assert sum(row["status"] == "error" for row in rows) == errors
    if code:
        assert outcome.document["message"].startswith(f"{errors} of 6 texts could not be embedded")
        outcome = run_job("run.max_error_rate=0.5", f'output.path="{tmp_path}/again"', **sections)
        assert outcome.code == 0
    assert outcome.document["already_prompted"] == 2
    assert outcome.document["error"] == errors


# The prefix is a part of the text to the tokenizer


BEGINNINGS = [
    "",
    " ",
    "  two spaces",
    "(",
    "é",
    "e\u0301",
    "\u0301mark",
    "##hash",
    "中文",
    "한국어",
]


@settings(max_examples=60)
@pytest.mark.parametrize("shape", ["bert_wordpiece", "xlmr_unigram", "bert_unigram"])
@pytest.mark.parametrize("prefix", ["query: ", "passage: ", f"Instruct: {TASK}\nQuery: ", "Q:"])
@given(
    texts=st.lists(
        st.one_of(st.sampled_from([*BEGINNINGS, *all_texts()]), st.text()), min_size=1, max_size=4
    )
)
def test_the_prefix_is_tokenised_as_in_the_concatenated_text(
    encoders, models, shape, prefix, texts
):
    encoder = encoders(shape)
    seen = []
    pool = encoder._loaded.engine._forward

    def record(batch, pooling):
        ends = batch.lengths.cumsum()[:-1]
        seen.extend(row.tolist() for row in np.split(batch.ids, ends))
        return pool(batch, pooling)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder._loaded.engine, "_forward", record)
        encoder.encode_rows(texts, [prefix] * len(texts))
    theirs = _tokenizer(models[shape])
    distinct = dict.fromkeys(texts)  # a text that comes twice is encoded once
    whole = [prefix + text for text in distinct]
    expected = theirs(whole, truncation=True, max_length=512)["input_ids"]
    assert sorted(seen) == sorted(expected)


_tokenizers: dict[str, Any] = {}


def _tokenizer(directory: str) -> Any:
    if directory not in _tokenizers:
        _tokenizers[directory] = AutoTokenizer.from_pretrained(directory)
    return _tokenizers[directory]


# Never without a role


def test_an_encoder_takes_no_texts_without_a_role(encoders):
    with pytest.raises(TypeError, match="role"):
        encoders().encode(["a"])


def test_embed_takes_no_table_without_a_role(make_table: Callable[..., DataFrame], model: str):
    with pytest.raises(TypeError, match="role"):
        embed(make_table(["a"]), text="text", model=model)
    with pytest.raises(TypeError, match="role"):
        embedding_udf(model=model)


@pytest.mark.parametrize("role", ["", None, "document", "Query"])
def test_an_unknown_role_is_refused_by_every_api(
    make_table: Callable[..., DataFrame], encoders: Any, model: str, role: Any
) -> None:
    with pytest.raises(OptionError, match="Unknown role"):
        encoders().encode(["a"], role=role)
    message = "Unknown role" if role is not None else "role is None"
    with pytest.raises(OptionError, match=message):
        embed(make_table(["a"]), text="text", role=role, model=model)
    with pytest.raises(OptionError, match=message):
        embedding_udf(role=role, model=model)


@pytest.mark.parametrize(
    ("embed_section", "message"),
    [
        ({"text": "text"}, "[embed] needs either role"),
        ({"text": "text", "role": ""}, "[embed] needs either role"),
        ({"text": "text", "role": "query", "role_column": "id"}, "not both"),
        ({"text": "text", "role": "document"}, "Unknown role 'document'"),
    ],
    ids=str,
)
def test_a_job_without_a_role_ends_with_2(
    make_table: Callable[..., DataFrame],
    model: str,
    run_job: Callable[..., Any],
    tmp_path: Path,
    embed_section: dict[str, object],
    message: str,
) -> None:
    make_table(["a"]).write.parquet(str(tmp_path / "in"))
    outcome = run_job(
        input={"path": str(tmp_path / "in")},
        embed=embed_section,
        model={"name": model},
        output={"path": str(tmp_path / "out")},
    )
    assert outcome.code == 2
    assert message in outcome.document["message"]


# Instructions


def test_a_query_of_an_instruct_checkpoint_needs_an_instruction_in_every_api(
    make_table: Callable[..., DataFrame], encoders: Any, model: str
) -> None:
    instruct = {"prompts": prompts.E5_INSTRUCT}
    with pytest.raises(OptionError, match="needs an instruction"):
        encoders(**instruct).encode(["a"], role="query")
    with pytest.raises(OptionError, match="needs an instruction"):
        embed(make_table(["a"]), text="text", role="query", model=model, **instruct)
    with pytest.raises(OptionError, match="needs an instruction"):
        embedding_udf(role="query", model=model, **instruct)


def test_a_passage_of_an_instruct_checkpoint_is_the_text_alone(encoders, model):
    encoder = encoders(prompts=prompts.E5_INSTRUCT)
    texts = tuple(all_texts()[:10])
    for instruction in (None, TASK):
        actual = encoder.encode(texts, role="passage", instruction=instruction)
        assert_close(actual, reference(model, texts, prompt=""), FP32_TOLERANCE)


def test_an_instruct_query_follows_its_task(encoders, model):
    encoder = encoders(prompts=prompts.E5_INSTRUCT)
    texts = tuple(all_texts()[:10])
    actual = encoder.encode(texts, role="query", instruction=f" {TASK}\n")
    expected = reference(model, texts, prompt=f"Instruct: {TASK}\nQuery: ")
    assert_close(actual, expected, FP32_TOLERANCE)


@pytest.mark.parametrize(("instruction", "code"), [("", 2), (TASK, 0)], ids=["without", "with"])
def test_a_job_needs_the_instruction_of_its_queries(
    make_table: Callable[..., DataFrame],
    model: str,
    run_job: Callable[..., Any],
    tmp_path: Path,
    instruction: str,
    code: int,
) -> None:
    make_table(["a question"]).write.parquet(str(tmp_path / "in"))
    outcome = run_job(
        **{
            "input": {"path": str(tmp_path / "in")},
            "embed": {"text": "text", "role": "query", "instruction": instruction},
            "model": {"name": model},
            "model.prompts": prompts.E5_INSTRUCT,
            "output": {"path": str(tmp_path / "out")},
        }
    )
    assert outcome.code == code
    if code:
        assert "needs an instruction" in outcome.document["message"]
        return
    actual = np.array(pq.read_table(tmp_path / "out")["embedding"].to_pylist(), np.float32)
    expected = reference(model, ("a question",), prompt=f"Instruct: {TASK}\nQuery: ")
    assert_close(actual, expected, FP32_TOLERANCE)


def test_an_instruction_that_leaves_no_room_costs_its_own_row_only(
    make_table: Callable[..., DataFrame], model: str
) -> None:
    tasks = F.when(F.col("id") == 1, F.repeat(F.lit("endless task "), 400)).otherwise(TASK)
    docs = make_table(["one", "two", "three"]).withColumn("task", tasks)
    rows = rows_of(
        embed(
            docs,
            text="text",
            role="query",
            instruction=F.col("task"),
            model=model,
            prompts=prompts.E5_INSTRUCT,
        )
    )
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert "too few are left for a text" in rows[1]["error"]
