"""A planted secret, in each form that it takes, at each place where text leaves e5spark."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from e5spark import cli
from e5spark.cli.failure import failed
from e5spark.errors import ConflictError, E5SparkError, InputError
from e5spark.job.history import locked
from e5spark.job.status import Status
from e5spark.tables.ledger.state import read_state
from e5spark.tables.storage.local import LocalStorage
from tests.test_names import PLANTED, SECRETS
from tests.test_report import REPORT

Place = Callable[[str, Path, pytest.CaptureFixture[str]], str]


def log_line(text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    record = logging.LogRecord("e5spark.x", logging.WARNING, "", 0, "Found %s.", (text,), None)
    return cli._Redacted("%(message)s").format(record)


def error(text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return repr(InputError(f"{text} cannot be read."))


def last_line(text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return json.dumps(failed(ConflictError(f"The output is {text}.")))


def unexpected_error(text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return json.dumps(failed(cli._as_e5spark_error(RuntimeError(text))))


def command_line(text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        cli.main(["init", "a", f"--set={text}"])
    return capsys.readouterr().err


def run_record(text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    storage = LocalStorage(text.replace("\n", " "), directory)
    with pytest.raises(InputError), locked(storage, "embed", {}):
        raise InputError(f"{text} cannot be read.")
    return "".join(path.read_text() for path in directory.rglob("*") if path.is_file())


def problem_of_a_status(text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    storage = LocalStorage(text, directory)
    storage.put("_e5spark/manifest.json", b"damaged")
    return "".join(read_state(storage).problems)


def status(text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return json.dumps(Status(output=text, kind="parquet", statuses={}).as_dict())


def run_report(text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    report = replace(REPORT, model=text, output=text)
    return json.dumps(report.as_dict()) + "".join(report.sentences())


PLACES: tuple[Place, ...] = (
    log_line, error, last_line, unexpected_error, command_line, run_record, problem_of_a_status,
    status, run_report,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The handler that a command adds to the root logger is removed again."""
    before = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = before


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_no_secret_leaves_by_any_way(
    place: Place,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number, (name, secret) in enumerate(SECRETS.items()):
        (tmp_path / str(number)).mkdir()
        shown = place(secret, tmp_path / str(number), capsys)
        assert shown, name
        assert PLANTED not in shown, name


def test_a_secret_that_is_only_in_a_row_is_left_in_it() -> None:
    """Redaction is for messages: an error of e5spark keeps all that is no secret."""
    message = "Column 'body' is int; embed needs a string column."
    assert str(E5SparkError(message)) == message
