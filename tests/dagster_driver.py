"""Loads examples/dagster/definitions.py and runs its asset; started by the Python of Dagster.

``python tests/dagster_driver.py DEFINITIONS CODE...`` prints JSON: what is defined, and what
becomes of the asset, its check and an asset that depends on it if e5spark ends with each code. The
caller puts e5spark on the PATH.
"""

import importlib.util
import json
import os
import sys
from typing import Any

import dagster as dg


def load(path: str) -> Any:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location("definitions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outcome(module: Any, code: str) -> dict[str, Any]:
    """What becomes of the asset if the command ends with a code."""

    @dg.asset(deps=[module.vectors])
    def index() -> None:
        """An asset that must not see vectors whose gates have failed."""

    os.environ["FAKE_EXIT_CODE"] = code
    try:
        module.vectors(dg.build_asset_context())
    except (dg.Failure, dg.RetryRequested) as error:
        allows = getattr(error, "allow_retries", True)
        return {"raised": type(error).__name__, "retries": allows}
    result = dg.materialize([module.vectors, index], raise_on_error=False)
    (check,) = result.get_asset_check_evaluations()
    materialized = [event.asset_key.path[-1] for event in result.get_asset_materialization_events()]
    (event,) = result.asset_materializations_for_node("vectors")
    return {
        "materialized": materialized,
        "passed": check.passed,
        "metadata": sorted(event.metadata),
    }


def main(path: str, *codes: str) -> dict[str, Any]:
    """What is defined, and what becomes of the asset for each code."""
    module = load(path)
    dg.Definitions.validate_loadable(module.defs)
    schedule = module.defs.resolve_schedule_def("nightly")
    return {
        "schedule": schedule.cron_schedule,
        "outcomes": {code: outcome(module, code) for code in codes},
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
