"""Shows the progress of a run: a line in the log for each chunk, or a bar on a terminal."""

import logging
import sys
import time
from threading import Lock

log = logging.getLogger("e5spark")
_WIDTH = 30


class Progress:
    """Counts the rows of finished chunks; ``chunk`` may be called from any thread."""

    def __init__(self, *, rows: int, chunks: int) -> None:
        self._rows, self._chunks = rows, chunks
        self._done = self._finished = self._tokens = 0
        self._started = time.monotonic()
        self._lock = Lock()

    def chunk(self, *, rows: int, tokens: int) -> None:
        """Logs that a chunk is committed.

        Args:
            rows: Rows of the chunk.
            tokens: Tokens of its texts.
        """
        with self._lock:
            self._done += rows
            self._tokens += tokens
            self._finished += 1
            _show(self._line(), share=self._done / self._rows, last=self._done >= self._rows)

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        seconds_left = (self._rows - self._done) * seconds / max(self._done, 1)
        return (
            f"chunk {self._finished} of {self._chunks}: {self._done:,} of {self._rows:,} rows "
            f"({self._done / self._rows:.0%}), {self._done / seconds:,.1f} texts/s, "
            f"{self._tokens / seconds:,.0f} tokens/s, {_clock(seconds_left)} left"
        )


def _show(line: str, *, share: float, last: bool) -> None:
    if not sys.stderr.isatty():
        log.info("%s", line)
        return
    bar = "█" * round(share * _WIDTH)
    sys.stderr.write(f"\r\x1b[K{bar:░<{_WIDTH}} {line}" + ("\n" if last else ""))
    sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}"
