"""One load for each worker and one pass for each row; windows; checkpoints that differ."""

import importlib
import sys
import weakref
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyspark
import pytest
from pyspark.errors import PythonException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from e5spark import encoder
from e5spark.errors import ConflictError, ModelError, OptionError, from_text
from e5spark.model.spec import model_spec
from e5spark.spark import embed, encoder_cache
from e5spark.spark.columns import TextColumns
from e5spark.spark.embedding import embed_plan, plan_model
from e5spark.spark.encoder_cache import encoder_for, forget_zips
from e5spark.spark.worker import Request, _sort_windows, run
from tests.frames import to_arrow
from tests.oracle import INVARIANCE_TOLERANCE, assert_close, vectors_of
from tests.trace import Trace

FP32 = {"precision": "fp32"}
BATCH = 40  # the session's spark.sql.execution.arrow.maxRecordsPerBatch


@pytest.fixture(scope="module")
def short_texts(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(texts, key=len)[:800])


def test_every_worker_loads_a_checkpoint_once_in_three_actions(
    make_table: Callable[..., DataFrame],
    short_texts: tuple[str, ...],
    new_model: str,
    trace: Trace,
) -> None:
    vectors = embed(
        make_table(short_texts, partitions=8),
        text="text",
        role="query",
        model=new_model,
        sort_window=1,
    )
    for _ in range(3):
        to_arrow(vectors)
    assert trace.rows() == 3 * len(short_texts)
    assert len(trace.events("window")) >= 3 * 8 * 2  # several Arrow batches in each partition
    assert loads_by_worker(trace) == dict.fromkeys(workers(trace), 1)


def test_roles_and_a_second_embed_share_one_load(
    make_table: Callable[..., DataFrame],
    short_texts: tuple[str, ...],
    new_model: str,
    trace: Trace,
) -> None:
    docs = make_table(short_texts[:100])
    for role in ("query", "passage", "query"):
        to_arrow(embed(docs, text="text", role=role, model=new_model))
    assert trace.rows() == 300
    assert loads_by_worker(trace) == dict.fromkeys(workers(trace), 1)


