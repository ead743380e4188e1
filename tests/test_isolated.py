"""An encoder in a process of its own: what ends the process, and what that costs."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5spark.encoder import Encoder
from e5spark.encoder.child import Assignment
from e5spark.encoder.encoder import concatenated
from e5spark.encoder.isolated import IsolatedEncoder
from e5spark.errors import E5SparkError, TransientError
from e5spark.model.resolve import resolve
from e5spark.model.spec import model_spec
from tests import killers
from tests.oracle import INVARIANCE_TOLERANCE, assert_close


@pytest.fixture
def isolated(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., IsolatedEncoder]]:
    """Makes encoders whose processes die of the texts of ``killers``."""
    monkeypatch.syspath_prepend(killers.arm(tmp_path))
    made: list[IsolatedEncoder] = []

    def make(**options: Any) -> IsolatedEncoder:
        resolved = resolve(model_spec(model, {"engine": "openvino", **options}))
        made.append(
            IsolatedEncoder(
                Assignment(
                    files=resolved.files,
                    recipe=resolved.recipe,
                    spec=resolved.spec,
                    threads=1,
                    probe="passage: ",
                )
            )
        )
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()


def test_texts_that_end_the_process_are_errors_and_all_others_have_their_vectors(
    isolated: Callable[..., IsolatedEncoder],
    encoders: Callable[..., Encoder],
    texts: tuple[str, ...],
) -> None:
    deadly = {
        3: (killers.SIGKILL, "The worker process died: signal 9; perhaps out of memory."),
        40: (killers.SEGFAULT, "The worker process died: signal 11."),
        41: (killers.MEMORY, "MemoryError"),
        77: (killers.LOOP, "The text was not encoded within text_deadline, 2 s."),
    }
    innocent = list(texts[:80])
    rows = [deadly[row][0] if row in deadly else text for row, text in enumerate(innocent)]
    prefixes = ["query: ", "passage: "] * 40
    encoding = isolated(text_deadline=2).prepare(rows, prefixes)()
    assert encoding.errors == {row: message for row, (_, message) in deadly.items()}
    expected = encoders().encode_rows(innocent, prefixes)
    alive = [row for row in range(80) if row not in deadly]
    assert_close(encoding.vectors[alive], expected.vectors[alive], INVARIANCE_TOLERANCE)
    assert not encoding.vectors[list(deadly)].any()
    for name in ("n_tokens", "truncated", "already_prompted"):
        assert np.array_equal(getattr(encoding, name)[alive], getattr(expected, name)[alive])
    assert np.array_equal(encoding.owner, np.arange(80))


def test_a_model_that_ends_every_process_is_one_clear_error(
    isolated: Callable[..., IsolatedEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(killers.ALL, "")
    with pytest.raises(E5SparkError, match=r"3 times in a row: .* signal 9; perhaps out of memory"):
        isolated().encode_rows(["one", "two"], ["", ""])


def test_a_process_that_is_told_to_end_blames_no_text(
    isolated: Callable[..., IsolatedEncoder],
) -> None:
    with pytest.raises(TransientError, match=r"told to end by signal 15, .* no text is at fault"):
        isolated().encode_rows(["one", killers.SIGTERM], ["", ""])


def test_windows_of_encodings_put_together_are_those_of_all_texts(
    encoders: Callable[..., Encoder], texts: tuple[str, ...]
) -> None:
    encoder = encoders(long_text="split", max_tokens=48, overlap=4)
    rows, prefixes = list(texts[:30]), ["passage: "] * 30
    parts = [encoder.encode_rows(rows[i : i + 7], prefixes[i : i + 7]) for i in range(0, 30, 7)]
    together, expected = concatenated(parts, dim=encoder.dim), encoder.encode_rows(rows, prefixes)
    assert together.windows == expected.windows
    assert np.array_equal(together.owner, expected.owner)
    assert np.array_equal(together.n_tokens, expected.n_tokens)
    assert_close(together.vectors, expected.vectors, INVARIANCE_TOLERANCE)


def test_no_text_has_an_encoding_without_rows() -> None:
    assert concatenated([], dim=8).vectors.shape == (0, 8)
