"""The archive of examples/archive, on a cluster whose workers have nothing but Python and Java."""

import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from e5spark import Encoder
from e5spark.encoder.prepare import prepare
from e5spark.model.spec import model_spec
from tests.cluster import REPOSITORY, spark_submit, standalone_cluster
from tests.oracle import FP32_TOLERANCE, assert_close, reference
from tests.tables import Job, table_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the archive is for Linux")

EXAMPLE = REPOSITORY / "examples" / "archive"
ARCHIVE = REPOSITORY / "build" / "e5spark-env.tar.gz"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
ROWS = {number: f"text number {number} " * (1 + number % 9) for number in range(60)}
PACKED = "./env/bin/python"


@pytest.fixture
def launcher(tmp_path: Path) -> Callable[..., Path]:
    """Writes bin/python of an archive for some Python, processor and glibc."""

    def write(
        version: str = VERSION, machine: str = platform.machine(), glibc: str = "2.5"
    ) -> Path:
        text = (EXAMPLE / "python").read_text("utf-8")
        for name, value in (("VERSION", version), ("MACHINE", machine), ("GLIBC", glibc)):
            text = text.replace(f"@{name}@", value)
        path = tmp_path / "env" / "bin" / "python"
        path.parent.mkdir(parents=True)
        (tmp_path / "env" / "site-packages").mkdir()
        path.write_text(text, "utf-8")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose only Python is this one, without packages."""
    return bare(tmp_path / "machine")


def bare(directory: Path) -> dict[str, str]:
    """Creates a Python without packages; returns the variables that lead to it and no other."""
    venv.create(directory, with_pip=False)
    tools = f"{directory / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    return {"PATH": tools, "PYTHONPATH": "", "PYSPARK_PYTHON": "", "PYSPARK_DRIVER_PYTHON": ""}


def run(launcher: Path, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(launcher), *arguments], env=env, capture_output=True, text=True)


def test_the_launcher_runs_the_machines_python_with_the_packages_of_the_archive(
    launcher: Callable[..., Path], machine: dict[str, str]
) -> None:
    path = launcher()
    packages = path.parent.parent / "site-packages"
    (packages / "packed.py").write_text("name = 'packed'")
    completed = run(
        path, "-c", "import packed, sys; print(packed.__file__, sys.argv[1])", "a b", env=machine
    )
    assert completed.stdout == f"{packages / 'packed.py'} a b\n", completed.stderr


@pytest.mark.parametrize(
    ("demand", "sentence"),
    [
        (
            {"version": "3.99"},
            "OptionError: The archive needs Python 3.99 on ",
        ),
        ({"machine": "sparc"}, f"needs Python {VERSION} on sparc"),
        ({"glibc": "2.999"}, "with glibc 2.999 or later"),
    ],
)
def test_a_machine_that_the_archive_was_not_built_for_is_refused_with_what_it_has(
    demand: dict[str, str],
    sentence: str,
    launcher: Callable[..., Path],
    machine: dict[str, str],
) -> None:
    completed = run(launcher(**demand), "-c", "print('ran')", env=machine)
    assert (completed.returncode, completed.stdout) == (78, "")
    assert sentence in completed.stderr
    assert f"python3 is {VERSION} {platform.machine()}" in completed.stderr
    assert "make archive ARCHIVE='--python X.Y'" in completed.stderr


def test_a_machine_without_python_is_told_so(launcher: Callable[..., Path], tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "hostname"):
        program = shutil.which(name)
        assert program, name
        (tools / name).symlink_to(program)
    completed = run(launcher(version="3.99"), "-c", "", env={"PATH": str(tools)})
    assert completed.returncode == 78
    assert "no Python on the PATH" in completed.stderr


@pytest.fixture(scope="module")
def worker_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the cluster's machines."""
    return bare(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def master(
    trace_directory: Path, worker_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a cluster of two such machines."""
    with standalone_cluster(tmp_path_factory.mktemp("cluster"), env=worker_env) as url:
        yield url


@pytest.fixture
def submit(
    master: str, worker_env: dict[str, str], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """spark-submit with the example's settings, from an environment that has e5spark."""

    def run(archives: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "spark.archives": archives,
            "spark.pyspark.driver.python": sys.executable,
            "spark.executor.memory": "512m",
            "spark.executor.memoryOverhead": "384m",
            "spark.task.maxFailures": "1",
        }
        confs = [f"--conf={key}={value}" for key, value in settings.items()]
        profile = ["--properties-file", str(EXAMPLE / "spark.conf")]
        env = {**worker_env, "PYTHONPATH": str(REPOSITORY)}
        return spark_submit(["--master", master, *profile, *confs, *arguments], env=env)

    return run


def docs_job(tmp_path: Path, *, name: str = "archive:model") -> Job:
    pq.write_table(table_of(ROWS), tmp_path / "docs.parquet")
    return {
        "input": {"path": str(tmp_path / "docs.parquet"), "id": "id"},
        "embed": {"text": "body", "role": "passage"},
        "model": {"name": name},
        "output": {"path": str(tmp_path / "out")},
        "run": {"partitions": 4},
    }


@pytest.mark.kits
def test_a_newcomer_gets_from_the_doctor_to_an_index_on_machines_without_packages(
    submit: Callable[..., subprocess.CompletedProcess[str]],
    worker_env: dict[str, str],
    job_file: Callable[..., str],
    tmp_path: Path,
    model: str,
) -> None:
    assert ARCHIVE.stat().st_size < 400e6, "make archive"
    bare_python = str(Path(worker_env["PATH"].split(os.pathsep)[0]) / "python")
    assert subprocess.run([bare_python, "-c", "import numpy"], capture_output=True).returncode == 1
    prepare(model_spec(model, {}), tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "model.tar.gz")
    job = job_file(**docs_job(tmp_path))

    export = str(tmp_path / "export")
    commands = [
        ["doctor", job],
        ["embed", job, "--dry-run"],
        ["embed", job],
        ["embed", job],
        ["report", job, "--to", str(tmp_path)],
        ["export", job, "--to", export],
        ["search", job, "text number 7", "--k", "3"],
    ]
    archives = f"{ARCHIVE}#env,{tmp_path / 'model.tar.gz'}#model"
    script = str(REPOSITORY / "tests" / "newcomer.py")
    completed = submit(archives, script, json.dumps(commands))
    assert completed.returncode == 0, completed.stderr + completed.stdout
    lines = [line for line in completed.stdout.splitlines() if line.startswith("{")]
    doctor, dry_run, first, second, _, exported, search, origins = map(json.loads, lines)
    assert doctor["findings"] == []
    assert (dry_run["to_embed"], first["ok"], second["ok"]) == (len(ROWS), len(ROWS), 0)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert exported["ok"] == len(ROWS)
    hits = [hit["id"] for hit in search["queries"][0]["hits"]]
    assert len(hits) == 3
    recipe = runpy.run_path(str(REPOSITORY / "examples" / "duckdb_table.py"))
    index = str(tmp_path / "index.duckdb")
    assert recipe["load"](export, index) == len(ROWS)
    query = Encoder.load(model).encode(["text number 7"], role="query")[0]
    assert recipe["search"](index, query, 3) == hits
    check_vectors(tmp_path / "out", model)
    check_origins(origins, bare_python)


def check_vectors(out: Path, model: str) -> None:
    table = pq.read_table(out).sort_by("id")
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    texts = tuple(table["body"].to_pylist())
    assert_close(vectors, reference(model, texts, prompt="passage: "), FP32_TOLERANCE)


def check_origins(origins: dict[str, Any], bare_python: str) -> None:
    """An executor's packages came from the archive, and its Python from the machine."""
    files = origins["files"]
    assert set(files) == {"e5spark", "openvino", "tokenizers", "numpy", "pyarrow", "pandas"}
    inside = Path(origins["directory"]) / "env" / "site-packages"
    assert [name for name, file in files.items() if not Path(file).is_relative_to(inside)] == []
    assert Path(origins["interpreter"]).parent == Path(bare_python).parent


@pytest.mark.kits
def test_an_archive_for_another_python_ends_the_run_with_what_to_do(
    submit: Callable[..., subprocess.CompletedProcess[str]],
    launcher: Callable[..., Path],
    job_file: Callable[..., str],
    tmp_path: Path,
    model: str,
) -> None:
    prepare(model_spec(model, {}), tmp_path / "model")
    pack(launcher(version="3.99").parent.parent, tmp_path / "other.tar.gz")
    script = str(REPOSITORY / "jobs" / "embed.py")
    archives = f"{tmp_path / 'other.tar.gz'}#env"
    job = job_file(**docs_job(tmp_path, name=str(tmp_path / "model")))
    completed = submit(archives, script, job)
    assert completed.returncode == 2, completed.stderr + completed.stdout
    document = json.loads(completed.stdout.splitlines()[-1])
    assert document["message"].startswith(f"The archive needs Python 3.99 on {platform.machine()}")
    assert f"python3 is {VERSION}" in document["message"]


def pack(directory: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(directory, ".")
