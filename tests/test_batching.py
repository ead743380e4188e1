import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5spark.encoder.batching import Batch, micro_batches, padded_width
from e5spark.errors import OptionError

LENGTHS = st.lists(st.integers(1, 600), max_size=200)
BUDGETS = st.integers(1, 5000)
STEPS = st.sampled_from([1, 8, 16])


@given(lengths=LENGTHS, budget=BUDGETS)
def test_every_row_is_in_exactly_one_batch(lengths, budget):
    rows = [int(row) for batch in micro_batches(lengths, budget) for row in batch]
    assert sorted(rows) == list(range(len(lengths)))


@given(lengths=LENGTHS, budget=BUDGETS, step=STEPS)
def test_padded_batches_hold_the_budget_except_a_long_row_alone(lengths, budget, step):
    for batch in micro_batches(lengths, budget, step=step):
        assert len(batch) * width(lengths, batch, step) <= budget or len(batch) == 1


@given(lengths=LENGTHS, budget=BUDGETS, step=STEPS)
def test_batches_are_as_full_as_the_budget_allows(lengths, budget, step):
    for batch in micro_batches(lengths, budget, step=step)[:-1]:
        assert (len(batch) + 1) * width(lengths, batch, step) > budget


@given(lengths=LENGTHS, budget=BUDGETS, step=STEPS)
def test_full_batches_of_one_width_have_one_shape(lengths, budget, step):
    batches = micro_batches(lengths, budget, step=step)[:-1]
    shapes = {(width(lengths, batch, step), len(batch)) for batch in batches}
    assert len(shapes) == len({shape[0] for shape in shapes})


@given(lengths=LENGTHS, budget=BUDGETS)
def test_rows_go_longest_first_and_equal_lengths_keep_their_order(lengths, budget):
    rows = [int(row) for batch in micro_batches(lengths, budget) for row in batch]
    assert rows == sorted(rows, key=lambda row: (-lengths[row], row))


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    step=STEPS,
)
def test_rows_are_filled_up_to_the_width_of_their_batch(lengths, step):
    ids = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    batch = Batch(ids=ids, lengths=np.array(lengths))
    padded = batch.padded(0, step=step)
    assert padded.shape[1] == padded_width(max(lengths), step)
    assert padded[padded > 0].tolist() == ids.tolist()
    assert [(row > 0).sum() for row in padded] == lengths


def width(lengths, batch, step):
    return padded_width(max(lengths[row] for row in batch), step)


@given(longest=st.integers(1, 2000), step=STEPS)
def test_a_width_holds_its_longest_row_and_little_more(longest, step):
    actual = padded_width(longest, step)
    assert 0 <= actual - longest <= (0 if step == 1 else longest / 4)
    assert padded_width(actual, step) == actual


def test_512_tokens_have_few_widths():
    assert {padded_width(longest, 1) for longest in range(1, 513)} == set(range(1, 513))
    widths = sorted({padded_width(longest, 8) for longest in range(1, 513)})
    assert widths == [
        *range(1, 8),
        *range(8, 16, 2),
        *range(16, 32, 4),
        *range(32, 129, 8),
        *range(144, 257, 16),
        *range(288, 513, 32),
    ]
    assert {width for width in widths if width % 16 and 64 < width < 128} == {72, 88, 104, 120}
    assert len({padded_width(longest, 16) for longest in range(1, 513)}) == len(widths) - 4


def test_batches_of_a_small_example():
    batches = micro_batches([3, 9, 3, 4, 20], 12)
    assert [batch.tolist() for batch in batches] == [[4], [1], [3, 0, 2]]


@pytest.mark.parametrize("lengths", [[], np.array([], dtype=np.int64)])
def test_no_rows_make_no_batches(lengths):
    assert micro_batches(lengths, 100) == []


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_one_is_refused(budget):
    with pytest.raises(OptionError, match=f"token_budget is {budget}"):
        micro_batches([1, 2], budget)
