"""An evaluation file is read strictly: its errors name the key, and what would be right."""

from pathlib import Path

import pytest

from e5spark.errors import ConfigError
from e5spark.evaluate import embedding, evaluation_file
from e5spark.evaluate.config import (
    ClassificationConfig,
    EvaluationConfig,
    RetrievalConfig,
    TableConfig,
)

WHOLE = """
[model]
name = "intfloat/e5-small-v2"

[output]
path = "~/evaluation"

[tasks.SciFact]
kind = "retrieval"
data = "/data/scifact"
depth = 100

[tasks.banking]
kind = "classification"
name = "Banking77Classification"
train = { path = "train.csv", text = "text" }
test = "test.csv"
label = "category"
model = { normalize = false }

[compare]
precisions = ["fp32", "bf16"]
dims = [384, 192]
"""


@pytest.fixture
def load(tmp_path: Path):
    def read(text: str, *overrides: str) -> EvaluationConfig:
        path = tmp_path / "eval.toml"
        path.write_text(text, "utf-8")
        return evaluation_file.load(path, overrides)

    return read


def test_whole_file_is_read(load) -> None:
    config = load(WHOLE)
    scifact, banking = config.tasks
    assert scifact.settings == RetrievalConfig(data="/data/scifact", depth=100)
    assert scifact.name == "SciFact"
    assert banking.settings == ClassificationConfig(
        name="Banking77Classification", label="category"
    )
    assert banking.tables == {
        "train": TableConfig(path="train.csv", text="text"),
        "test": TableConfig(path="test.csv"),
    }
    assert banking.model == {"normalize": False}
    assert config.output.path == str(Path.home() / "evaluation")
    assert config.compare.dims == (384, 192)


def test_override_changes_one_key(load) -> None:
    assert load(WHOLE, "tasks.SciFact.depth=7").tasks[0].settings.depth == 7


RETRIEVAL = '[tasks.x]\nkind = "retrieval"\n'
PAIRS = '[tasks.x]\nkind = "similarity"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"there is no task; add a section \[tasks.NAME\]"),
        ("[task.x]\n", r"unknown section \[task\]\. Did you mean 'tasks'\?"),
        ('[tasks]\nx = "retrieval"', r"tasks.x is a value; it must be a section"),
        (
            '[tasks.x]\nkind = "retrieve"',
            r"tasks.x.kind is 'retrieve'; it must be one of retrieval",
        ),
        (RETRIEVAL, r"\[tasks.x\] needs queries and corpus and qrels; or data"),
        (RETRIEVAL + 'data = "d"\ncorpsu = "x"', r"unknown key 'corpsu'.* Did you mean 'corpus'\?"),
        (RETRIEVAL + 'data = "d"\ndepth = 0', r"tasks.x.depth is 0; it must be 1 or more"),
        (
            RETRIEVAL + 'data = "d"\nlayout = "trec"',
            r"layout is 'trec'; it must be one of beir, miracl",
        ),
        (PAIRS, r"\[tasks.x\] needs pairs: a path, or a table"),
        (PAIRS + 'pairs = {path = "a", table = "b"}', r"needs path, table or job, and only one"),
        (PAIRS + "pairs = 3", r"tasks.x.pairs is 3; it must be a path, or a table"),
        (PAIRS + 'pairs = {path = "a", text = "b"}', r"text and vector name two columns each"),
        (
            PAIRS + 'pairs = {path = "a", colour = "b"}',
            r"unknown key 'colour' in \[tasks.x.pairs\]",
        ),
        (PAIRS + 'pairs = {job = "a", format = "csv"}', r"has the format and options of its job"),
        (
            PAIRS + 'pairs = "a"\nmodel = {dims = 3}',
            r"unknown key 'dims' in \[tasks.x.model\]. Did",
        ),
        (PAIRS + 'pairs = "a"\n[compare]\nprecisions = []', r"compare.precisions is empty"),
        (
            PAIRS + 'pairs = "a"\n[compare]\nprecisions = ["int8"]',
            r"compare.int8 names the directory",
        ),
        (PAIRS + 'pairs = "a"\n[compare]\ndims = [0]', r"compare.dims has a number below 1"),
    ],
)
def test_wrong_file_is_refused_with_the_key_at_fault(load, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The evaluation file .*none.toml cannot be read"):
        evaluation_file.load(tmp_path / "none.toml")


JOB = """
[input]
path = "/data/docs"
id = "doc"
[embed]
text = "body"
role = "passage"
column_prefix = "v_"
[model]
name = "intfloat/e5-small-v2"
[output]
path = "/data/vectors"
format = "delta"
"""


def test_job_names_its_output_its_ids_and_its_vectors(load, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB, "utf-8")
    table = f'{{ job = "{tmp_path}/job.toml" }}'
    config = load(RETRIEVAL + f'data = "d"\ncorpus = {table}')
    task = config.tasks[0]
    found = embedding.of_job(task.tables["corpus"], task, "corpus")
    assert found == TableConfig(
        path="/data/vectors", format="delta", id="doc", vector=("v_embedding",)
    )
    assert evaluation_file.formats(config) == {"", "delta"}
    with pytest.raises(ConfigError, match=r"embeds with role 'passage', and the queries of"):
        embedding.of_job(task.tables["corpus"], task, "queries")


def test_role_that_is_meant_is_accepted(load, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB, "utf-8")
    table = f'{{ job = "{tmp_path}/job.toml", role = "passage" }}'
    task = load(RETRIEVAL + f'data = "d"\nqueries = {table}').tasks[0]
    assert embedding.of_job(task.tables["queries"], task, "queries").path == "/data/vectors"
