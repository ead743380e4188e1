"""Canaries: what changes vectors under one fingerprint is caught before a row is written."""

import json
import logging
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5spark import encoder
from e5spark.errors import ConflictError
from e5spark.job import canaries
from e5spark.job.canaries import TEXTS, TOLERANCES, Canaries, Tolerance
from e5spark.job.config import QualityConfig
from e5spark.job.watch import Watch
from e5spark.model import content, digest
from e5spark.model.architecture import read_config
from e5spark.model.resolve import Plan
from e5spark.model.spec import PRECISIONS, model_spec
from e5spark.spark import encoder_cache
from e5spark.spark.embedding import plan_model
from e5spark.spark.worker import Request, run
from e5spark.tables.ledger.layout import MANIFEST
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.storage.local import LocalStorage
from tests.tables import Job, rows_of, table_of
from tests.test_commit import MANIFEST as MANIFEST_OF_A_TABLE
from tests.test_commit import FakeLock
from tests.trace import Trace

DOCS = {number: f"a library on hill {number}" for number in range(6)}


def canaries_of(*vectors: np.ndarray) -> Canaries:
    texts = tuple(f"text {number}" for number in range(len(vectors)))
    return Canaries(texts=texts, vectors=tuple(np.atleast_2d(rows) for rows in vectors))


def unit(rows: int = 1, dim: int = 32, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# What is compared, and how


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 99)), min_size=1, max_size=4))
def test_canaries_come_back_from_json_bit_by_bit(sizes: list[tuple[int, int]]) -> None:
    stored = canaries_of(*(unit(rows, seed=seed) for rows, seed in sizes))
    current = canaries.read(json.loads(json.dumps(stored.as_dict())))
    assert current.texts == stored.texts
    for before, after in zip(stored.vectors, current.vectors, strict=True):
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("precision", TOLERANCES)
def test_equal_vectors_pass_at_every_precision(precision: str) -> None:
    stored = canaries_of(unit(), unit(3, seed=1), np.zeros((1, 32), np.float32))
    assert canaries.difference(stored, stored, TOLERANCES[precision]) == ""


@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_fp32_vectors_may_differ_by_the_promise_of_two_machines_and_no_more(scale: float) -> None:
    """Whatever their length: vectors that are not normalised are compared in units of it."""
    before = unit() * scale
    for shift, is_caught in ((2e-5, False), (2e-4, True)):
        after = before.copy()
        after[0, 3] += shift * scale
        problem = canaries.difference(canaries_of(before), canaries_of(after), TOLERANCES["fp32"])
        assert bool(problem) == is_caught, problem


@pytest.mark.parametrize(("precision", "allowed"), [("bf16", 3.0), ("int8", 7.0)])
def test_reduced_precision_is_compared_by_the_angle(precision: str, allowed: float) -> None:
    before = np.array([[1.0, 0.0]], np.float32)
    for degrees, is_caught in ((allowed, False), (allowed + 2, True)):
        angle = np.radians(degrees)
        after = np.array([[np.cos(angle), np.sin(angle)]], np.float32)
        problem = canaries.difference(
            canaries_of(before), canaries_of(after), TOLERANCES[precision]
        )
        assert bool(problem) == is_caught, problem


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_vector_that_is_not_finite_never_passes(precision: str, bad: float) -> None:
    after = unit()
    after[0, 0] = bad
    assert canaries.difference(canaries_of(unit()), canaries_of(after), TOLERANCES[precision])


def test_a_lost_vector_a_lost_window_and_a_zero_vector_are_differences() -> None:
    stored, tolerance = canaries_of(unit(), unit(2, seed=1)), Tolerance(cosine=0.5)
    assert "1 of 2 canaries have no vector any more" in canaries.difference(
        stored, canaries_of(unit()), tolerance
    )
    assert "shape (1, 32) and had vectors of shape (2, 32)" in canaries.difference(
        stored, canaries_of(unit(), unit(1, seed=1)), tolerance
    )
    zero = canaries_of(unit(), np.zeros((2, 32), np.float32))
    assert canaries.difference(stored, zero, tolerance)
    assert canaries.difference(zero, stored, tolerance)


@pytest.mark.parametrize(
    "change",
    [
        {"texts": None},
        {"texts": [], "vectors": []},
        {"vectors": [["?"]]},
        {"vectors": []},
        {"texts": [3]},
        {"vectors": [[]]},
    ],
    ids=str,
)
def test_damaged_canaries_are_a_conflict_with_a_remedy(change: dict[str, object]) -> None:
    with pytest.raises(ConflictError, match=r"damaged.*the next run adds new ones"):
        canaries.read({**canaries_of(unit()).as_dict(), **change})


