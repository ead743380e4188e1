"""The files of examples/ for clusters of other people, checked against what their owners publish.

`make kits` installs what checks them. Nothing here talks to a cloud.
"""

import json
import re
import shlex
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from e5spark.errors import ConfigError
from e5spark.job import job_file
from tests.cluster import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
DOCKERFILES = sorted(EXAMPLES.glob("*/Dockerfile"))
SCHEMA = REPOSITORY / "tests" / "schemas" / "sparkapplication-v1beta2.json"


def text(*names: str) -> str:
    return EXAMPLES.joinpath(*names).read_text("utf-8")


def instructions(path: Path) -> list[tuple[str, list[str]]]:
    """The instructions of a Dockerfile, with their arguments."""
    joined = re.sub(
        r"\\\n", " ", re.sub(r"^#.*\n", "", path.read_text("utf-8"), flags=re.MULTILINE)
    )
    words = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(word, shlex.split(arguments)) for word, arguments in words]


def overrides(arguments: list[str]) -> list[str]:
    """The values of --set."""
    return [value for name, value in pairwise(arguments) if name == "--set"]


@pytest.mark.kits
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_has_nothing_to_say_about_a_dockerfile(path: Path) -> None:
    hadolint = REPOSITORY / ".venv" / "kits" / "bin" / "hadolint"
    command = [str(hadolint), "--no-color", "--failure-threshold", "warning", str(path)]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_has_what_it_copies_and_runs_as_no_root(path: Path) -> None:
    rules = path.with_name("Dockerfile.dockerignore").read_text("utf-8").splitlines()
    copied = [
        source
        for word, arguments in instructions(path)
        if word in ("ADD", "COPY") and not any(item.startswith("--from") for item in arguments)
        for source in arguments[:-1]
    ]
    assert copied
    assert sorted(copied) == sorted(rule[1:] for rule in rules if rule.startswith("!"))
    built = {"build/e5spark-env.tar.gz", "build/model.tar.gz"}
    assert [file for file in copied if not (REPOSITORY / file).exists() and file not in built] == []
    users = [arguments[0] for word, arguments in instructions(path) if word == "USER"]
    assert users[-1] not in ("root", "0")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_has_the_python_that_its_archive_is_built_for(path: Path) -> None:
    dockerfile = path.read_text("utf-8")
    built = re.search(r"make archive ARCHIVE='--python (3\.\d+)", dockerfile)
    assert built
    assert re.search(rf"python:?{re.escape(built[1])}\b", dockerfile.partition("\nFROM")[2])


def test_the_spark_application_runs_a_job_that_e5spark_takes(tmp_path: Path) -> None:
    config, application = yaml.safe_load_all(text("kubernetes", "embed.yaml"))
    (tmp_path / "embed.toml").write_text(config["data"]["embed.toml"], "utf-8")
    assert job_file.load(tmp_path / "embed.toml").model.name == "/opt/e5spark/model"
    spec = application["spec"]
    mounted = spec["driver"]["configMaps"][0]
    assert mounted["name"] == config["metadata"]["name"]
    assert spec["arguments"] == [f"{mounted['path']}/embed.toml"]
    assert spec["sparkConf"]["spark.task.cpus"] == str(spec["executor"]["cores"])
    image = (EXAMPLES / "docker" / "Dockerfile").read_text("utf-8")
    assert f"apache/spark:{spec['sparkVersion']}-" in image
    assert f"--tag {spec['image']} " in image


@pytest.mark.kits
def test_the_operator_takes_the_spark_application_and_knows_each_field() -> None:
    import jsonschema

    application = list(yaml.safe_load_all(text("kubernetes", "embed.yaml")))[1]
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text("utf-8")))
    assert [error.message for error in validator.iter_errors(application)] == []
    application["spec"]["executor"]["memoryOverheadd"] = "3g"
    assert [error.message for error in validator.iter_errors(application)] != []


def bundle_job() -> dict[str, Any]:
    document = yaml.safe_load(text("databricks", "resources", "embed.job.yml"))
    return document["resources"]["jobs"]["embed"]


@pytest.mark.kits
def test_the_bundles_job_is_one_that_databricks_takes() -> None:
    from databricks.bundles.jobs import Job

    job = Job.from_dict(bundle_job())
    assert job.as_dict() == bundle_job()
    with pytest.raises(ValueError, match="nmae"):
        Job.from_dict({**bundle_job(), "nmae": "x"})


def test_the_bundle_is_whole() -> None:
    bundle = yaml.safe_load(text("databricks", "databricks.yml"))
    used = set(re.findall(r"\$\{var\.(\w+)\}", text("databricks", "resources", "embed.job.yml")))
    assert used == set(bundle["variables"])
    assert [target for target in bundle["targets"].values() if target.get("default")]
    [task] = bundle_job()["tasks"]
    resources = EXAMPLES / "databricks" / "resources"
    assert (resources / task["spark_python_task"]["python_file"]).is_file()
    root = EXAMPLES / "databricks" / bundle["artifacts"]["e5spark"]["path"]
    wheels = next(library["whl"] for library in task["libraries"] if "whl" in library)
    assert (resources / wheels).resolve() == root.resolve() / "dist" / "*.whl"
    parameters = task["spark_python_task"]["parameters"]
    check_job_file("databricks", [re.sub(r"\$\{var\.\w+\}", "main", p) for p in parameters])


