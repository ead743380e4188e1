"""The doctor: what it finds, from the reports of executors and on real ones, and that it leaves
nothing behind.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pyspark import cloudpickle
from pyspark.sql import SparkSession

from e5spark.cli import main
from e5spark.cli.doctor import text
from e5spark.encoder import loading
from e5spark.encoder.engines import openvino as openvino_engine
from e5spark.encoder.engines import preparation
from e5spark.errors import missing_package
from e5spark.job.doctor.checks import findings
from e5spark.job.doctor.examination import Examination
from e5spark.job.doctor.facts import Facts, place
from e5spark.job.doctor.finding import Finding, grouped, of_message
from e5spark.limits import MemoryCeiling
from e5spark.model.fingerprint import Weights
from e5spark.model.footprint import Footprint
from e5spark.model.resolve import Plan
from e5spark.model.spec import model_spec
from e5spark.spark import inspection, probe
from e5spark.spark.embedding import plan_model
from e5spark.spark.executors import task_slots
from e5spark.spark.survey import Failure, Survey, ready_slots, survey
from e5spark.tables.storage.trial import try_write
from tests.tables import Job, table_of

GB = 1 << 30
VERSIONS = {
    "e5spark": "0.1.0",
    "numpy": "2.4.6",
    "pandas": "3.1.1",
    "pyarrow": "26.0.1",
    "tokenizers": "0.23.3",
    "openvino": "2026.4.1",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "safetensors": "0.8.0",
    "pyspark": "4.1.4",
}
DRIVER = {"host": "edge", "python": "3.11.7", "versions": VERSIONS, "directories": {}}
SESSION = {"spark": "4.1.4", "client": "4.1.4", "java": "17.0.15", "delta": ""}
BF16, OLD = "AMD EPYC 9354", "Intel Xeon E5-2680"


def executor(name: int = 0, **facts: Any) -> dict[str, Any]:
    """The report of an executor on which everything fits."""
    report = {
        "key": f"host-{name}:4711",
        "host": f"host-{name}",
        "executor": str(name),
        "python": "3.11.7",
        "versions": VERSIONS,
        "directories": {},
        "cpu": BF16,
        "isa": ["avx2", "avx512_bf16"],
        "cpus": 8,
        "threads": 8,
        "memory": [{"source": "the machine's memory", "bytes": 16 * GB, "kind": "resident"}],
        "engine": "openvino",
        "precision": "fp32",
        "device": "cpu",
        "needs_bytes": {"resident": GB, "address_space": 2 * GB},
        "shortage": None,
        "problems": [],
        "workers": 1,
    }
    return {**report, **facts}


def without(*packages: str, **others: str) -> dict[str, str | None]:
    return {**VERSIONS, **dict.fromkeys(packages), **others}


def facts_of(*reports: Mapping[str, Any], **facts: Any) -> Facts:
    result = Survey(reports=reports, registered=len(reports), slots=len(reports))
    values: dict[str, Any] = {"driver": DRIVER, "session": SESSION, "precision": "fp32"}
    return Facts(**{**values, "survey": result, **facts})


def only(facts: Facts) -> Finding:
    (finding,) = findings(facts)
    return finding


def test_nothing_is_found_where_everything_fits() -> None:
    assert findings(facts_of(executor(0), executor(1))) == []


# What the checks find in reports.


def test_another_major_release_of_pyarrow_is_named_with_its_pin() -> None:
    finding = only(facts_of(executor(0), executor(1, versions=without(pyarrow="17.0.0"))))
    assert (finding.check, finding.level) == ("pyarrow", "error")
    assert finding.where == "executor 1 on host-1"
    assert finding.sentences == (
        "pyarrow is 17.0.0. The driver has 26.0.1; both must be of one major release. Run pip "
        "install 'pyarrow==26.*' in the Python that Spark's workers run, which PYSPARK_PYTHON or "
        "spark.pyspark.python names."
    )


def test_executors_of_which_some_lack_bf16_are_named_before_they_mix_vectors() -> None:
    reports = [executor(0, precision="bf16"), executor(1, cpu=OLD), executor(2, precision="bf16")]
    finding = only(facts_of(*reports, precision="bf16"))
    assert (finding.check, finding.level) == ("precision", "error")
    assert finding.where == "executor 1 on host-1"
    assert finding.found == (
        f"1 of 3 executors compute in fp32, as their CPUs have no bf16 instructions ({OLD})."
    )
    assert "model.precision = 'fp32'" in finding.fix


def test_a_cluster_without_bf16_is_told_so() -> None:
    finding = only(facts_of(executor(0, cpu=OLD), precision="bf16"))
    assert finding.found.startswith("All executors compute in fp32")


def test_a_step_that_failed_on_an_executor_keeps_its_message() -> None:
    message = "The torch engine needs torch, which is not installed here: pip install it."
    problem = {"step": "engine", "message": message}
    finding = only(facts_of(executor(engine=None, precision=None, problems=[problem])))
    assert (finding.check, finding.sentences) == ("engine", message)


@pytest.mark.parametrize(("downloads", "level"), [(True, "warning"), (False, "error")])
def test_an_absent_model_may_come_with_the_run_if_the_job_downloads(
    downloads: bool, level: str
) -> None:
    problem = {"step": "absent", "message": "e5 is not in the hub cache. Allow it."}
    report = executor(engine=None, precision=None, problems=[problem])
    assert only(facts_of(report, downloads=downloads)).level == level


def test_an_executor_without_e5spark_is_told_what_to_install() -> None:
    error = "ModuleNotFoundError: No module named 'e5spark'"
    names = ("e5spark", "pyarrow", "openvino", "torch")
    report = executor(versions=without(*names), import_error=error, engine=None, precision=None)
    found = findings(facts_of(report))
    assert [finding.check for finding in found] == ["packages", "engine", "packages"]
    assert "pip install e5spark in the Python that Spark's workers run" in found[0].fix
    assert found[1].found == "No engine is installed: openvino or torch."
    assert found[2].found == "The package pyarrow is not installed on an executor."


def test_another_release_of_e5spark_is_named() -> None:
    finding = only(facts_of(executor(versions=without(e5spark="0.0.9"))))
    assert (finding.found, finding.needed) == ("e5spark is 0.0.9.", "The driver has 0.1.0.")


def test_spark_before_4_1_needs_pandas_on_executors() -> None:
    session = {**SESSION, "spark": "4.0.2"}
    driver = {**DRIVER, "versions": without(pyspark="4.0.2")}
    report = executor(versions=without("pandas", pyspark="4.0.2"))
    finding = only(facts_of(report, session=session, driver=driver))
    assert finding.found == "The package pandas is not installed on an executor."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "Lost task 0.3 in stage 1.0 (TID 7) (10.0.0.5 executor 2): java.io.IOException: "
            'Cannot run program "/env/bin/python3": error=2, No such file or directory',
            "There is no Python '/env/bin/python3'.",
        ),
        (
            "PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has different version "
            "3.12 than that in driver: 3.11",
            "Workers run another Python than the driver's 3.11.7.",
        ),
        (
            "ModuleNotFoundError: No module named 'numpy'",
            "The package numpy is not installed on an executor.",
        ),
        ("java.lang.IllegalStateException: odd", "A task could not run: "),
    ],
)
def test_a_task_that_cannot_run_says_which_python_is_wrong(text: str, found: str) -> None:
    failed = Survey(reports=(), registered=1, slots=1, failures=(Failure(text=text),))
    reports = findings(facts_of(survey=failed))
    assert any(finding.found.startswith(found) for finding in reports), reports
    assert all(finding.fix for finding in reports)


def test_a_worker_that_ended_is_explained_by_its_limit() -> None:
    text = "Job aborted due to stage failure: Lost task 0.0: Python worker exited unexpectedly"
    limit = MemoryCeiling(kind="address_space", bytes=100 << 20, source="ulimit -v")
    died = Survey(
        reports=(executor(memory=[vars(limit)]),),
        registered=1,
        slots=1,
        failures=(Failure(text=text, host="a", executor="3"),),
    )
    needs = Footprint(
        usual={"address_space": 2 * GB, "resident": GB},
        least={"address_space": GB, "resident": GB // 2},
    )
    finding = only(facts_of(survey=died, needs=needs, model="e5"))
    assert (finding.check, finding.where) == ("memory", "executor 3 on a")
    assert finding.found == "The model e5 does not fit."
    assert "ulimit -v allows 100 MB" in finding.fix
    assert "logs" not in only(facts_of(survey=died)).found


def test_executors_that_have_not_answered_are_counted() -> None:
    result = Survey(reports=(executor(),), registered=3, slots=3)
    finding = only(facts_of(survey=result))
    assert finding.found == "2 of 3 executors have not answered."
    silent = Survey(reports=(), registered=0, slots=0, timed_out=True)
    assert only(facts_of(survey=silent)).level == "error"


def test_an_executor_that_sees_another_directory_is_found() -> None:
    output = {"path": "/data/out", "nearest": "/data", "problem": "", "shows_marker": False}
    finding = only(facts_of(executor(1, directories={"output": output})))
    assert finding.found == "The output /data/out is another directory than the driver's."
    denied = {**output, "problem": "Permission denied", "shows_marker": True}
    finding = only(facts_of(executor(1, directories={"output": denied})))
    assert finding.found == "The output /data/out cannot be written: /data: Permission denied."


def test_workers_that_together_need_more_than_a_container_has_are_warned_of() -> None:
    limit = {"source": "the container's limit", "bytes": 2 * GB, "kind": "resident"}
    finding = only(facts_of(executor(workers=4, memory=[limit])))
    assert (finding.check, finding.level) == ("memory", "warning")
    assert "4 workers run at once, each with a model of about 1,024 MB" in finding.found


@pytest.mark.parametrize(
    ("facts", "check"),
    [
        ({"session": {**SESSION, "java": "11.0.2"}}, "java"),
        ({"session": {**SESSION, "spark": "4.0.1"}}, "spark"),
        ({"session": {**SESSION, "delta": "3.3.2"}, "delta": "4.4.0"}, "delta"),
    ],
)
def test_versions_of_the_session_are_compared(facts: dict[str, Any], check: str) -> None:
    assert only(facts_of(executor(), **facts)).check == check


@pytest.mark.parametrize(
    ("reports", "check"),
    [
        ([executor(0), executor(1, engine="torch")], "engine"),
        ([executor(threads=8, cpus=2)], "threads"),
        ([executor(shortage="It could not. Raise it.")], "memory"),
    ],
)
def test_what_only_costs_time_is_a_warning(reports: list[dict[str, Any]], check: str) -> None:
    finding = only(facts_of(*reports))
    assert (finding.check, finding.level) == (check, "warning")


def test_a_finding_of_many_executors_is_one_and_errors_come_first() -> None:
    slow = Finding(check="threads", level="warning", where="executor 0 on a", found="Few.")
    wrong = [of_message("model", f"executor {name} on a", "Gone. Ship it.") for name in (0, 1)]
    first, second = grouped([slow, *wrong], executors=2)
    assert (first.where, first.found, first.fix) == ("all 2 executors", "Gone.", "Ship it.")
    assert second.where == "executor 0 on a"
    assert grouped(wrong[:1], executors=1)[0].where == "executor 0 on a"


# What a worker finds, in this process.


def inspected(plan: Plan) -> dict[str, Any]:
    return inspection.inspect(pickle.dumps(plan))


def problem(report: Mapping[str, Any]) -> tuple[str, str]:
    (found,) = report["problems"]
    return found["step"], found["message"]


@pytest.fixture
def plan(model: str) -> Plan:
    return plan_model(model_spec(model, {}))


def test_a_worker_reports_engine_precision_hashes_and_memory(plan: Plan) -> None:
    report = inspected(plan)
    assert report["problems"] == []
    assert (report["engine"], report["precision"], report["device"]) == ("openvino", "fp32", "cpu")
    assert report["model"]["weights"] == plan.weights.weights
    assert report["needs_bytes"]["resident"] > 0
    assert json.dumps(report)


def test_a_model_with_other_weights_is_found(plan: Plan) -> None:
    other = replace(plan, weights=Weights(weights="0" * 64, tokenizer="0" * 64))
    step, message = problem(inspected(other))
    assert step == "model"
    assert "is not the one that the driver planned with" in message


def test_a_model_that_is_not_there_is_found(plan: Plan) -> None:
    gone = replace(plan, spec=replace(plan.spec, model="/nowhere/e5"))
    assert problem(inspected(gone))[0] == "absent"


def test_torch_is_found_missing_where_the_engine_needs_it(
    new_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_installed(package: str) -> bool:
        return package not in ("torch", "transformers")

    monkeypatch.setattr("e5spark.encoder.packages._is_importable", is_installed)
    plan = plan_model(model_spec(new_model, {"engine": "torch"}))
    step, message = problem(inspected(plan))
    assert (step, "torch and transformers, which are not installed here" in message) == (
        "engine",
        True,
    )
    # OpenVINO needs torch once, to prepare a checkpoint; not for one that is prepared.
    plan = plan_model(model_spec(new_model, {"engine": "openvino"}))
    step, message = problem(inspected(plan))
    assert step == "engine"
    assert message.startswith("Preparing ")
    monkeypatch.undo()
    preparation.prepared_directory(loading_files(new_model))
    monkeypatch.setattr("e5spark.encoder.packages._is_importable", is_installed)
    assert inspected(plan)["problems"] == []


def loading_files(model: str) -> Any:
    from e5spark.model.checkpoint import locate

    return locate(model_spec(model, {}))


def test_too_little_memory_for_the_model_is_found_before_an_engine_is_imported(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = MemoryCeiling(kind="resident", bytes=1 << 20, source="the container's limit")
    monkeypatch.setattr(inspection, "memory_ceilings", lambda: [tiny])
    monkeypatch.setattr(loading, "check_loadable", lambda *_, **__: pytest.fail("imported"))
    step, message = problem(inspected(plan))
    assert step == "memory"
    assert "the container's limit allows 1 MB. Raise spark.executor.memoryOverhead" in message


def test_a_cpu_without_bf16_is_found_by_the_engine_itself(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_model(model_spec(model, {"precision": "bf16", "engine": "openvino"}))
    monkeypatch.setattr(openvino_engine, "_actual_precision", lambda *_: "fp32")
    report = inspected(plan)
    assert report["precision"] == "fp32"
    assert problem(report)[0] == "precision"


BARE = """
import sys
for name in ("e5spark", "pyarrow", "pandas", "numpy", "torch", "openvino"):
    sys.modules[name] = None
