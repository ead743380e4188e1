"""The arithmetic of a dry run: intervals, time, bytes and money."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5spark.job.chunks import Sizes
from e5spark.job.estimate import Estimate, Rows, embed_seconds, mean, rewritten_bytes, share
from e5spark.spark.executors import Executors
from e5spark.spark.speed import Measurement
from e5spark.tables.sinks.protocol import Size

SIZES = Sizes(rows=20_000, tasks=2, concurrent_chunks=2)


def measurement(**fields: Any) -> Measurement:
    """What a task says that has taken 4 s for 100 rows of one text of 10 tokens."""
    rows = fields.pop("rows", 100)
    values: dict[str, Any] = {
        "texts": 1,
        "rows": rows,
        "statuses": {"ok": rows},
        "truncated": 0,
        "already_prompted": 0,
        "tokens": np.full(rows, 10),
        "lost": np.zeros(rows, dtype=np.int64),
        "windows": np.ones(rows, dtype=np.int64),
        "engine": "torch",
        "device": "cpu",
        "load_seconds": 1.0,
        "tokenize_seconds": 1.0,
        "encode_seconds": 3.0,
        "shape_seconds": 0.0,
        "measured": 1.0,
        "spread": 0.0,
        "work_bytes": 30.0,
        "row_bytes": 20.0,
        "vector_bytes": 1500.0,
    }
    return Measurement(**{**values, **fields})


def estimate(new: int = 100, changed: int = 0, **fields: Any) -> Estimate:
    rows = Rows(
        rows_in=new + changed,
        duplicates=0,
        new=new,
        changed=changed,
        refreshed=0,
        unchanged=0,
        deleted=0,
        recovered=0,
    )
    values: dict[str, Any] = {
        "rows": rows,
        "measurements": [measurement()],
        "sizes": SIZES,
        "executors": Executors(count=1, cores=2, slots=2, dynamic=False),
        "compare_seconds": 2.0,
        "canary_seconds": 1.0,
        "table": None,
        "replaced": 0,
        "price": 0.0,
    }
    return Estimate(**{**values, **fields})


samples = st.lists(st.integers(0, 10_000), min_size=2, max_size=50).map(np.array)


@given(samples, st.integers(0, 10_000))
def test_interval_of_a_mean_holds_it_and_closes_when_every_row_was_counted(
    values: np.ndarray, unsampled: int
) -> None:
    interval = mean(values, len(values) + unsampled)
    assert interval.low <= interval.value <= interval.high
    assert interval.value == pytest.approx(values.mean())
    if not unsampled:
        assert interval.low == interval.high == interval.value


def test_95_percent_intervals_hold_the_truth_in_about_95_of_100_samples() -> None:
    random = np.random.default_rng(0)
    population = random.lognormal(4, 0.8, 20_000).astype(np.int64)
    is_long = population > 200
    hits = [0, 0]
    for _ in range(400):
        rows = random.choice(len(population), 400, replace=False)
        tokens = mean(population[rows], len(population))
        hits[0] += tokens.low <= population.mean() <= tokens.high
        long = share(int(is_long[rows].sum()), len(rows), len(population))
        hits[1] += long.low <= is_long.mean() <= long.high
    assert [0.92 <= count / 400 <= 0.98 for count in hits] == [True, True], hits


def test_one_row_of_many_says_nothing_of_the_others() -> None:
    assert mean(np.array([7]), 2).high == math.inf
    assert mean(np.array([7]), 1).high == 7


@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 10_000))
def test_interval_of_a_share_is_a_share(count: int, others: int, unsampled: int) -> None:
    sampled = count + others
    interval = share(count, sampled, sampled + unsampled)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    if not unsampled:
        assert interval.low == interval.high


def test_a_property_that_no_sampled_row_has_may_still_be_there() -> None:
    assert share(0, 1000, 1_000_000).high == pytest.approx(0.0038, abs=0.0002)


@given(
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(1, 1000),
    st.integers(1, 40),
    st.integers(1, 4),
)
def test_more_rows_never_take_less(
    some: int, more: int, slots: int, chunk_tasks: int, concurrent_chunks: int
) -> None:
    """In steps of what one task gets at least: 501 rows in two tasks take less than 500 in one."""
    sizes = Sizes(rows=500 * chunk_tasks, tasks=slots, concurrent_chunks=concurrent_chunks)
    times = [embed_seconds(500 * rows, 0.01, sizes, slots) for rows in (some, some + more)]
    assert times[0] <= times[1] + 1e-6


@given(st.integers(1, 10**8), st.integers(1, 1000))
def test_executors_share_the_work_and_are_never_faster_than_that(rows: int, slots: int) -> None:
    sizes = Sizes(rows=max(20_000, 10_000 * slots), tasks=slots, concurrent_chunks=2)
    seconds = embed_seconds(rows, 0.01, sizes, slots)
    assert seconds >= rows * 0.01 / slots * 0.999
    if rows >= 100 * sizes.rows:  # the last chunk no longer counts
        assert seconds <= rows * 0.01 / slots * 1.01


def test_few_rows_do_not_fill_a_cluster() -> None:
    """1,200 rows are three tasks of 400 rows, whatever the number of slots."""
    sizes = Sizes(rows=1_000_000, tasks=100, concurrent_chunks=2)
    assert embed_seconds(1200, 0.01, sizes, slots=100) == pytest.approx(4.0)


def test_small_chunks_do_not_fill_a_cluster() -> None:
    """Two chunks of 1,000 rows at a time have four tasks."""
    sizes = Sizes(rows=1000, tasks=100, concurrent_chunks=2)
    assert embed_seconds(100_000, 0.01, sizes, slots=100) == pytest.approx(100_000 / 4 * 0.01)


def test_time_of_a_row_is_that_of_its_tokenizing_and_its_passes() -> None:
    assert estimate().row_seconds == pytest.approx(0.04)
    beside = estimate(measurements=[measurement(device="cuda")])
    assert beside.row_seconds == pytest.approx(0.03)  # a thread tokenizes while the GPU works


def test_seconds_are_the_sum_of_the_steps() -> None:
    result = estimate(new=10_000)
    assert result.steps.embed == pytest.approx(10_000 * 0.04 / 2)
    assert result.steps.start == pytest.approx(2.0)
    assert result.seconds == pytest.approx(sum(vars(result.steps).values()))


def test_cost_is_that_of_all_executors_for_the_whole_run() -> None:
    executors = Executors(count=10, cores=80, slots=10, dynamic=False)
    result = estimate(new=1_000_000, executors=executors, price=0.4)
    assert result.cost == pytest.approx(result.seconds / 3600 * 10 * 0.4)
    assert result.as_dict()["cost"] == round(result.seconds / 3600 * 4, 2)
    assert estimate(price=0.0).cost is None


def test_bytes_are_those_of_the_columns_and_the_vectors_of_good_texts() -> None:
    half = measurement(statuses={"ok": 50, "null_text": 50})
    assert estimate(new=1000, measurements=[half]).output_bytes == 1000 * (20 + 40 + 750)
    assert estimate(new=1000).temporary_bytes == 30_000


def test_a_split_text_has_its_columns_in_each_of_its_rows() -> None:
    windows = measurement(windows=np.full(100, 3))
    assert estimate(new=1000, measurements=[windows]).output_bytes == 3000 * (20 + 40 + 1500)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**4))
def test_rewritten_files_are_at_most_all_and_more_rows_rewrite_no_less(
    some: int, more: int, files: int
) -> None:
    size = Size(files=files, bytes=10**9)
    first, second = rewritten_bytes(size, some), rewritten_bytes(size, some + more)
    assert 0 <= first <= second <= size.bytes
    assert (first > 0) == (some > 0)


def test_a_run_with_nothing_to_do_only_compares() -> None:
    result = estimate(new=0, measurements=[], canary_seconds=0.0, price=1.0)
    document = result.as_dict()
    assert (document["to_embed"], document["texts"], document["output_bytes"]) == (0, 0, 0)
    assert document["tokens"] == {"value": 0, "low": 0, "high": 0}
    assert result.seconds == 2.0
    assert document["rows_per_second"] is None


def test_files_of_a_size_make_larger_chunks() -> None:
    """A row has 1,530 bytes: 1 MB has 686 rows, and a chunk of 1,000 rows becomes one file."""
    sizes = Sizes(rows=100, tasks=2, concurrent_chunks=2, file_bytes=1 << 20)
    assert estimate(new=1372, sizes=sizes).chunks == 2


def test_tokens_of_several_texts_of_a_row_are_sampled_together() -> None:
    """Row r has 10 tokens in its first text and r in its second."""
    tokens = np.concatenate([np.full(100, 10), np.arange(100)])
    parts = [measurement(texts=2, tokens=tokens, lost=tokens * 0, windows=tokens * 0 + 1)]
    result = estimate(measurements=parts)
    assert result.texts == 200
    assert result.tokens.value == result.tokens.high == 1000 + sum(range(100))
