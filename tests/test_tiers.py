"""The tiers of the tests: what keeps a JVM out of the unit tier, and the order of the files."""

import subprocess
from pathlib import Path

import pytest

from tests import tiers
from tests.cluster import SPARK_HOME


def test_jvm_that_a_unit_test_starts_fails_the_test(tmp_path: Path) -> None:
    submit = str(SPARK_HOME / "bin" / "spark-submit")
    with (
        pytest.raises(pytest.fail.Exception, match=r"SparkSubmit --version"),
        tiers.without_java(tmp_path),
    ):
        completed = subprocess.run([submit, "--version"], capture_output=True, text=True)
    assert "A test of the unit tier starts a JVM." in completed.stderr
    with tiers.without_java(tmp_path):
        pass  # the failure belongs to one test alone


def test_unit_test_runs_without_java(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("spark") is None


@pytest.mark.usefixtures("jvm")
def test_test_that_requests_a_jvm_belongs_to_the_spark_tier(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("spark") is not None


def test_longest_files_exist() -> None:
    directory = Path(__file__).parent
    assert [name for name in tiers.LONGEST_FIRST if not (directory / name).is_file()] == []
