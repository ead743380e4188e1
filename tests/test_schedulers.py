"""The examples for Airflow and Dagster: they load and render, and heed the exit codes of e5spark.

`make schedulers` installs both in an environment of their own, of 700 MB.
"""

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from e5spark import errors
from tests.cluster import REPOSITORY

PYTHON = REPOSITORY / ".venv" / "schedulers" / "bin" / "python"
AIRFLOW = REPOSITORY / "examples" / "airflow" / "dag.py"
DAGSTER = REPOSITORY / "examples" / "dagster" / "definitions.py"
REPORT = {"rows_in": 3, "embedded": 2, "skipped": 1, "message": "why"}
CODES = ("0", "1", "3", "4", "5", "75")

scheduled = pytest.mark.schedulers


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Runs a driver in the schedulers' environment, where commands end with FAKE_EXIT_CODE."""
    if not PYTHON.is_file():
        pytest.skip(f"needs {PYTHON}, which make schedulers installs")
    for name in ("spark-submit", "e5spark"):
        script = f"#!/bin/sh\necho '{json.dumps(REPORT)}'\nexit \"$FAKE_EXIT_CODE\"\n"
        (tmp_path / name).write_text(script, "utf-8")
        (tmp_path / name).chmod(0o755)

    def call(driver: str, example: Path, *codes: str, **variables: str) -> dict[str, Any]:
        completed = subprocess.run(
            [PYTHON, REPOSITORY / "tests" / driver, example, *codes],
            env={
                "PATH": f"{tmp_path}{os.pathsep}{os.defpath}",
                "HOME": str(tmp_path),
                "AIRFLOW_HOME": str(tmp_path / "airflow"),
                **variables,
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr
        return json.loads(completed.stdout.splitlines()[-1])

    return call


@scheduled
def test_the_dag_of_airflow_loads_and_its_command_has_the_day_of_the_run(run: Any) -> None:
    connection = json.dumps({"conn_type": "spark", "host": "spark://master:7077"})
    dag = run("airflow_driver.py", AIRFLOW, *CODES, AIRFLOW_CONN_SPARK_DEFAULT=connection)
    assert dag["command"][0] == "spark-submit"
    assert dag["command"][1:3] == ["--master", "spark://master:7077"]
    assert dag["command"][-3:] == [
        "/opt/e5spark/conf/embed.toml",
        "--set",
        "input.path=/data/docs/2026-11-25",
    ]
    assert dag["max_active_runs"] == 1
    assert dag["retries"] > 0
    assert dag["callbacks"] == ["alert"]
    retried, final = "AirflowException", "AirflowFailException"
    assert dag["outcomes"] == {
        "0": "",
        "1": retried,
        "3": final,
        "4": final,
        "5": final,
        "75": retried,
    }


@scheduled
def test_the_asset_of_dagster_loads_and_a_failed_gate_stops_what_depends_on_it(run: Any) -> None:
    definitions = run("dagster_driver.py", DAGSTER, *CODES)
    assert definitions["schedule"] == "0 2 * * *"
    retried = {"raised": "RetryRequested", "retries": True}
    final = {"raised": "Failure", "retries": False}
    written = {"metadata": ["embedded", "rows_in", "skipped"]}
    assert definitions["outcomes"] == {
        "0": {"materialized": ["vectors", "index"], "passed": True, **written},
        "1": retried,
        "3": final,
        "4": {"materialized": ["vectors"], "passed": False, **written},
        "5": final,
        "75": retried,
    }


@pytest.mark.parametrize(
    ("example", "elsewhere"), [(AIRFLOW, set()), (DAGSTER, {errors.GateError.exit_code})]
)
def test_examples_know_every_exit_code_that_another_attempt_does_not_mend(
    example: Path, elsewhere: set[int]
) -> None:
    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.E5SparkError)
    }
    tree = ast.parse(example.read_text("utf-8"))
    (final,) = (
        set(ast.literal_eval(node.value))
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FINAL"
    )
    unexpected, transient = 1, errors.TransientError.exit_code
    assert final | elsewhere == codes - {unexpected, transient}
