"""An encoder in a process of its own: a text that ends the process costs no other text.

Texts go to the child process in groups of similar length. If the child dies, the texts that it was
given go to a new child one by one, and the text that ends it again is an error. One by one, because
a new child has to load the model, which takes longer than to encode a group's texts alone.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Pipe

import numpy as np

from e5spark.encoder.batching import Indices, Longs
from e5spark.encoder.child import Answer, Assignment, Ready, Texts
from e5spark.encoder.encoder import Encoding, concatenated
from e5spark.encoder.long_text import Window
from e5spark.errors import E5SparkError, TransientError
from e5spark.model import prompts

# The most texts and characters of a group. With 256 the child is as fast as its parent would be,
# with 64 it is 3 % slower (MiniLM, 1,500 texts, 2 cores).
_GROUP_TEXTS, _GROUP_CHARS = 256, 1 << 18
# A model that has died this often in a row before it had encoded a word cannot be loaded.
_STARTS = 3
# After this many texts that have ended the child, and none that it has encoded, the model or the
# worker's memory is at fault.
_DEATHS = 20
_SECONDS_TO_END = 30
# Whoever sends one of these ends the executor or its machine; no text does.
_REQUESTS_TO_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# Not -m, which would make a second copy of the module and of its classes.
_COMMAND = "from e5spark.encoder.child import main; main()"


class IsolatedEncoder:
    """Encodes sort windows in a child process, which it replaces when it dies."""

    def __init__(self, assignment: Assignment) -> None:
        """Starts nothing: the first window does.

        Args:
            assignment: The model, for the child.
        """
        self.recipe = assignment.recipe
        self._assignment = assignment
        self._child: _Child | None = None
        self._engine: Ready | None = None
        self._group_texts = _GROUP_TEXTS
        seconds = assignment.spec.text_deadline or 0.0
        self._late = f"The text was not encoded within text_deadline, {seconds:g} s."
        self._has_encoded = False
        self._lost = 0

    @property
    def is_running(self) -> bool:
        """Returns whether there is a child with a loaded model."""
        return self._child is not None

    def start(self) -> Ready:
        """Returns the engine of the child, which is started if there is none.

        Raises:
            E5SparkError: If the model cannot be loaded, or ends every child that loads it.
        """
        if self._child is None or self._engine is None:
            self._engine = self._started()
        return self._engine

    def prepare(
        self,
        texts: Sequence[str],
        prefixes: Sequence[str],
        on_batch: Callable[[float, int], None] | None = None,  # the child does not say
    ) -> Callable[[], Encoding]:
        """Returns a function that encodes a sort window of texts; see ``encode_rows``."""
        return partial(self.encode_rows, texts, prefixes)

    def encode_rows(self, texts: Sequence[str], prefixes: Sequence[str]) -> Encoding:
        """Returns the encoding of one sort window of texts, as ``Encoder.encode_rows`` does.

        A text that ends the child or is not encoded within ``text_deadline`` seconds, has an
        error.

        Args:
            texts: Texts without prompts.
            prefixes: The prefix of each text.

        Raises:
            E5SparkError: If the engine fails whatever the texts are.
            TransientError: If the child was told to end, by somebody who stops the executor.
        """
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        # The shortest first: they show early whether the model works at all.
        order = np.argsort(lengths, kind="stable")
        parts = [
            part
            for group in self._groups(order, lengths)
            for part in self._encode([texts[n] for n in group], [prefixes[n] for n in group])
        ]
        return concatenated(parts, dim=self.recipe.dim).take(np.argsort(order))

    def close(self) -> None:
        """Ends the child process."""
        if self._child is not None:
            self._child.kill()
        self._child = None

    @property
    def _model(self) -> str:
        spec = self._assignment.spec
        return f"The model {spec.checkpoint or spec.model}"

    def _started(self) -> Ready:
        answer: Answer = ""
        for _ in range(_STARTS):
            self._child = _Child(self._assignment.threads)
            answer = self._ask(self._assignment)
            if isinstance(answer, Ready):
                return answer
        raise E5SparkError(
            f"{self._model} has ended its process before it had encoded a word, {_STARTS} times in "
            f"a row: {answer} Give the worker more memory, or check the model with e5spark verify."
        )

    def _groups(self, order: Indices, lengths: Longs) -> Iterator[Indices]:
        begin = 0
        while begin < len(order):
            total = np.cumsum(lengths[order[begin : begin + self._group_texts]])
            size = max(1, int(np.searchsorted(total, _GROUP_CHARS, "right")))
            yield order[begin : begin + size]
            begin += size

    def _encode(self, texts: Sequence[str], prefixes: Sequence[str]) -> list[Encoding]:
        """The encodings of a group: of all its texts, or of each if they cannot be encoded."""
        self.start()
        answer = self._ask((texts, prefixes))
        if isinstance(answer, Encoding):
            self._has_encoded = True
            return [answer]
        if len(texts) == 1:
            self._check_lost(str(answer))
            return [self._failed(texts[0], str(answer))]
        parts = [
            part
            for text, prefix in zip(texts, prefixes, strict=True)
            for part in self._encode([text], [prefix])
        ]
        if answer == self._late and not any(part.errors.get(0) == self._late for part in parts):
            self._group_texts = max(1, self._group_texts // 2)  # together they take too long
        return parts

    def _check_lost(self, reason: str) -> None:
        self._lost += 1
        if not self._has_encoded and self._lost >= _DEATHS:
            raise E5SparkError(
                f"{self._model} has encoded none of {self._lost} texts, each in a process of its "
                f"own: {reason} Give the worker more memory, or check the model with e5spark "
                "verify."
            )

    def _failed(self, text: str, message: str) -> Encoding:
        marked = prompts.already_prompted(self.recipe.prompts, [text])
        return Encoding(
            vectors=np.zeros((1, self.recipe.dim), np.float32),
            n_tokens=np.zeros(1, np.int32),
            truncated=np.zeros(1, bool),
            owner=np.zeros(1, np.int32),
            windows=[Window(start=0, end=0)] if self.recipe.long_text == "split" else [],
            already_prompted=np.array(marked, bool),
            errors={0: message},
        )

    def _ask(self, request: Assignment | Texts) -> Answer:
        """The child's answer; why it died, if it did."""
        assert self._child is not None
        try:
            answer = self._child.ask(request)
        except (EOFError, OSError):
            code = self._child.wait()
            self._child = None
            if -code in _REQUESTS_TO_END:
                raise TransientError(
                    f"The process that encodes texts was told to end by signal {-code}, so its "
                    "executor is being stopped; no text is at fault. Start the same command again."
                ) from None
            return self._late if code == -signal.SIGALRM else _death(code)
        if isinstance(answer, E5SparkError):
            self.close()
            raise answer
        return answer


class _Child:
    """A running child process."""

    def __init__(self, threads: int | None) -> None:
        self._connection, theirs = Pipe()
        environment = {
            **os.environ,
            # Packages that Spark has shipped are on this path only.
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAYON_NUM_THREADS": str(threads or 1),
            "TOKENIZERS_PARALLELISM": "true",
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # a Spark worker's standard output may belong to Spark
                env=environment,
                pass_fds=[theirs.fileno()],
            )

    def ask(self, request: Assignment | Texts) -> Answer:
        self._connection.send(request)
        answer: Answer = self._connection.recv()
        return answer

    def wait(self) -> int:
        """Returns the exit code of the process, which has closed its end of the connection."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_SECONDS_TO_END)
        return self.kill()

    def kill(self) -> int:
        """Ends the process, and returns its exit code."""
        self._connection.close()
        self._process.kill()
        return self._process.wait()


def _death(code: int) -> str:
    if code >= 0:
        return f"The worker process died: exit code {code}."
    hint = "; perhaps out of memory" if -code in (signal.SIGKILL, signal.SIGABRT) else ""
    return f"The worker process died: signal {-code}{hint}."
