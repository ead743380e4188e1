"""Commands that end before a Spark session starts, or without the one they had."""

import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from py4j.protocol import Py4JNetworkError

from e5spark import __version__, cli
from e5spark.errors import InputError
from e5spark.job import session as sessions
from tests.cluster import REPOSITORY
from tests.minimal_job import MINIMAL


@pytest.fixture
def job(tmp_path: Path) -> str:
    """The path of a job file that is right."""
    path = tmp_path / "job.toml"
    path.write_text(MINIMAL, "utf-8")
    return str(path)


def outcome(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON document in the last line of stdout."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_python_m_e5spark_is_the_command_line() -> None:
    command = [sys.executable, "-m", "e5spark", "--version"]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == f"e5spark {__version__}"


@pytest.mark.parametrize(
    ("script", "arguments", "error"),
    [
        ("run.py", ["embed", "/nowhere.toml"], "ConfigError"),
        ("run.py", ["compact", "/nowhere.toml"], "ConfigError"),
        ("run.py", ["calibrate", "/nowhere.toml", "--to", "/nowhere.json"], "ConfigError"),
        ("run.py", ["search", "/nowhere.toml", "text"], "ConfigError"),
        ("run.py", ["duplicates", "/nowhere.toml"], "ConfigError"),
        ("run.py", ["doctor", "/nowhere.toml"], "ConfigError"),
        ("run.py", ["status", "/nowhere.toml"], "ConfigError"),
        ("run.py", ["unlock", "/nowhere.toml"], "ConfigError"),
        ("run.py", ["prepare", "./nowhere", "--to", "/nowhere"], "ModelError"),
        ("run.py", ["verify", "./nowhere"], "ModelError"),
        ("run.py", ["init", "/dev/null"], "ConfigError"),
        ("embed.py", ["/nowhere.toml"], "ConfigError"),
    ],
)
def test_each_command_has_a_script_for_spark_submit(
    script: str,
    arguments: list[str],
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "jobs" / script), run_name="__main__")
    document = outcome(capsys)
    assert (ended.value.code, document["error"]) == (2, error)


def test_init_writes_a_job_file_and_keeps_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init"]) == 0
    assert outcome(capsys)["file"] == "embed.toml"
    assert (tmp_path / "embed.toml").exists()
    assert cli.main(["init"]) == 5


@pytest.mark.parametrize("size", ["0", "-1"])
def test_the_size_of_a_file_is_positive(
    job: str, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compact", job, f"--megabytes={size}"]) == 2
    assert outcome(capsys)["message"].startswith(f"--megabytes is {size}; it must be")


def test_without_java_the_message_names_the_versions_and_java_home(job: str) -> None:
    home = str(Path(job).parent / "no-java")
    completed = subprocess.run(
        [sys.executable, "-m", "e5spark", "embed", job],
        env={**os.environ, "JAVA_HOME": home},
        capture_output=True,
        text=True,
        check=False,
    )
    document = json.loads(completed.stdout.splitlines()[-1])
    assert (completed.returncode, document["error"]) == (2, "ConfigError")
    assert "Java 17 or 21" in document["message"]
    assert f"JAVA_HOME is {home!r}" in document["message"]
    assert "Traceback" not in completed.stderr


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connection refused"),
        ConnectionResetError(104, "Connection reset by peer"),
        Py4JNetworkError("Answer from Java side is empty"),
    ],
)
def test_a_java_process_that_was_killed_is_transient(
    job: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        try:
            raise error
        except type(error) as cause:
            raise RuntimeError("while handling that") from cause

    monkeypatch.setattr("e5spark.job.job_file.load", fail)
    assert cli.main(["embed", job]) == 75
    assert "start the same command again" in outcome(capsys)["message"]


def test_a_refused_connection_to_the_hub_is_not_the_java_process() -> None:
    error = InputError("The hub does not answer.")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert sessions.lost_jvm(error) is None
    assert sessions.lost_jvm(ValueError("x")) is None


def test_no_credential_of_a_path_is_printed_or_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # those of pytest
    path = tmp_path / "job.toml"
    path.write_text(MINIMAL.replace("/data/docs", "s3a://KEY:SECRET@bucket/docs"), "utf-8")
    secret = "s3a://KEY:SECRET@bucket/checkpoint"
    overrides = [f"input.checkpoint_location={secret}", f"input.id={secret}", f"x.y={secret}"]
    for override in (*overrides, f"run.partitions={secret}", f"input.format={secret}"):
        assert cli.main(["embed", str(path), "--set", override, "--set", "run.z=1"]) == 2
    cli.log.warning("Somebody else logs %s.", secret)
    output = "".join(capfd.readouterr())
    assert "Somebody else logs s3a://bucket/checkpoint." in output
    assert "SECRET" not in output
