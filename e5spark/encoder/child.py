"""A process that encodes texts for another process, which outlives it if a text ends it.

``e5spark.encoder.isolated`` starts it, with the number of a socket as its only argument.
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from e5spark.encoder.encoder import Encoder, Encoding
from e5spark.encoder.loading import load
from e5spark.errors import E5SparkError, missing_package
from e5spark.model.checkpoint import Files
from e5spark.model.registry import Recipe
from e5spark.model.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a child loads, and how it runs; its first message.

    Attributes:
        files: A checkpoint, or a prepared model.
        recipe: How vectors are computed.
        spec: The options, with a resolved precision and device.
        threads: CPU threads of the forward passes; None leaves the engine's own choice.
        probe: A prefix: with it the child encodes a word, to show that it can.
    """

    files: Files
    recipe: Recipe
    spec: ModelSpec
    threads: int | None
    probe: str


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The first answer of a child: it has loaded the model, and has encoded a word.

    Attributes:
        engine: The name of the engine.
        precision: The precision that it computes in.
    """

    engine: str
    precision: str


Texts = tuple[Sequence[str], Sequence[str]]  # and their prefixes
Answer = Ready | Encoding | E5SparkError | str  # a string says why these texts failed


def main() -> None:
    """Answers every request with an ``Encoding``, an error of the engine, or a failure's reason."""
    connection = Connection(int(sys.argv[1]))
    _volunteer()
    requests: SimpleQueue[Assignment | Texts] = SimpleQueue()
    Thread(target=_read, args=(connection, requests), daemon=True).start()
    assignment = requests.get()
    assert isinstance(assignment, Assignment)
    try:
        encoder = _load(assignment)
    except E5SparkError as error:
        connection.send(error)
        return
    connection.send(Ready(engine=encoder.engine.name, precision=encoder.engine.precision))
    deadline = assignment.spec.text_deadline or 0.0
    while True:
        request = requests.get()
        assert not isinstance(request, Assignment)
        # The default action of SIGALRM ends a process from outside, even one that is in an
        # endless loop of C code and never runs Python's own signal handlers.
        signal.setitimer(signal.ITIMER_REAL, deadline)
        answer = _answer(encoder, *request)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        connection.send(answer)


def _read(
    connection: "Connection[Answer, Assignment | Texts]",
    requests: "SimpleQueue[Assignment | Texts]",
) -> None:
    """Reads requests, and ends the process with its parent, even in the middle of a text."""
    try:
        while True:
            requests.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _volunteer() -> None:
    """Makes this the process that the kernel ends if memory runs out: not a JVM or the parent."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")


def _load(assignment: Assignment) -> Encoder:
    spec = assignment.spec
    try:
        loaded = load(
            assignment.files,
            engine=spec.engine,
            precision=spec.precision,
            device=spec.device,
            threads=assignment.threads,
        )
    except ModuleNotFoundError as error:
        option_error = missing_package(f"ModuleNotFoundError: {error}")
        if option_error is None:
            raise
        raise option_error from error
    encoder = Encoder(loaded, assignment.recipe, spec)
    encoder.encode_rows(["a"], [assignment.probe])
    return encoder


def _answer(encoder: Encoder, texts: Sequence[str], prefixes: Sequence[str]) -> Answer:
    try:
        return encoder.encode_rows(texts, prefixes)
    except E5SparkError as error:
        return error
    except BaseException as error:  # a panic of the tokenizer is no Exception
        return f"{type(error).__name__}: {error}".removesuffix(": ")
