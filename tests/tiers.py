"""Which tier a test belongs to, and in which order files run: decided when tests are collected.

A test that starts a JVM belongs to the Spark tier. It is marked `spark` where it requests the
fixture `jvm`, directly or through other fixtures, or has a mark that implies one. All other tests
form the unit tier, where an attempt to start a JVM fails the test.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

JVM_MARKS = {"cluster", "delta", "recipes", "s3", "kits", "chaos", "chaos_sample"}

# pytest-xdist hands out whole files in this order, so that no long one comes last.
LONGEST_FIRST = (
    "test_delta_target.py",
    "test_readme.py",
    "test_delta_streaming.py",
    "test_parity.py",
    "test_options.py",
    "test_incremental.py",
    "test_delta.py",
    "test_benchmark_run.py",
    "test_long_text.py",
    "test_verify.py",
    "test_crash_points.py",
    "test_golden.py",
    "test_delta_columns.py",
    "test_streaming.py",
    "test_prepare.py",
    "test_already_prompted.py",
    "test_cluster.py",
    "test_storage.py",
    "test_worker.py",
    "test_hub.py",
    "test_controls.py",
    "test_data.py",
    "test_packed.py",
)

_JAVA = """#!/bin/sh
echo "$*" >> "{log}"
echo "A test of the unit tier starts a JVM." >&2
exit 1
"""


def assign(items: list[pytest.Item]) -> None:
    """Marks the tests that start a JVM, and moves the longest files to the front."""
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if "jvm" in getattr(item, "fixturenames", ()) or marks & JVM_MARKS:
            item.add_marker(pytest.mark.spark)
    rank = {name: position for position, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@contextmanager
def without_java(directory: Path) -> Iterator[None]:
    """Lets no process start a JVM; raises an error at the end if any tried."""
    log, java = directory / "started", directory / "bin" / "java"
    java.parent.mkdir(parents=True, exist_ok=True)
    java.write_text(_JAVA.format(log=log), "utf-8")
    java.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_HOME", str(directory))
        yield
    if log.exists():
        command = log.read_text("utf-8").strip()
        log.unlink()
        pytest.fail(
            "A test of the unit tier started a JVM. Request the fixture `jvm`, or test the rule "
            f"without a session. The command was: {command[:500]}"
        )
