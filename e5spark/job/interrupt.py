"""Ctrl-C and SIGTERM: the command ends in order, with what it has committed.

The signal becomes an exception in the main thread, so that locks are released and Spark is stopped
as after any error. Spark's jobs are cancelled meanwhile: the threads that wait for them would
otherwise wait until the model is through.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

_NAMES = {signal.SIGINT: "Ctrl-C (SIGINT)", signal.SIGTERM: "SIGTERM"}
# A Java process that hangs, or is stopped, must not keep the command. Kubernetes waits for 30 s.
_GRACE_SECONDS = 20.0
# A terminal, make and timeout may each pass on the signal of one key press.
_SAME_SECONDS = 1.0
# A thread that was between two jobs begins the next one: jobs are cancelled until nobody waits.
_CANCEL_SECONDS = 0.2


class Interrupted(BaseException):
    """The command was told to end. No ``Exception``: it is no failure of a step."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"Stopped by {_NAMES[signal.Signals(number)]}. What is committed is safe; start the "
            "same command again, and it continues from there."
        )
        self.exit_code = 128 + number


class Interrupts:
    """The handler of both signals while a command runs.

    Attributes:
        interrupted: What the first signal has raised; None so far.
    """

    current: ClassVar["Interrupts | None"] = None

    def __init__(self, end_at_once: Callable[[Interrupted], None]) -> None:
        self.interrupted: Interrupted | None = None
        self._end_at_once = end_at_once
        self._began = 0.0
        self._ended = threading.Event()
        self._sessions: list[SparkSession] = []
        self._abandoned: list[Any] = []
        # nohup and the shell's & have a process ignore a signal.
        self._before = {
            number: handler
            for number in _NAMES
            if (handler := signal.getsignal(number)) is not signal.SIG_IGN
        }

    def install(self) -> None:
        """Takes the signals; once more after PySpark, which takes SIGINT when a session starts."""
        for number in _NAMES:
            signal.signal(number, self if number in self._before else signal.SIG_IGN)

    def restore(self) -> None:
        """Gives the signals back."""
        self._ended.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raises at the first signal, and ends the process at the second."""
        if self.interrupted is not None:
            if time.monotonic() - self._began > _SAME_SECONDS:
                self._end_at_once(Interrupted(number))
            return
        self._began = time.monotonic()
        self.interrupted = Interrupted(number)
        for session in self._sessions:
            self._leave_connection(session)
        for work in (self._cancel_jobs, self._end_late):
            threading.Thread(target=work, name="e5spark interrupt", daemon=True).start()
        raise self.interrupted

    def _leave_connection(self, session: SparkSession) -> None:
        """Gives this thread a new connection to Spark's JVM.

        The old one may be waiting for the end of a call, whose answer the next call would take for
        its own. It stays open, because the interrupted frames still refer to it.
        """
        with suppress(PySparkException, AttributeError):  # Connect; a gateway without threads
            gateway: Any = session.sparkContext._gateway
            connection = gateway._gateway_client.get_thread_connection()
            if connection is not None:
                self._abandoned.append((connection.socket, connection.stream))
                connection.socket = connection.stream = None

    def _cancel_jobs(self) -> None:
        while True:
            for session in self._sessions:
                with suppress(Exception):  # the JVM is gone: nothing runs any more
                    _cancel(session)
            if self._ended.wait(_CANCEL_SECONDS):
                return

    def _end_late(self) -> None:
        if not self._ended.wait(_GRACE_SECONDS) and self.interrupted is not None:
            self._end_at_once(self.interrupted)

    @contextmanager
    def cancelling(self, session: SparkSession) -> Iterator[None]:
        """Cancels the jobs of a session if a signal arrives inside the block."""
        self.install()
        self._sessions.append(session)
        try:
            yield
        finally:
            self._sessions.remove(session)


@contextmanager
def interruptible(end_at_once: Callable[[Interrupted], None]) -> Iterator[Interrupts | None]:
    """Raises ``Interrupted`` inside the block at Ctrl-C or SIGTERM.

    Args:
        end_at_once: Ends the process: at a second signal, or if the first has not ended it in 20 s.

    Yields:
        The handler; None outside the main thread, which alone may have one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    interrupts, before = Interrupts(end_at_once), Interrupts.current
    Interrupts.current = interrupts
    interrupts.install()
    try:
        yield interrupts
    finally:
        interrupts.restore()
        Interrupts.current = before


@contextmanager
def cancelled_when_interrupted(session: SparkSession) -> Iterator[None]:
    """Cancels the session's jobs if a signal of ``interruptible`` arrives inside the block."""
    interrupts = Interrupts.current
    if interrupts is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    with interrupts.cancelling(session):
        yield


def exit_now(code: int) -> None:
    """Ends the process without any cleaning up: Spark's JVM ends when its standard input does."""
    os._exit(code)


def _cancel(session: SparkSession) -> None:
    try:
        context = session.sparkContext
    except PySparkException:  # Connect has none
        session.interruptAll()
    else:
        # interruptAll of a classic session came with 4.0, and leaves out a stream's own session.
        context.cancelAllJobs()
