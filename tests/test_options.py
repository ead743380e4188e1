"""Each option of a vector: what it makes, through every API; what is refused, and how."""

import dataclasses
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from pyspark.sql import DataFrame

from e5spark.encoder import Encoder
from e5spark.encoder.verify import agreement
from e5spark.errors import ConfigError, OptionError
from e5spark.job.job_file import load
from e5spark.model import registry
from e5spark.model.recipe import resolve_recipe
from e5spark.model.spec import model_spec
from e5spark.spark import embed, embedding_udf
from tests.oracle import FP32_TOLERANCE, assert_close, vectors_of
from tests.texts import SENTENCES, all_texts

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
DISTILLED = "avditvs/multilingual-e5-small-distill-base"
TEXTS = (*(sentences[0] for sentences in SENTENCES.values()), " ".join(SENTENCES["english"][:4]))


@cache
def _loaded(directory: str) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return tokenizer, transformers.AutoModel.from_pretrained(directory).eval()


def expected(
    directory: str,
    *,
    prompt: str = "query: ",
    pooling: str = "mean",
    dim: int = 32,
    normalize: bool = True,
    max_tokens: int = 512,
) -> np.ndarray:
    """The vectors of TEXTS, one text at a time: no padding, no mask."""
    tokenizer, model = _loaded(directory)
    vectors = []
    for text in TEXTS:
        batch = tokenizer(
            prompt + text, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state[0]
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling][:dim]
        vectors.append(torch.nn.functional.normalize(pooled, dim=0) if normalize else pooled)
    return torch.stack(vectors).numpy()


