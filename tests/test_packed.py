"""Packed passes equal padded ones; a device short of memory loses no row; order is kept.

No GPU is needed: a kernel that is obviously right stands in for the one of GPUs, over the same flat
layout. What only a GPU can tell is marked ``gpu`` and says so where there is none.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, MistralConfig, MistralModel

from e5spark.encoder.batching import Batch
from e5spark.encoder.encoder import Encoder
from e5spark.encoder.engine import LoadedModel
from e5spark.encoder.engines import torch as torch_engine
from e5spark.encoder.engines.packed import Kernel, Rows, by_length, kernel_for
from e5spark.encoder.engines.torch import TorchEngine
from e5spark.encoder.memory import MemoryLimit
from e5spark.errors import OptionError, TransientError
from e5spark.model.registry import POOLINGS, Pooling
from tests.oracle import FP32_TOLERANCE

SHAPES = ["bert_wordpiece", "xlmr_unigram", "bert_unigram", "mistral", "mistral_window"]
LENGTHS = {
    "mixed": [512, 511, 300, 300, 77, 16, 16, 16, 2, 1],
    "unsorted": [3, 40, 3, 1, 512, 9, 9, 2],
    "one": [23],
    "one_token": [1],
    "equal": [31] * 9,
}
PAD = {"bert_wordpiece": 0, "xlmr_unigram": 1, "bert_unigram": 1}
CPU = torch.device("cpu")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: Rows,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """The stand-in: softmax and two products, written out for each row and head."""
    group = query.shape[1] // key.shape[1]
    actual = torch.empty_like(query)
    for start, end in pairwise(rows.offsets.tolist()):
        for head in range(query.shape[1]):
            q = query[start:end, head]
            k, v = key[start:end, head // group], value[start:end, head // group]
            scores = q @ k.T * scale
            behind = torch.arange(end - start)[:, None] - torch.arange(end - start)
            left, right = window_size
            unseen = ((behind > left) & (left >= 0)) | ((-behind > right) & (right >= 0))
            actual[start:end, head] = scores.masked_fill(unseen, -torch.inf).softmax(-1) @ v
    return actual


def all_as_one(query: torch.Tensor, key: torch.Tensor, *args: Any, scale: float, **_: Any) -> Any:
    """A kernel that ignores the offsets: every token attends to every other."""
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, args[0]))
    attended = functional.scaled_dot_product_attention(
        q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return attended[0].transpose(0, 1)


@pytest.fixture(scope="session")
def directories(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The shapes of E5, and decoders with grouped heads, one of them with a short window."""
    actual = dict(models)
    for name, window in (("mistral", None), ("mistral_window", 8)):
        config = MistralConfig(
            vocab_size=1200,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            sliding_window=window,
        )
        torch.manual_seed(0)
        model = MistralModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 1 / np.sqrt(parameter.shape[-1]))
        actual[name] = str(tmp_path_factory.mktemp(name))
        model.save_pretrained(actual[name])
    return actual


@pytest.fixture(scope="session")
def engines(directories: dict[str, str]) -> Callable[..., TorchEngine]:
    """Makes engines that differ in their kernel only; with None, rows are padded."""

    def make(shape: str, kernel: Kernel | None) -> TorchEngine:
        model = AutoModel.from_pretrained(directories[shape], attn_implementation="sdpa").eval()
        return TorchEngine(model, CPU, precision="fp32", pad_id=PAD.get(shape, 0), kernel=kernel)

    return make


def batch_of(lengths: list[int], *, seed: int = 0) -> Batch:
    ids = np.random.default_rng(seed).integers(5, 1000, size=sum(lengths)).astype(np.int32)
    return Batch(ids=ids, lengths=np.array(lengths, dtype=np.int64))


def only(engine: TorchEngine, batch: Batch, pooling: Pooling) -> np.ndarray:
    (actual,) = engine.run([batch], pooling)
    assert not isinstance(actual, Exception), actual
    return actual


