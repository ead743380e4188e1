"""One thing prepared ahead of the one in use."""

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


def prefetch(items: Iterable[Item], prepare: Callable[[Item], Prepared]) -> Iterator[Prepared]:
    """Yields what ``prepare`` makes of each item, in order; the next one is made meanwhile.

    Items are taken, and prepared, in one other thread, never more than one ahead, so that two are
    in memory and not all of them. An error there is raised here, in its item's turn.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[tuple[list[Prepared], BaseException | None]] = SimpleQueue()

    def work() -> None:
        iterator = iter(items)
        while wanted.get():
            try:
                made.put(([prepare(next(iterator))], None))
            except BaseException as error:
                made.put(([], error))
                return

    # A daemon: a worker whose task was cancelled must not wait for a thread that waits for rows.
    Thread(target=work, name="e5spark-ahead", daemon=True).start()
    wanted.put(True)
    try:
        while True:
            value, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            wanted.put(True)
            yield value[0]
    finally:
        wanted.put(False)