def test_a_worker_that_computes_in_another_precision_than_the_run_stops(
    new_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = encoder.load
    monkeypatch.setattr(encoder, "load", lambda files, **how: load(files, **how | FP32))
    plan = plan_model(model_spec(new_model, {"precision": "bf16"}))
    with pytest.raises(ConflictError, match=r"computes in fp32 .* the run's precision is bf16"):
        encoder_for(plan)


def test_the_oldest_model_is_dropped_before_a_third_is_loaded(
    new_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that refers to itself, as models do: three of the large shape are 6.6 GB."""
    alive: weakref.WeakSet[FakeLoaded] = weakref.WeakSet()
    alive_at_load: list[int] = []

    def load(*_: object, **__: object) -> FakeLoaded:
        alive_at_load.append(len(alive))
        loaded = FakeLoaded()
        alive.add(loaded)
        return loaded

    monkeypatch.setattr(encoder, "load", load)
    monkeypatch.setattr(encoder_cache, "_loaded", OrderedDict())
    plan = plan_model(model_spec(new_model, {"precision": "fp32"}))
    for device in ("cuda:0", "cuda:1", "cuda:0", "cuda:2", "cuda:3"):
        encoder_for(replace(plan, spec=replace(plan.spec, device=device)))
    assert alive_at_load == [0, 1, 1, 1]
    assert len(alive) == 2


@pytest.mark.parametrize("package", ["tokenizers", "openvino", "torch"])
def test_a_worker_that_lacks_a_package_says_so(
    new_model: str, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.setattr(encoder, "load", load)
    with pytest.raises(OptionError, match=f"The package {package} is not installed on an executor"):
        encoder_for(plan_model(model_spec(new_model, {})))


@pytest.mark.parametrize(
    ("batches", "rows", "windows"),
    [
        ([10_000, 10_000], 4096, [64, 64, 512, 9_360, 10_000]),
        ([10_000], 100, [64, 64, 9_872]),
        ([10_000], 64, [10_000]),
        ([700, 600], 4096, [64, 64, 512, 660]),
        ([64, 40], 4096, [104]),
        ([30, 30, 30, 30], 80, [90, 30]),
        ([40, 0, 40], 1, [40, 40]),
        ([], 100, []),
    ],
)
def test_the_first_windows_are_small_and_all_rows_keep_their_order(
    batches: list[int], rows: int, windows: list[int]
) -> None:
    texts = pa.array(range(sum(batches)), pa.int64())
    starts = np.cumsum([0, *batches])
    arrays = [(texts.slice(start, count),) for start, count in zip(starts, batches, strict=False)]
    actual = list(_sort_windows(arrays, rows, 64 << 20, first=(64, 64, 512)))
    assert [sum(len(batch[0]) for batch in window) for window in actual] == windows
    order = [value for window in actual for batch in window for value in batch[0].to_pylist()]
    assert order == texts.to_pylist()


def test_a_job_writes_all_rows_and_needs_no_small_windows(model: str) -> None:
    texts = [f"text {number}" for number in range(700)]
    plan = plan_model(model_spec(model, {}))
    for quick_start, rows in ((True, [64, 64, 512, 60]), (False, [700])):
        request = Request(plan=plan, texts=1, role="query", quick_start=quick_start)
        results = list(run(request, [(pa.array(texts, pa.binary()),)]))
        assert [len(result[0]) for result in results] == rows


def test_a_batch_of_more_bytes_than_a_window_holds_is_cut() -> None:
    texts = pa.array(["x" * 300] * 9 + ["y" * 5000] + ["z"] * 6, pa.binary())
    windows = list(_sort_windows([(texts,)], 4096, 1000, first=(64,)))
    parts = [pa.chunked_array([batch[0] for batch in window]) for window in windows]
    assert pa.chunked_array([chunk for part in parts for chunk in part.chunks]).equals(
        pa.chunked_array([texts])
    )
    assert all(part.nbytes < 2000 or b"y" * 5000 in part.to_pylist() for part in parts)
    assert max(part.nbytes for part in parts) < 5000 + 2000


def test_a_text_beyond_max_characters_is_an_error_and_costs_no_other(model: str) -> None:
    plan = plan_model(model_spec(model, {"max_characters": 10}))
    request = Request(plan=plan, texts=2, role="query")
    columns = (pa.array(["0123456789", "one", None]), pa.array(["two", "0123456789x", " " * 11]))
    (result,) = run(request, [columns])
    first, second = result
    assert first.field("status").to_pylist() == ["ok", "ok", "null_text"]
    assert second.field("status").to_pylist() == ["ok", "error", "empty_text"]
    assert second.field("error").to_pylist() == [
        None,
        "The text has 11 characters, more than max_characters, 10.",
        None,
    ]


def test_the_first_rows_come_before_the_rest_of_their_batch_is_run(
    model: str, trace: Trace
) -> None:
    request = Request(plan=plan_model(model_spec(model, {})), texts=1, role="query")
    results = run(request, [(pa.array([f"row {number}" for number in range(10_000)]),)])
    (vectors,) = next(results)
    results.close()
    assert len(vectors) == 64
    assert trace.rows() == 64


class FakeLoaded:
    """A loaded model that only the garbage collector can free."""

    def __init__(self) -> None:
        self.engine = SimpleNamespace(name="fake", precision="fp32", model=self)


@pytest.mark.usefixtures("udf_kind")
def test_filter_join_and_select_run_the_model_once_for_each_row(
    make_table: Callable[..., DataFrame],
    short_texts: tuple[str, ...],
    model: str,
    trace: Trace,
) -> None:
    docs = make_table(short_texts[:100])
    others = docs.select("id", F.upper("text").alias("shout"))
    result = (
        embed(docs, text="text", role="query", model=model)
        .filter("status = 'ok'")
        .join(others, "id")
        .select("embedding", "n_tokens", "shout")
    )
    assert len(to_arrow(result)) == 100
    assert trace.rows() == 100


def test_the_window_does_not_change_a_vector(
    make_table: Callable[..., DataFrame],
    texts: tuple[str, ...],
    model: str,
    trace: Trace,
) -> None:
    docs = make_table(texts[:300], partitions=1)

    def vectors(window: int) -> tuple[object, list[int]]:
        trace.mark()
        df = embed(docs, text="text", role="query", model=model, sort_window=window)
        return vectors_of(df), [event["rows"] for event in trace.events("window")]

    narrow, narrow_rows = vectors(7)
    wide, wide_rows = vectors(100)
    whole, whole_rows = vectors(5000)
    assert sum(narrow_rows) == sum(wide_rows) == 300
    assert max(narrow_rows) <= BATCH < max(wide_rows)  # one Arrow batch; several Arrow batches
    assert whole_rows == [300]
    assert_close(narrow, whole, INVARIANCE_TOLERANCE)
    assert_close(wide, whole, INVARIANCE_TOLERANCE)


def test_a_checkpoint_that_is_not_the_drivers_is_refused_by_the_executor(
    make_table: Callable[..., DataFrame], new_model: str, trace: Trace
) -> None:
    plan = plan_model(model_spec(new_model, {}))
    assert plan.weights is not None
    other = replace(plan, weights=replace(plan.weights, weights="0" * 64))
    docs = make_table(["a text"])
    vectors = embed_plan(docs, other, TextColumns(text="text", role="query"))
    with pytest.raises(PythonException) as caught:
        to_arrow(vectors)
    error = from_text(str(caught.value))
    assert isinstance(error, ModelError)
    assert f"{new_model} on this executor is not the one that the driver planned with" in str(error)
    assert trace.events("load") == []


def workers(trace: Trace) -> set[int]:
    pids = {event["pid"] for event in trace.events("window")}
    assert pids
    return pids


def loads_by_worker(trace: Trace) -> Counter[int]:
    return Counter(event["pid"] for event in trace.events("load"))


def test_sparks_own_zip_files_are_forgotten_and_can_still_be_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = tmp_path / "spark" / "pyspark.zip", tmp_path / "app" / "job.zip"
    for archive, names in ((own, "zipped_one zipped_two"), (other, "zipped_job")):
        archive.parent.mkdir()
        with zipfile.ZipFile(archive, "w") as file:
            for name in names.split():
                file.writestr(f"{name}.py", "")
        monkeypatch.syspath_prepend(archive)
    for name in ("zipped_one", "zipped_job"):
        importlib.import_module(name)
    monkeypatch.setattr(pyspark, "__file__", str(own / "pyspark" / "__init__.py"))
    forget_zips()
    assert str(own) not in sys.path_importer_cache
    assert str(other) in sys.path_importer_cache  # one of --py-files may be another file by now
    importlib.import_module("zipped_two")