def test_the_texts_reach_beyond_every_limit_and_into_several_scripts() -> None:
    assert len(TEXTS) == len(set(TEXTS))
    assert max(len(text.split()) for text in TEXTS) > 512
    for script in ("ж", "東", "ع", "ø"):
        assert any(script in text for text in TEXTS)


def test_every_precision_has_a_tolerance() -> None:
    assert set(TOLERANCES) == set(PRECISIONS) - {"auto"}


# In a worker, without Spark


def embedded(plan: Plan, texts: tuple[str, ...] = TEXTS) -> Canaries:
    """What a worker gives for the texts."""
    (column,) = next(run(Request(plan=plan, texts=1, role="passage"), [(pa.array(texts),)]))
    vectors = np.array(column.field("embedding").to_pylist(), np.float32)
    return Canaries(texts=texts, vectors=tuple(vectors[:, None]))


class OtherBuild:
    """An engine whose products are rounded to fewer bits, as another build's may be."""

    def __init__(self, engine: Any, bits: int) -> None:
        self._engine, self._bits = engine, bits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, *arguments: Any) -> Any:
        step = np.float32(2.0**self._bits)
        for vectors in self._engine.run(*arguments):
            yield np.round(vectors * step) / step


@pytest.mark.parametrize(("bits", "is_caught"), [(20, False), (9, True)])
def test_another_build_of_openvino_is_caught_if_its_vectors_differ(
    new_model: str, monkeypatch: pytest.MonkeyPatch, bits: int, is_caught: bool
) -> None:
    plan = plan_model(model_spec(new_model, {"engine": "openvino", "precision": "fp32"}))
    stored = embedded(plan)
    load = encoder.load

    def other(*arguments: Any, **named: Any) -> Any:
        loaded = load(*arguments, **named)
        return replace(loaded, engine=OtherBuild(loaded.engine, bits))

    monkeypatch.setattr(encoder, "load", other)
    monkeypatch.setattr(encoder_cache, "_loaded", type(encoder_cache._loaded)())
    problem = canaries.difference(stored, embedded(plan), TOLERANCES["fp32"])
    assert bool(problem) == is_caught, problem


def test_torch_and_openvino_pass_each_other_s_canaries(new_model: str) -> None:
    """They have one fingerprint, so a table may be written by one and updated by the other."""
    torch, openvino = (
        embedded(plan_model(model_spec(new_model, {"engine": engine, "precision": "fp32"})))
        for engine in ("torch", "openvino")
    )
    assert canaries.difference(torch, openvino, TOLERANCES["fp32"]) == ""


# The watch over a run


@pytest.fixture
def watch(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Watch]:
    """Begins the watch over a run whose executors give these canaries."""
    ledger = Ledger(LocalStorage(str(tmp_path), tmp_path), FakeLock(1))
    ledger.begin(MANIFEST_OF_A_TABLE)
    plan = plan_model(model_spec(model, {"precision": "fp32"}))

    def begin(current: Canaries, *, torch: str = "2", **config: Any) -> Watch:
        monkeypatch.setattr(canaries, "embed", lambda *arguments: current)
        return Watch(QualityConfig(**config), plan, ledger, {"torch": torch, "numpy": "3"})

    return begin


def test_the_first_run_adds_canaries_and_the_next_one_compares_them(
    watch: Callable[..., Watch], tmp_path: Path
) -> None:
    before = json.loads((tmp_path / MANIFEST).read_bytes())
    first = watch(canaries_of(unit()))
    first.check_canaries(None)
    assert first.finish().canaries == "added"
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    assert manifest.pop("canaries")["versions"] == {"torch": "2", "numpy": "3"}
    assert manifest == {name: value for name, value in before.items() if name != "canaries"}
    second = watch(canaries_of(unit()))
    second.check_canaries(None)
    second.check_canaries(None)
    assert second.finish().canaries == "matched"


def test_the_message_says_what_differs_and_which_versions_changed(
    watch: Callable[..., Watch], tmp_path: Path
) -> None:
    watch(canaries_of(unit())).check_canaries(None)
    with pytest.raises(ConflictError) as caught:
        watch(canaries_of(unit(seed=1)), torch="4").check_canaries(None)
    message = str(caught.value)
    assert message.startswith(f"The canaries of {tmp_path} have other vectors than when")
    assert "at most 0.0001 is allowed in fp32. No row was embedded." in message
    assert "On the driver, torch 2 is now 4. Run with the versions and on the machines" in message


def test_a_run_with_nothing_to_do_or_without_canaries_embeds_none(
    watch: Callable[..., Watch],
) -> None:
    assert watch(canaries_of(unit())).finish().canaries == "not_needed"
    off = watch(canaries_of(unit()), canaries=False)
    off.check_canaries(None)
    assert off.finish().canaries == "off"