def close(name: str, actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert (actual.dtype, expected.dtype) == (np.float32, np.float32)
    largest = float(np.abs(actual - expected).max())
    print(f"{name}: largest difference {largest:.2g}")
    assert largest <= tolerance


# The same vectors


@pytest.mark.parametrize("kernel", [by_length, row_by_row], ids=["by_length", "stand_in"])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_rows_have_the_vectors_of_padded_ones(
    engines: Callable[..., TorchEngine], shape: str, kernel: Kernel
) -> None:
    padded, packed = engines(shape, None), engines(shape, kernel)
    assert (padded.packed, packed.packed) == (False, True)
    for name, lengths in LENGTHS.items():
        batch = batch_of(lengths)
        for pooling in POOLINGS:
            expected = only(padded, batch, pooling)
            close(
                f"{shape} {name} {pooling}", only(packed, batch, pooling), expected, FP32_TOLERANCE
            )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_vector_that_it_has_alone(
    engines: Callable[..., TorchEngine], shape: str
) -> None:
    engine, batch = engines(shape, by_length), batch_of(LENGTHS["mixed"])
    together = only(engine, batch, "mean")
    ends = np.cumsum(batch.lengths)
    for row, (start, end) in enumerate(zip(ends - batch.lengths, ends, strict=True)):
        alone = Batch(ids=batch.ids[start:end], lengths=batch.lengths[row : row + 1])
        close(f"{shape} row {row}", together[row : row + 1], only(engine, alone, "mean"), 2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_kernel_that_forgets_the_rows_is_noticed(
    engines: Callable[..., TorchEngine], shape: str
) -> None:
    """The negative control of the tests above: texts that attend to each other differ."""
    batch = batch_of(LENGTHS["mixed"])
    wrong = only(engines(shape, all_as_one), batch, "mean")
    assert np.abs(wrong - only(engines(shape, None), batch, "mean")).max() > 100 * FP32_TOLERANCE


def test_positions_of_xlmr_are_those_of_transformers(
    engines: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They begin at 2; a pad token inside a text has position 1 and is not counted."""
    engine = engines("xlmr_unigram", by_length)
    batch = batch_of([7, 5, 1])
    batch.ids[[2, 9]] = 1
    seen = []
    embed = engine._model.embeddings.forward
    monkeypatch.setattr(
        engine._model.embeddings,
        "forward",
        lambda **inputs: seen.append(inputs["position_ids"]) or embed(**inputs),
    )
    actual = only(engine, batch, "mean")
    assert seen[0].tolist() == [[2, 3, 1, 4, 5, 6, 7, 2, 3, 1, 4, 5, 2]]
    close("pads", actual, only(engines("xlmr_unigram", None), batch, "mean"), FP32_TOLERANCE)


def test_positions_of_bert_begin_at_0(
    engines: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, seen = engines("bert_unigram", by_length), []
    embed = engine._model.embeddings.forward
    monkeypatch.setattr(
        engine._model.embeddings,
        "forward",
        lambda **inputs: seen.append(inputs["position_ids"]) or embed(**inputs),
    )
    only(engine, batch_of([3, 1, 2]), "cls")
    assert seen[0].tolist() == [[0, 1, 2, 0, 0, 1]]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_of_bf16_are_pooled_in_fp32(directories: dict[str, str], pooling: Pooling) -> None:
    engine = TorchEngine.load(
        Path(directories["bert_wordpiece"]),
        precision="bf16",
        device="cpu",
        threads=None,
        pad_id=0,
    )
    engine._packed_model = lambda ids, rows: torch.full((len(ids), 4), 1 + 2**-7).bfloat16()
    engine.packed = True
    actual = only(engine, batch_of([300, 3]), pooling)
    assert actual.dtype == np.float32
    # A running sum of 300 of them in bf16 would be off by far more.
    np.testing.assert_allclose(actual, 1 + 2**-7, rtol=1e-6)


# Which kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ["bert_wordpiece", "mistral"])
def test_the_kernel_suits_the_device(
    directories: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    shape: str,
    dtype: torch.dtype,
) -> None:
    pytest.importorskip("torch.nn.attention.varlen", reason="torch before 2.11 pads on GPUs")
    config = AutoModel.from_pretrained(directories[shape]).config
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    sixteen_bit = dtype == torch.bfloat16
    assert (kernel_for(config, dtype, cuda) is not None) == sixteen_bit
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert kernel_for(config, dtype, cuda) is None
    assert kernel_for(config, dtype, torch.device("mps")) is None


@pytest.mark.parametrize(("hidden", "budget"), [(384, 65_536), (768, 65_536), (1024, 32_768)])
def test_a_gpu_gets_large_batches(hidden: int, budget: int) -> None:
    assert torch_engine._token_budget("cuda", hidden) == budget
    assert torch_engine._token_budget("cpu", hidden) < 4096


# Memory


class Scarce:
    """An engine whose device has room for a number of tokens, and raises as CUDA does beyond it."""

    def __init__(self, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
        self.engine, self.tokens = engine, tokens
        self.tried: list[int] = []
        self._forward = engine._forward
        monkeypatch.setattr(engine, "_forward", self.forward)

    def forward(self, batch: Batch, pooling: Pooling) -> torch.Tensor:
        self.tried.append(len(batch.ids))
        if len(batch.ids) > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return self._forward(batch, pooling)


@pytest.fixture
def scarce(
    engines: Callable[..., TorchEngine], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Scarce]:
    return lambda tokens, kernel=by_length: Scarce(
        engines("bert_wordpiece", kernel), monkeypatch, tokens
    )


@pytest.mark.parametrize("kernel", [by_length, None], ids=["packed", "padded"])
@pytest.mark.parametrize("tokens", [512, 600, 1000, 5000])
def test_a_device_short_of_memory_loses_no_row(
    engines: Callable[..., TorchEngine], scarce: Callable[..., Scarce], tokens: int, kernel: Any
) -> None:
    batches = [batch_of(lengths, seed=seed) for seed, lengths in enumerate(LENGTHS.values())]
    expected = list(engines("bert_wordpiece", kernel).run(batches, "mean"))
    actual = list(scarce(tokens, kernel).engine.run(batches, "mean"))
    for ours, theirs in zip(actual, expected, strict=True):
        close(f"at most {tokens}", ours, theirs, 2e-6)


def test_what_did_not_fit_is_not_tried_again(scarce: Callable[..., Scarce]) -> None:
    short = scarce(150)
    before = short.engine.token_budget
    list(short.engine.run([batch_of([50] * 8)] * 10, "mean"))
    assert short.tried[:4] == [400, 200, 100, 100]
    assert short.tried.count(400) == 1
    assert all(tokens <= 150 for tokens in short.tried[2:])
    assert short.engine.token_budget == 100 < before


def test_memory_that_comes_back_is_used_again(scarce: Callable[..., Scarce]) -> None:
    short = scarce(150)
    best = short.engine.token_budget
    (first,) = short.engine.run([batch_of([50] * 8)], "mean")
    short.tokens = 1 << 20
    for _ in range(9):
        list(short.engine.run([batch_of([50] * 2)] * 200, "mean"))
    assert short.engine.token_budget == best
    short.tried.clear()
    (last,) = short.engine.run([batch_of([50] * 8)], "mean")
    assert short.tried == [400]
    close("the same batch", last, first, 2e-6)


def test_a_row_that_does_not_fit_is_an_error_row(
    scarce: Callable[..., Scarce], models: dict[str, str]
) -> None:
    encoder = Encoder.load(models["bert_wordpiece"])
    short = scarce(100)
    starved = Encoder(
        LoadedModel(tokenizer=encoder._loaded.tokenizer, engine=short.engine),
        encoder.recipe,
        replace(encoder._spec, token_budget=1 << 20),
    )
    texts = ["short", "long " * 400, "another", "tea with milk " * 4]
    actual = starved.encode_rows(texts, ["query: "] * 4)
    assert actual.errors == {1: "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."}
    expected = encoder.encode(texts, role="query")
    close("the others", actual.vectors[[0, 2, 3]], expected[[0, 2, 3]], 2e-6)


def test_the_memory_limit_shrinks_at_once_and_grows_slowly() -> None:
    memory = MemoryLimit()
    assert memory.allows(1 << 40)
    assert memory.cap(2048) == 2048
    memory.shrink(100)
    assert (memory.allows(100), memory.allows(101)) == (True, False)
    assert (memory.cap(2048), memory.cap(60)) == (100, 60)
    for _ in range(199):
        memory.record_success()
    assert memory.limit == 100
    memory.record_success()
    assert memory.limit == 200


# Order


class Prefetching:
    """A transfer that lets the engine start a batch early, and counts what is fetched."""

    prefetch = 1

    def __init__(self) -> None:
        self.fetched = 0

    def to_device(self, arrays: Any) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in arrays]

    def to_host(self, vectors: torch.Tensor) -> Callable[[], np.ndarray]:
        def fetch() -> np.ndarray:
            self.fetched += 1
            return vectors.numpy()

        return fetch


@pytest.fixture
def prefetching(engines: Callable[..., TorchEngine]) -> TorchEngine:
    engine = engines("bert_wordpiece", by_length)
    engine._transfer = Prefetching()
    return engine


def test_vectors_come_in_the_order_of_their_batches(
    engines: Callable[..., TorchEngine], prefetching: TorchEngine
) -> None:
    batches = [batch_of([length, 3], seed=length) for length in range(1, 9)]
    expected = list(engines("bert_wordpiece", None).run(batches, "mean"))
    for count in (0, 1, 2, 8):
        actual = list(prefetching.run(batches[:count], "mean"))
        assert len(actual) == count
        for ours, theirs in zip(actual, expected[:count], strict=True):
            close("in order", ours, theirs, FP32_TOLERANCE)


def test_the_next_batch_has_started_before_one_is_fetched(prefetching: TorchEngine) -> None:
    taken: list[int] = []

    def batches() -> Iterator[Batch]:
        for number in range(5):
            taken.append(number)
            yield batch_of([4, 2])

    run = prefetching.run(batches(), "mean")
    for position in range(5):
        next(run)
        assert taken == list(range(min(position + 2, 5)))
        assert prefetching._transfer.fetched == position + 1


@pytest.mark.parametrize("bad", [0, 1, 3, 5])
def test_an_exception_comes_in_the_place_of_its_batch(prefetching: TorchEngine, bad: int) -> None:
    batches = [batch_of([5, 2], seed=seed) for seed in range(6)]
    batches[bad].ids[3] = 1 << 20
    actual = list(prefetching.run(batches, "mean"))
    assert [isinstance(vectors, Exception) for vectors in actual] == [
        row == bad for row in range(6)
    ]
    assert isinstance(actual[bad], IndexError)
    assert "token id 1048576 is out of range" in str(actual[bad])
    assert actual[bad].__traceback__ is None  # its frames would hold the device's memory


@pytest.mark.parametrize("when", ["start", "fetch"])
def test_a_device_that_fails_blames_no_text(
    prefetching: TorchEngine, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def fail(*_: object) -> Any:
        raise torch_engine._DeviceError("CUDA error: device-side assert triggered")

    if when == "start":
        monkeypatch.setattr(prefetching, "_forward", fail)
    else:
        monkeypatch.setattr(prefetching._transfer, "to_host", lambda _: fail)
    with pytest.raises(TransientError, match="The device failed: CUDA error"):
        list(prefetching.run([batch_of([3])] * 3, "mean"))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert torch_engine._device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(OptionError, match="device is 'cuda:2', but this process sees 2 GPUs"):
        torch_engine._device("cuda:2")


# On a GPU


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gpu_gives_the_vectors_of_the_cpu(
    directories: dict[str, str],
    engines: Callable[..., TorchEngine],
    shape: str,
    precision: str,
) -> None:
    engine = TorchEngine.load(
        Path(directories[shape]),
        precision=precision,
        device="cuda",
        threads=None,
        pad_id=PAD.get(shape, 0),
    )
    assert engine.packed == (precision == "bf16")
    batches = [batch_of(lengths, seed=seed) for seed, lengths in enumerate(LENGTHS.values())] * 3
    for pooling in POOLINGS:
        expected = np.concatenate(list(engines(shape, None).run(batches, pooling)))
        actual = np.concatenate(list(engine.run(batches, pooling)))
        norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = (actual * expected).sum(axis=1) / norms
        print(f"{shape} {precision} {pooling}: worst cosine {cosines.min():.6f}")
        assert cosines.min() > (0.99999 if precision == "fp32" else 0.995)


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_that_runs_out_of_memory_loses_no_row(directories: dict[str, str]) -> None:
    def load() -> TorchEngine:
        return TorchEngine.load(
            Path(directories["bert_wordpiece"]),
            precision="bf16",
            device="cuda",
            threads=None,
            pad_id=0,
        )

    batch = batch_of([400] * 4000)
    expected = only(load(), batch, "mean")
    engine = load()
    _, total = torch.cuda.mem_get_info()
    try:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(300e6 / total)
        actual = only(engine, batch, "mean")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine._memory.limit is not None
    close("after halving", actual, expected, 1e-2)
