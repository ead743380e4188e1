"""A Dagster asset: a table of vectors, with the job's report as metadata and its gates as a check.

``dagster dev -f examples/dagster/definitions.py`` shows it. ``E5SPARK_JOB`` names the job file.
"""

import json
import os
import subprocess

import dagster as dg

JOB = os.environ.get("E5SPARK_JOB", "conf/embed.toml")
# To run the same command again would end in the same way: usage, input, conflict. Other codes are
# worth a retry: 75 is transient, and a run that was killed has committed chunks that the next one
# does not embed again.
FINAL = {2, 3, 5}
GATE_FAILED = 4
COUNTS = ("rows_in", "embedded", "skipped", "deleted", "errors", "seconds", "fingerprint")


@dg.asset(
    # A failed gate stops what depends on the vectors, and not what has been written.
    check_specs=[dg.AssetCheckSpec("gates", asset="vectors", blocking=True)],
    kinds={"spark", "parquet"},
)
def vectors(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """The vectors of the documents, brought up to date with them."""
    run = subprocess.run(["e5spark", "embed", JOB], stdout=subprocess.PIPE, text=True, check=False)
    report = json.loads((run.stdout.splitlines() or ["{}"])[-1])
    message = report.get("message", f"e5spark ended with {run.returncode}")
    if run.returncode in FINAL:
        raise dg.Failure(message, metadata={"exit_code": run.returncode}, allow_retries=False)
    if run.returncode not in (0, GATE_FAILED):
        context.log.warning(message)
        raise dg.RetryRequested(max_retries=3, seconds_to_wait=300)
    passed = run.returncode == 0
    return dg.MaterializeResult(
        metadata={name: report[name] for name in COUNTS if name in report},
        check_results=[
            dg.AssetCheckResult(passed=passed, metadata={} if passed else {"reason": message})
        ],
    )


nightly = dg.ScheduleDefinition(
    name="nightly", target=dg.AssetSelection.assets("vectors"), cron_schedule="0 2 * * *"
)
defs = dg.Definitions(assets=[vectors], schedules=[nightly])
