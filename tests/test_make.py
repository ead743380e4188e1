"""make java, and the files in conf/ that others name."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster import REPOSITORY

NEEDED = ("make", "sed", "head")
# One of them counts the cores, for other targets.
COUNTERS = ("nproc", "sysctl")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH of the few tools that the target needs, and no java."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in (*NEEDED, *COUNTERS):
        program = shutil.which(name)
        assert program or name in COUNTERS, f"these tests need {name}"
        if program:
            (directory / name).symlink_to(program)
    return directory


@pytest.mark.parametrize("version", ["17.0.15", "21.0.2"])
def test_make_java_is_silent_about_a_java_that_spark_runs_on(tools: Path, version: str) -> None:
    fake_java(tools / "java", version)
    completed = make_java(tools)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("version", "major"), [("11.0.20", "11"), ("1.8.0_392", "1"), ("25", "25"), (None, "none")]
)
def test_make_java_says_in_one_line_what_to_do_about_any_other(
    tools: Path, version: str | None, major: str
) -> None:
    if version is not None:
        fake_java(tools / "java", version)
    completed = make_java(tools)
    assert completed.returncode != 0
    message, trailer = completed.stderr.splitlines()
    assert message.startswith(
        f"e5spark needs Java 17 or 21, found {major}. Install one (Debian: apt-"
    )
    assert message.endswith("and set JAVA_HOME to it.")
    assert trailer.startswith("make: ***")
    assert completed.stdout == ""


def test_java_home_wins_over_the_path(tools: Path, tmp_path: Path) -> None:
    fake_java(tools / "java", "11.0.20")
    (tmp_path / "jdk" / "bin").mkdir(parents=True)
    fake_java(tmp_path / "jdk" / "bin" / "java", "17.0.15")
    assert make_java(tools, JAVA_HOME=str(tmp_path / "jdk")).returncode == 0


def test_every_file_in_conf_and_jobs_that_is_named_exists() -> None:
    sources = [REPOSITORY / "Makefile", REPOSITORY / "README.md", *REPOSITORY.glob("conf/*")]
    sources += [*REPOSITORY.glob("jobs/*.py"), *REPOSITORY.glob("e5spark/**/*.py")]
    named = {
        (path.name, name)
        for path in sources
        for name in re.findall(
            r"(?:conf|jobs)/[\w-]+\.(?:toml|conf|txt|py)", path.read_text("utf-8")
        )
    }
    assert {"conf/spark-local.conf", "conf/embed.toml", "jobs/embed.py"} <= {
        name for _, name in named
    }
    assert [(file, name) for file, name in sorted(named) if not (REPOSITORY / name).is_file()] == []


def test_every_test_file_that_a_tier_lists_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    lists = re.findall(r"patsubst %,tests/test_%\.py,([\w\\\s]+)\)", makefile)
    assert len(lists) == 2
    names = " ".join(lists).replace("\\", " ").split()
    assert [name for name in names if not (REPOSITORY / f"tests/test_{name}.py").is_file()] == []


def fake_java(path: Path, version: str) -> None:
    # The first lines of OpenJDK's, which go to stderr.
    path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
    path.chmod(0o755)


def make_java(tools: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "java"],
        cwd=REPOSITORY,
        env={"PATH": str(tools), "LC_ALL": "C", **variables},
        capture_output=True,
        text=True,
    )
