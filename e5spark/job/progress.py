"""Shows the progress of a run: a line in the log now and then, or a bar on a terminal."""

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from e5spark.job.terminal import terminal
from e5spark.names import redacted
from e5spark.spark import tally

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

log = logging.getLogger("e5spark")
# Between two lines of the log, and two states of the bar.
_LINE_SECONDS, _BAR_SECONDS = 15.0, 0.5


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        rows: Rows that are committed, and those that chunks in flight have embedded.
        total: Rows to embed.
        tokens: Tokens of these rows.
        chunks: Chunks that are committed.
        total_chunks: Chunks of the run.
        seconds: Since the run began to embed.
    """

    rows: int
    total: int
    tokens: int
    chunks: int
    total_chunks: int
    seconds: float

    @property
    def speed(self) -> str:
        """Returns texts and tokens in a second, on average."""
        seconds = max(self.seconds, 1e-9)
        return f"{self.rows / seconds:,.1f} texts/s, {self.tokens / seconds:,.0f} tokens/s"

    @property
    def left(self) -> str:
        """Returns the time that the other rows take, if they are like those before."""
        if not self.rows:
            return "?"
        return _clock((self.total - self.rows) * self.seconds / self.rows)

    @property
    def line(self) -> str:
        """Returns all of it in a line."""
        return (
            f"{self.rows:,} of {self.total:,} rows ({self.rows / self.total:.0%}), {self.chunks} "
            f"of {self.total_chunks} chunks committed, {self.speed}, {self.left} left"
        )


class Progress:
    """Counts rows while they are embedded; all methods may be called from any thread.

    On one machine the tasks of chunks in flight say how far they are. On a cluster only committed
    chunks count, of which there are many.
    """

    def __init__(self, *, rows: int, chunks: int, model: str, on_this_machine: bool) -> None:
        self._total, self._chunks, self._model = rows, chunks, model
        self._rows = self._tokens = self._finished = 0
        self._in_flight: dict[int, tuple[int, Path]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._stack = ExitStack()
        self._directory: Path | None = None
        self._on_this_machine = on_this_machine
        self._started = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._on_this_machine and self._total:
            self._directory = Path(tempfile.mkdtemp(prefix="e5spark-progress-"))
            self._stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        show: Callable[[], None]
        console = terminal()
        if console is None:
            log.info(
                "Embedding %s rows with %s, in %d chunks.",
                f"{self._total:,}",
                redacted(self._model),
                self._chunks,
            )
            show, seconds = self._log, _LINE_SECONDS
        else:
            bar = self._stack.enter_context(_bar(console))
            task = bar.add_task(redacted(self._model), total=self._total, speed="", left="")

            def draw() -> None:
                state = self.state()
                bar.update(task, completed=state.rows, speed=state.speed, left=state.left)

            show, seconds = draw, _BAR_SECONDS
        ticker = threading.Thread(
            target=self._tick, args=(show, seconds), name="e5spark progress", daemon=True
        )
        ticker.start()
        self._stack.callback(ticker.join)
        self._stack.callback(self._ended.set)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def begin(self, number: int, *, rows: int) -> str | None:
        """Returns the directory where the tasks of a chunk note how far they are, if they can.

        A chunk that begins once more counts from the start.
        """
        if self._directory is None:
            return None
        directory = Path(tempfile.mkdtemp(prefix=f"{number}-", dir=self._directory))
        with self._lock:
            self._in_flight[number] = (rows, directory)
        return str(directory)

    def chunk(self, number: int, *, rows: int, tokens: int) -> None:
        """Counts a chunk that is committed.

        Args:
            number: The chunk.
            rows: Rows of the chunk.
            tokens: Tokens of its texts.
        """
        with self._lock:
            self._in_flight.pop(number, None)
            self._rows += rows
            self._tokens += tokens
            self._finished += 1

    def state(self) -> State:
        """Returns how far the run is now."""
        with self._lock:
            rows, tokens = self._rows, self._tokens
            for limit, directory in self._in_flight.values():
                some, some_tokens = tally.read(directory)
                rows += min(some, limit)
                tokens += some_tokens
            return State(
                rows=rows,
                total=self._total,
                tokens=tokens,
                chunks=self._finished,
                total_chunks=self._chunks,
                seconds=time.monotonic() - self._started,
            )

    def _log(self) -> None:
        log.info("%s", self.state().line)

    def _tick(self, show: Callable[[], None], seconds: float) -> None:
        while not self._ended.wait(seconds):
            show()
        show()


def _bar(console: "Console") -> "Bar":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[left]} left"),
        console=console,
        expand=True,
    )


def _clock(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}"
