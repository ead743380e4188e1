"""Imports and renders examples/airflow/dag.py, and runs its task; started by the Python of Airflow.

``python tests/airflow_driver.py DAG CODE...`` prints JSON: what the DAG says, and how its task ends
if spark-submit, which the caller puts on the PATH, ends with each code. The driver reads no
database and starts no Airflow.
"""

import importlib.util
import json
import os
import sys
from typing import Any


def load(path: str) -> Any:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location("dag", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outcome(module: Any, code: str) -> str:
    """The class of the exception that the task ends with; empty if it succeeds."""
    os.environ["FAKE_EXIT_CODE"] = code
    task = module.E5SparkOperator(task_id=f"exit_{code}", application="/opt/embed.py")
    try:
        task.execute({})
    except Exception as error:
        return type(error).__name__
    return ""


def main(path: str, *codes: str) -> dict[str, Any]:
    """What the DAG says, and how its task ends for each code."""
    module = load(path)
    (task,) = module.dag.tasks
    task.render_template_fields({"ds": "2026-11-25"})
    return {
        "dag": module.dag.dag_id,
        "max_active_runs": module.dag.max_active_runs,
        "retries": task.retries,
        "callbacks": [function.__name__ for function in task.on_failure_callback],
        "command": task._get_hook()._build_spark_submit_command(task.application),
        "outcomes": {code: outcome(module, code) for code in codes},
    }


if __name__ == "__main__":
    result = main(*sys.argv[1:])
    print(json.dumps(result), file=sys.__stdout__)