def test_the_bundle_installs_the_versions_that_e5spark_is_tested_with() -> None:
    pins = (REPOSITORY / "conf" / "constraints.txt").read_text("utf-8").splitlines()
    [task] = bundle_job()["tasks"]
    packages = {item["pypi"]["package"] for item in task["libraries"] if "pypi" in item}
    assert packages
    assert packages <= set(pins)


@pytest.mark.parametrize("code", [0, 4])
def test_the_bundles_task_fails_if_and_only_if_the_run_does(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        calls.append(arguments)
        return code

    monkeypatch.setattr("e5spark.cli.main", main)
    monkeypatch.setattr("sys.argv", ["embed.py", "embed.toml"])
    script = compile(text("databricks", "embed.py"), "embed.py", "exec")
    if code:
        with pytest.raises(SystemExit, match="4"):
            exec(script, {})
    else:
        exec(script, {})
    assert calls == [["embed", "embed.toml"]]


@pytest.mark.kits
def test_emr_serverless_takes_the_job_run() -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    request = {**emr_run(), "clientToken": "token"}
    service = botocore.session.get_session().get_service_model("emr-serverless")
    shape = service.operation_model("StartJobRun").input_shape
    assert ParamValidator().validate(request, shape).generate_report() == ""
    report = ParamValidator().validate({**request, "jobDrive": {}}, shape).generate_report()
    assert "jobDrive" in report


def emr_run() -> dict[str, Any]:
    return json.loads(text("emr-serverless", "job-run.json"))


def test_the_job_run_of_emr_serverless_runs_a_job_that_e5spark_takes() -> None:
    submit = emr_run()["jobDriver"]["sparkSubmit"]
    image = text("emr-serverless", "Dockerfile")
    assert Path(submit["entryPoint"]).name in image
    check_job_file("emr-serverless", submit["entryPointArguments"])
    [configuration] = emr_run()["configurationOverrides"]["applicationConfiguration"]
    properties = configuration["properties"]
    assert properties["spark.task.cpus"] == properties["spark.executor.cores"]
    python = properties["spark.executorEnv.PYSPARK_PYTHON"]
    assert f"PYSPARK_PYTHON={python}" in image


@pytest.mark.kits
def test_dataproc_takes_the_batch() -> None:
    from google.cloud import dataproc_v1
    from google.protobuf import json_format

    message = dataproc_v1.Batch.pb(dataproc_v1.Batch())
    json_format.ParseDict(batch(), message)
    assert json_format.MessageToDict(message) == batch()
    with pytest.raises(json_format.ParseError, match="runtimeConfg"):
        json_format.ParseDict({**batch(), "runtimeConfg": {}}, message)


def batch() -> dict[str, Any]:
    return json.loads(text("dataproc", "batch.json"))


def test_the_batch_of_dataproc_runs_a_job_that_e5spark_takes() -> None:
    check_job_file("dataproc", batch()["pysparkBatch"]["args"])
    properties = batch()["runtimeConfig"]["properties"]
    assert properties["spark.task.cpus"] == properties["spark.executor.cores"]


def check_job_file(kit: str, arguments: list[str]) -> None:
    """The job file that a kit names exists, and e5spark takes it with the kit's overrides."""
    path = EXAMPLES / kit / Path(arguments[0]).name
    config = job_file.load(path, overrides(arguments))
    assert config.input.id == "id"
    with pytest.raises(ConfigError):
        job_file.load(path, [*overrides(arguments), "output.pathh=x"])


def test_the_archives_settings_add_to_those_of_a_cluster() -> None:
    cluster = settings(REPOSITORY / "conf" / "spark-cluster.conf")
    archive = settings(EXAMPLES / "archive" / "spark.conf")
    assert cluster.items() <= archive.items()
    assert set(archive) - set(cluster) == {"spark.archives", "spark.pyspark.python"}


def settings(path: Path) -> dict[str, str]:
    lines = path.read_text("utf-8").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return {name: value.strip() for name, value in pairs}


def test_every_kit_is_in_the_documentation() -> None:
    page = (REPOSITORY / "docs" / "deploy.md").read_text("utf-8")
    kits = {path.parent.name for path in EXAMPLES.glob("*/*") if path.is_file()}
    own = {"archive", "docker", "kubernetes", "databricks", "emr-serverless", "dataproc"}
    assert own <= kits
    assert [kit for kit in sorted(own) if f"examples/{kit}" not in page] == []


def test_job_files_of_kits_are_toml() -> None:
    for path in EXAMPLES.glob("*/*.toml"):
        assert tomllib.loads(path.read_text("utf-8")), path