from pyspark import cloudpickle
print(cloudpickle.loads(sys.stdin.buffer.read())(3))
"""


def test_a_task_answers_from_a_python_without_any_package(tmp_path: Path) -> None:
    output = str(tmp_path / "a" / "b")
    request = {"hold": 0, "answered": (), "plan": b"unreadable", "directories": {"output": output}}
    cloudpickle.register_pickle_by_value(probe)
    try:
        task = cloudpickle.dumps(probe.task(request))
    finally:
        cloudpickle.unregister_pickle_by_value(probe)
    command = [sys.executable, "-c", BARE]
    completed = subprocess.run(command, input=task, capture_output=True, check=True)
    report = json.loads(completed.stdout)
    assert report["number"] == 3
    assert report["import_error"].startswith("ModuleNotFoundError: ")
    assert missing_package(report["import_error"]) is not None
    assert report["directories"]["output"]["problem"] == ""
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_made_is_told_with_its_nearest_parent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = probe.directory(str(tmp_path / "file" / "out"), marker=str(tmp_path / "no"))
    assert (found["nearest"], found["problem"]) == (str(tmp_path / "file"), "Not a directory")
    assert not found["shows_marker"]


# The command.


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, dict[str, Any]]:
    capsys.readouterr()
    code = main(["doctor", *arguments])
    output = capsys.readouterr().out
    return code, output, json.loads(output.splitlines()[-1])


def test_a_job_file_that_is_wrong_is_a_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, document = doctor(capsys, str(tmp_path / "no.toml"))
    assert (code, document["status"]) == (2, "failed")
    assert [finding["check"] for finding in document["findings"]] == ["job"]
    assert "FIX  job (driver)" in output
    assert doctor(capsys, str(tmp_path / "no.toml"), "--patience=0")[0] == 2


def test_the_table_has_a_line_for_each_executor_and_a_fix_for_each_finding() -> None:
    facts = facts_of(executor(0), executor(1, versions=without(pyarrow="17.0.0")))
    result = Examination(
        job={"input": "/data/docs (parquet)"},
        session=SESSION,
        driver=DRIVER,
        survey=facts.survey,
        findings=tuple(grouped(findings(facts), executors=2)),
    )
    page = text(result)
    assert "executors  2 of 2 answered" in page
    assert page.count("\n0         host-0") == page.count("\n1         host-1") == 1
    assert "FIX  pyarrow (executor 1 on host-1)\n     pyarrow is 17.0.0.\n" in page


@pytest.fixture
def docs(tmp_path: Path) -> None:
    pq.write_table(table_of({1: "One.", 2: "Two."}), tmp_path / "docs.parquet")


def test_a_job_that_fits_is_green_and_nothing_is_left(
    spark: SparkSession,
    base: Job,
    docs: None,
    job_file: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base["output"]["path"] = str(tmp_path / "new" / "out")
    path = job_file(**base)
    before = sorted(tmp_path.rglob("*"))
    code, output, document = doctor(capsys, path)
    assert (code, document["findings"], document["unchecked"]) == (0, [], [])
    assert (document["executors_answered"], document["executors_registered"]) == (1, 1)
    assert (document["task_slots"], document["executors"][0]["workers"]) == (2, 2)
    assert document["executors"][0]["engine"] == "openvino"
    assert "Everything that was checked fits." in output
    assert sorted(tmp_path.rglob("*")) == before


def test_all_that_is_wrong_is_listed_at_once(
    spark: SparkSession,
    base: Job,
    docs: None,
    job_file: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base["input"]["path"] = "s3a://bucket/docs"
    base["output"]["path"] = "/proc/e5spark/out"
    base["model"]["name"] = "/nowhere/e5"
    code, _, document = doctor(capsys, job_file(**base))
    assert code == 2
    found = {finding["check"]: finding for finding in document["findings"]}
    assert list(found) == ["model", "jars", "output"]
    assert "org.apache.hadoop.fs.s3a.S3AFileSystem" in found["jars"]["found"]
    assert found["jars"]["fix"].startswith("Add to spark-submit: --packages org.apache.hadoop:")
    assert "no model directory '/nowhere/e5'" in found["model"]["found"]
    assert found["output"]["where"] == "driver, executor driver on " + document["driver"]["host"]
    assert "cannot be written" in found["output"]["found"]


def test_a_session_without_delta_is_told_its_jar(
    spark: SparkSession,
    base: Job,
    docs: None,
    job_file: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    base["output"]["format"] = "delta"
    code, _, document = doctor(capsys, job_file(**base))
    (finding,) = document["findings"]
    assert (code, finding["check"]) == (2, "jars")
    assert "--packages io.delta:delta-spark" in finding["fix"]


def test_a_file_system_that_tasks_can_write_is_left_as_it_was(
    spark: SparkSession, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "kept"):
        try_write(spark, f"file:{path}", prefix=".trial-", tasks=2)
        assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_a_survey_without_a_plan_tells_cores_and_memory(spark: SparkSession) -> None:
    """What an estimate of a run needs."""
    slots, failure = ready_slots(spark, patience=60)
    assert (slots, failure) == (task_slots(spark), None)
    (report,) = survey(spark, {"plan": None}, slots=slots, patience=60).reports
    assert (report["cpus"] >= 1, report["problems"]) == (True, [])
    assert place(report).startswith("executor driver on ")
