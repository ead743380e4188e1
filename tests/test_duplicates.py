"""Groups of duplicates: connected components, whatever the order of the edges."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from e5spark.search.duplicates import _connect, components

EDGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60)


def flood(edges: list[tuple[int, int]], count: int) -> list[int]:
    """The lowest number that a walk from each number reaches."""
    neighbours = {number: {number} for number in range(count)}
    for left, right in edges:
        neighbours[left].add(right)
        neighbours[right].add(left)
    reached = []
    for number in range(count):
        seen, todo = {number}, [number]
        while todo:
            todo += [other for other in neighbours[todo.pop()] if other not in seen]
            seen |= set(todo)
        reached.append(min(seen))
    return reached


@given(edges=EDGES)
def test_each_number_gets_the_lowest_that_is_connected_to_it(edges):
    left, right = (np.array([edge[end] for edge in edges], np.int64) for end in (0, 1))
    assert components(left, right, 31).tolist() == flood(edges, 31)


@given(edges=EDGES.filter(bool), cut=st.integers(0, 60))
def test_groups_of_parts_connect_to_the_groups_of_the_whole(edges, cut):
    def batch(part: list[tuple[int, int]]) -> pa.RecordBatch:
        ends = [pa.array([f"id{edge[end]:02}" for edge in part], pa.string()) for end in (0, 1)]
        return pa.RecordBatch.from_arrays(ends, ["id", "other_id"])

    forests = [row for part in (edges[:cut], edges[cut:]) for row in _connect([batch(part)])]
    (joined,) = _connect(forests)
    expected = flood(edges, 31)
    assert dict(zip(*(column.to_pylist() for column in joined.columns), strict=True)) == {
        f"id{number:02}": f"id{expected[number]:02}" for edge in edges for number in edge
    }
