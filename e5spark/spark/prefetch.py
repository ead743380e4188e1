"""Items prepared one ahead, in a thread."""

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


def prefetch(items: Iterable[Item], prepare: Callable[[Item], Prepared]) -> Iterator[Prepared]:
    """Yields ``prepare(item)`` for each item, in order, while a thread prepares the next one.

    The thread is never more than one item ahead, so at most two are in memory. An error in the
    thread is raised when the turn of its item comes.
    """
    requests: SimpleQueue[bool] = SimpleQueue()
    results: SimpleQueue[tuple[list[Prepared], BaseException | None]] = SimpleQueue()

    def work() -> None:
        iterator = iter(items)
        while requests.get():
            try:
                results.put(([prepare(next(iterator))], None))
            except BaseException as error:
                results.put(([], error))
                return

    # A daemon: a worker whose task was cancelled must not wait for a thread that waits for rows.
    Thread(target=work, name="e5spark-prefetch", daemon=True).start()
    requests.put(True)
    try:
        while True:
            values, error = results.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            requests.put(True)
            yield values[0]
    finally:
        requests.put(False)