def test_a_model_that_embeds_no_canary_is_left_to_its_gates(
    watch: Callable[..., Watch], caplog: pytest.LogCaptureFixture
) -> None:
    begun = watch(canaries_of())
    with caplog.at_level(logging.WARNING, logger="e5spark"):
        begun.check_canaries(None)
    assert begun.finish().canaries == "none"
    assert "None of the canaries could be embedded" in caplog.text


# In a job


@pytest.fixture
def base(base: Job, new_model: str) -> Job:
    """With canaries, of a model that no worker has loaded."""
    base["model"] = {"name": new_model, "precision": "fp32"}
    base["quality"] = {"canaries": True}
    return base


@pytest.fixture
def embed(embed: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the job over some rows."""

    def run(docs: dict[int, str], *overrides: str) -> dict[str, Any]:
        pq.write_table(table_of(docs), tmp_path / "docs.parquet")
        return embed(*overrides)

    return run


def unnoticed(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes a file without anybody noticing: this machine goes on taking the old hash for it.

    As after a fault of a disk or of memory: a program that writes a file changes its times.
    """
    before = [entry.read_bytes() if entry.exists() else None for entry in cached_hashes(path)]
    assert any(before)
    path.write_bytes(change(path.read_bytes()))
    for entry, content_before in zip(cached_hashes(path), before, strict=True):
        if content_before is not None:
            digest.write_atomically(entry, content_before)


def cached_hashes(path: Path) -> list[Path]:
    """Where this machine keeps the hash of a file, and the hash of the weights in it."""
    file = digest.identity(path)
    weights = ["content", content._VERSION, content._facts(read_config(path.parent)), file]
    names = [digest.hashlib.sha256(json.dumps(key).encode()).hexdigest() for key in (file, weights)]
    return [digest.cache_directory() / "sha256" / name for name in names]


def flip_a_bit_of_an_exponent(data: bytes) -> bytes:
    """Of the first weight of the first LayerNorm."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    at = 8 + size + header["embeddings.LayerNorm.weight"]["data_offsets"][0] + 3
    return data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :]


def swap_two_pieces(data: bytes) -> bytes:
    """Of the vocabulary."""
    content = json.loads(data)
    vocabulary = content["model"]["vocab"]
    vocabulary["the"], vocabulary["and"] = vocabulary["and"], vocabulary["the"]
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("file", "change"),
    [("model.safetensors", flip_a_bit_of_an_exponent), ("tokenizer.json", swap_two_pieces)],
    ids=["weights", "tokenizer"],
)
def test_a_changed_byte_is_caught_before_a_row_is_written(
    embed: Callable[..., dict[str, Any]],
    new_model: str,
    tmp_path: Path,
    trace: Trace,
    file: str,
    change: Callable[[bytes], bytes],
) -> None:
    """By the fingerprint; and, if the hash of the file is out of date, by the canaries."""
    report = embed(DOCS, "model.engine=openvino")
    assert (report["code"], report["quality"]["canaries"]) == (0, "added")
    assert report["model_rows"] == len(DOCS)
    assert embed(DOCS, "model.engine=openvino")["quality"]["canaries"] == "not_needed"
    before = rows_of(tmp_path / "out")

    unnoticed(Path(new_model) / file, change)
    # Workers keep the model that they have loaded, by its hash and its engine.
    more = {**DOCS, 100: "a new text"}
    caught = embed(more, "model.engine=torch")
    assert (caught["code"], caught["error"], caught["model_rows"]) == (5, "ConflictError", 0)
    assert "have other vectors than when they were first embedded" in caught["message"]
    assert len(trace.events("canaries")) >= 2
    assert rows_of(tmp_path / "out") == before

    (Path(new_model) / file).touch()
    noticed = embed(more, "model.engine=torch")
    assert (noticed["code"], noticed["model_rows"]) == (5, 0)
    assert "The output has other vectors, which must not be mixed" in noticed["message"]
    assert rows_of(tmp_path / "out") == before


def test_canaries_of_split_texts_have_a_vector_for_each_window(
    embed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    split = ("model.long_text=split", "model.max_tokens=64", "model.overlap=8")
    assert embed(DOCS, *split)["quality"]["canaries"] == "added"
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_bytes())
    assert len(manifest["canaries"]["vectors"][-1]) > 8
    assert embed({**DOCS, 7: "more"}, *split)["quality"]["canaries"] == "matched"
    # A machine whose vectors differ: the stored ones are another's.
    manifest["canaries"]["vectors"][0] = manifest["canaries"]["vectors"][1]
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(manifest))
    assert embed({**DOCS, 8: "even more"}, *split)["code"] == 5
    assert embed({**DOCS, 8: "even more"}, *split, "quality.canaries=false")["code"] == 0