# Options as a user gives them, and what of the expectation they change.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as published": ({}, {}),
    "dim": ({"dim": 8, "force_dim": True}, {"dim": 8}),
    "the whole dim": ({"dim": 32}, {}),
    "normalize": ({"normalize": False}, {"normalize": False}),
    "dim without normalize": (
        {"dim": 8, "force_dim": True, "normalize": False},
        {"dim": 8, "normalize": False},
    ),
    "cls": ({"pooling": "cls"}, {"pooling": "cls"}),
    "last": ({"pooling": "last"}, {"pooling": "last"}),
    "max_tokens": ({"max_tokens": 12}, {"max_tokens": 12}),
    "prompts": ({"prompts": {"query": "Q: ", "passage": ""}}, {"prompt": "Q: "}),
    "device": ({"device": "cpu", "precision": "fp32"}, {}),
    "batching": ({"token_budget": 40, "sort_window": 3}, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", ["bert_wordpiece", "xlmr_unigram", "bert_unigram"])
def test_an_encoder_makes(models: dict[str, str], shape: str, case: str) -> None:
    options, changes = CASES[case]
    vectors = Encoder.load(models[shape], **options).encode(TEXTS, role="query")
    assert_close(vectors, expected(models[shape], **changes), 10 * FP32_TOLERANCE)
    assert_close(unit(vectors), unit(expected(models[shape], **changes)), FP32_TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_embed_makes(make_table: Callable[..., DataFrame], model: str, case: str) -> None:
    options, changes = CASES[case]
    vectors = vectors_of(
        embed(make_table(TEXTS), text="text", role="query", model=model, **options)
    )
    assert_close(vectors, expected(model, **changes), 10 * FP32_TOLERANCE)
    assert_close(unit(vectors), unit(expected(model, **changes)), FP32_TOLERANCE)


@pytest.mark.parametrize("case", ["dim", "normalize", "cls", "prompts"])
def test_a_udf_makes(make_table: Callable[..., DataFrame], model: str, case: str) -> None:
    options, changes = CASES[case]
    udf = embedding_udf(role="query", model=model, **options)
    vectors = vectors_of(make_table(TEXTS).withColumn("embedding", udf("text")))
    assert_close(vectors, expected(model, **changes), 10 * FP32_TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_a_job_file_gives_the_options_of_a_call(
    job_file: Callable[..., str], model: str, case: str
) -> None:
    options, _ = CASES[case]
    config = load(Path(job_file(**sections(model, options, "in", "out")))).model
    assert model_spec(config.name, config.options) == model_spec(model, options)


# A number, a boolean, a string and a table; the others come from the same file in the same way.
@pytest.mark.parametrize("case", ["dim without normalize", "cls", "prompts"])
def test_a_job_makes(
    make_table: Callable[..., DataFrame],
    model: str,
    run_job: Callable[..., Any],
    tmp_path: Path,
    case: str,
) -> None:
    options, changes = CASES[case]
    make_table(TEXTS).write.parquet(str(tmp_path / "in"))
    outcome = run_job(**sections(model, options, str(tmp_path / "in"), str(tmp_path / "out")))
    assert outcome.code == 0
    rows = pq.read_table(tmp_path / "out").sort_by("id")
    vectors = np.array(rows["embedding"].to_pylist(), np.float32)
    assert outcome.document["dim"] == vectors.shape[1]
    assert_close(vectors, expected(model, **changes), 10 * FP32_TOLERANCE)


def sections(model: str, options: dict[str, Any], source: str, output: str) -> dict[str, Any]:
    """A job with these options of the model."""
    plain = {key: value for key, value in options.items() if key != "prompts"}
    return {
        "input": {"path": source},
        "embed": {"text": "text", "role": "query"},
        "model": {"name": model, **plain},
        **({"model.prompts": options["prompts"]} if "prompts" in options else {}),
        "output": {"path": output},
    }


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# What is refused

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "untrained dim": ({"dim": 8}, "was not trained for shorter vectors"),
    "dim too large": ({"dim": 33}, "dim is 33, but .* has 32 dimensions"),
    "dim too large and forced": ({"dim": 33, "force_dim": True}, "has 32 dimensions"),
    "dim 0": ({"dim": 0}, "dim is 0; it must be a positive whole number"),
    "dim -1": ({"dim": -1}, "dim is -1; it must be a positive whole number"),
    "max_tokens too large": ({"max_tokens": 513}, "takes at most 512 tokens"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens is 0; it must be a positive whole number"),
    "pooling": ({"pooling": "max"}, "pooling is '?max'?; it must be one of mean, cls, last"),
    "precision": ({"precision": "fp8"}, "precision is '?fp8'?; it must be one of auto, fp32, bf16"),
    "long_text": (
        {"long_text": "drop"},
        "long_text is '?drop'?; it must be one of truncate, split",
    ),
    "already_prompted": (
        {"already_prompted": "warn"},
        "already_prompted is '?warn'?; it must be one of report, refuse",
    ),
    "output_type": ({"output_type": "int4"}, "output_type is '?int4'?; it must be one of float32"),
    "overlap": ({"overlap": -1}, "overlap is -1; it must be a whole number, 0 or more"),
    "token_budget": ({"token_budget": 0}, "token_budget is 0; it must be a positive whole number"),
    "sort_window": ({"sort_window": 0}, "sort_window is 0; it must be a positive whole number"),
    "text_deadline": ({"text_deadline": -1.5}, "text_deadline is -1.5; it must be a number of sec"),
    "prompts": ({"prompts": {"query": "q"}}, "it needs 'passage' and 'query'"),
    "an unknown option": ({"batch_size": 3}, "[Uu]nknown (option|key) 'batch_size'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_encoder_refuses(model: str, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(OptionError, match=message):
        Encoder.load(model, **options)


@pytest.mark.parametrize("case", REFUSED)
def test_embed_refuses_before_an_action(
    make_table: Callable[..., DataFrame], model: str, case: str
) -> None:
    options, message = REFUSED[case]
    with pytest.raises(OptionError, match=message):
        embed(make_table(["a"]), text="text", role="query", model=model, **options)


@pytest.mark.parametrize("case", REFUSED)
def test_a_job_ends_with_2(
    make_table: Callable[..., DataFrame],
    model: str,
    run_job: Callable[..., Any],
    tmp_path: Path,
    case: str,
) -> None:
    options, message = REFUSED[case]
    outcome = run_job(**sections(model, options, "/nowhere", str(tmp_path / "out")))
    assert outcome.code == 2
    assert outcome.document["error"] in {OptionError.__name__, ConfigError.__name__}
    assert re.search(message, outcome.document["message"].replace("model.", ""))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dim=wide", "model.dim is 'wide'; it must be a whole number"),
        ("model.dim=8.5", "model.dim is 8.5; it must be a whole number"),
        ("model.dim=true", "model.dim is True; it must be a whole number"),
        ("model.normalize=1", "model.normalize is 1; it must be true or false"),
        ("model.force_dim=yes", "model.force_dim is 'yes'; it must be true or false"),
        ("model.prompts=query", "model.prompts is 'query'; it must be a table"),
        ("model.calibration=3", "model.calibration is 3; it must be a string"),
    ],
)
def test_a_job_refuses_a_value_of_the_wrong_type(
    model: str, run_job: Callable[..., Any], override: str, message: str
) -> None:
    outcome = run_job(
        override,
        input={"path": "/nowhere"},
        embed={"text": "text", "role": "query"},
        model={"name": model},
        output={"path": "/nowhere-else"},
    )
    assert outcome.code == 2
    assert message in outcome.document["message"]


# Matryoshka


def test_a_dim_that_its_authors_did_not_publish_is_refused_with_the_likely_ones() -> None:
    with pytest.raises(OptionError) as refused:
        resolve_recipe(model_spec(DISTILLED, {"dim": 192}))
    assert str(refused.value) == (
        f"dim is 192, but {DISTILLED} was trained for shorter vectors, but its authors name no "
        "dims; the halvings (192, 96, 48) are likely, and untested by them. Force it with "
        "force_dim = true."
    )


@pytest.mark.parametrize("dim", [192, 96, 48, 100])
def test_a_dim_that_is_forced_is_taken(dim: int) -> None:
    assert resolve_recipe(model_spec(DISTILLED, {"dim": dim, "force_dim": True})).dim == dim


def test_a_published_dim_needs_no_force_and_another_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = dataclasses.replace(registry.CHECKPOINTS[DISTILLED], matryoshka_dims=(192,))
    monkeypatch.setitem(registry.CHECKPOINTS, DISTILLED, checkpoint)
    assert resolve_recipe(model_spec(DISTILLED, {"dim": 192})).dim == 192
    with pytest.raises(OptionError, match="dim is 96") as refused:
        resolve_recipe(model_spec(DISTILLED, {"dim": 96}))
    assert "192" in str(refused.value)
    assert "name no dims" not in str(refused.value)


@pytest.mark.parametrize("name", ["intfloat/multilingual-e5-large", "intfloat/e5-small-v2"])
def test_a_checkpoint_that_is_no_matryoshka_is_not_cut(name: str) -> None:
    with pytest.raises(OptionError, match="was not trained for shorter vectors, which lose"):
        resolve_recipe(model_spec(name, {"dim": 192}))


def test_vectors_of_another_dim_have_another_fingerprint(
    make_table: Callable[..., DataFrame], model: str
) -> None:
    whole, cut = (
        resolve_recipe(model_spec(model, options), Path(model))
        for options in ({}, {"dim": 8, "force_dim": True})
    )
    assert (whole.dim, cut.dim) == (32, 8)
    assert whole != cut


# bf16


def test_bf16_is_close_to_fp32_on_minilm(minilm: str) -> None:
    texts = [*all_texts()[::3], " ".join(SENTENCES["english"] * 3)]
    vectors = [
        Encoder.load(minilm, checkpoint=MINILM, precision=precision).encode(texts, role="query")
        for precision in ("fp32", "bf16")
    ]
    figures = agreement(*vectors)
    print(
        f"bf16 to fp32 on {len(texts)} texts: worst cosine {figures.worst_cosine:.6f}, "
        f"mean {figures.mean_cosine:.6f}"
    )
    assert figures.largest_difference > 0, "bf16 was not in use"
    assert figures.worst_cosine >= 0.9995
    assert figures.mean_cosine >= 0.9999
