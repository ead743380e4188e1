"""Negative controls: the parity comparison catches known mistakes, made here on purpose."""

import functools
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from e5spark.encoder import Encoder, load
from e5spark.encoder.engines import torch as torch_engine
from e5spark.encoder.engines.packed import Rows
from e5spark.model.checkpoint import locate
from e5spark.model.recipe import resolve_recipe
from e5spark.model.spec import ModelOptions, model_spec
from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.texts import SENTENCES, mixed_texts

TEXTS = (
    *(sentences[0] for sentences in SENTENCES.values()),
    *mixed_texts(12, seed=8, longest=300),
    " ".join(SENTENCES["english"] * 4),  # more than 512 tokens
)
DIM = 8
SHAPES = ["bert_wordpiece", "xlmr_unigram", "bert_unigram"]
BY_FAR = 100

Make = Callable[..., Encoder]
Fault = Callable[[Make, pytest.MonkeyPatch], Encoder]


@pytest.fixture(scope="session")
def sound(models: dict[str, str]) -> Callable[..., Make]:
    """Makes encoders of a shape that share a loaded checkpoint."""
    loaded = {}

    def make(shape: str, *, padded: bool = False, **options: ModelOptions) -> Encoder:
        spec = model_spec(models[shape], options)
        files = locate(spec)
        if (shape, padded) not in loaded:
            with pytest.MonkeyPatch.context() as patch:
                if padded:  # as on devices without a kernel for packed rows
                    patch.setattr(torch_engine, "kernel_for", lambda *_: None)
                loaded[shape, padded] = load(
                    files, engine="torch", precision="fp32", device="cpu", threads=2
                )
        return Encoder(loaded[shape, padded], resolve_recipe(spec, files.model), spec)

    return make


def parity(encoder: Encoder, directory: str) -> None:
    """The comparison of the parity tests: every component within the tolerance."""
    expected = reference(directory, TEXTS, prompt="query: ")
    if encoder.dim < expected.shape[1]:
        expected = expected[:, : encoder.dim]
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert_close(encoder.encode(TEXTS, role="query"), expected, FP32_TOLERANCE)


def wrong_pooling(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    return make(pooling="cls")


def last_token_pooling(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    return make(pooling="last")


def mean_over_pads(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    patch.setattr(torch_engine, "_pool", lambda hidden, *_: hidden.mean(dim=1))
    return make(padded=True, token_budget=1 << 20)


def attention_to_pads(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    return run(
        make(padded=True, token_budget=1 << 20),
        patch,
        lambda inputs: {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])},
    )


def mask_by_comparing_ids(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    """With the pad id of config.json, 0, where the tokenizer pads with 1 and begins with 0."""
    return run(
        make(padded=True, token_budget=1 << 20),
        patch,
        lambda inputs: {**inputs, "attention_mask": (inputs["input_ids"] != 0).long()},
    )


def texts_that_see_each_other(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    encoder = make()
    packed, kernel = (
        encoder._loaded.engine._packed_model,
        encoder._loaded.engine._packed_model._kernel,
    )

    def blind(*states: torch.Tensor, scale: float, window_size: tuple[int, int]) -> torch.Tensor:
        *states, rows = states
        whole = Rows(offsets=rows.offsets[[0, -1]], longest=int(rows.offsets[-1]))
        return kernel(*states, whole, scale=scale, window_size=window_size)

    patch.setattr(packed, "_kernel", blind)
    return encoder


def no_prompt(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    return make(prompts={"query": "", "passage": ""})


def prompt_of_the_other_role(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    return make(prompts={"query": "passage: ", "passage": "query: "})


def prompt_twice(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    return make(prompts={"query": "query: query: ", "passage": "passage: "})


def prompt_without_its_space(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    return make(prompts={"query": "query:", "passage": "passage:"})


def positions_from_0(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    return numbered(make(), patch, 0)


def positions_from_2(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    return numbered(make(), patch, 2)


def numbered(encoder: Encoder, patch: pytest.MonkeyPatch, first: int) -> Encoder:
    def number(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = inputs["position_ids"] - inputs["position_ids"].min() + first
        # The oracle's longest text has 512 tokens, so BERT's last position serves twice.
        return {**inputs, "position_ids": ids.clamp(max=511)}

    return run(encoder, patch, number)


def cut_without_renormalising(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    encoder = make(dim=DIM, force_dim=True, normalize=False)
    engine, pool = encoder._loaded.engine, encoder._loaded.engine._forward
    patch.setattr(engine, "_forward", lambda *batch: normalize(pool(*batch)))
    return encoder


def not_normalised(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    return make(normalize=False)


def a_cut_that_takes_the_last_special_token(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    encoder = make()
    patch.setattr(encoder._loaded.tokenizer, "_suffix", np.zeros(0, np.int32))
    return encoder


def rows_in_the_order_of_their_lengths(make: Make, patch: pytest.MonkeyPatch) -> Encoder:
    encoder = make()
    encode = encoder.encode_rows

    def sorted_rows(texts: list[str], prefixes: list[str]) -> object:
        return encode(sorted(texts, key=len), prefixes)

    patch.setattr(encoder, "encode_rows", sorted_rows)
    return encoder


def run(
    encoder: Encoder,
    patch: pytest.MonkeyPatch,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Encoder:
    """The encoder with its model's inputs changed on the way in."""
    engine = encoder._loaded.engine
    owner = engine._packed_model or engine
    model = owner._model
    patch.setattr(owner, "_model", lambda **inputs: model(**change(inputs)))
    return encoder


FAULTS: dict[Fault, list[str]] = {
    wrong_pooling: SHAPES,
    last_token_pooling: SHAPES,
    mean_over_pads: SHAPES,
    attention_to_pads: SHAPES,
    mask_by_comparing_ids: ["bert_unigram"],
    texts_that_see_each_other: SHAPES,
    no_prompt: SHAPES,
    prompt_of_the_other_role: SHAPES,
    prompt_twice: SHAPES,
    prompt_without_its_space: ["xlmr_unigram"],
    positions_from_0: ["xlmr_unigram"],
    positions_from_2: ["bert_wordpiece", "bert_unigram"],
    cut_without_renormalising: SHAPES,
    not_normalised: SHAPES,
    a_cut_that_takes_the_last_special_token: SHAPES,
    rows_in_the_order_of_their_lengths: SHAPES,
}


@pytest.mark.parametrize(
    ("fault", "shape"),
    [
        pytest.param(fault, shape, id=f"{fault.__name__}-{shape}")
        for fault, shapes in FAULTS.items()
        for shape in shapes
    ],
)
def test_parity_fails_by_far_with_a_fault(
    sound: Callable[..., Make],
    models: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    shape: str,
) -> None:
    with monkeypatch.context() as patch:
        faulty = fault(functools.partial(sound, shape), patch)
        with pytest.raises(AssertionError, match="the largest difference is") as caught:
            parity(faulty, models[shape])
    actual = re.search(r"the largest difference is (\S+),", str(caught.value))
    assert actual is not None
    print(f"largest difference with the fault: {actual[1]}")
    assert float(actual[1]) > BY_FAR * FP32_TOLERANCE


@pytest.mark.parametrize("options", [{}, {"dim": DIM, "force_dim": True}], ids=["whole", "cut"])
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_holds_without_a_fault(
    sound: Callable[..., Make], models: dict[str, str], shape: str, options: ModelOptions
) -> None:
    parity(sound(shape, **options), models[shape])
