"""The five reference checkpoints at their exact size and configuration, with random weights.

Two directories serve two checkpoints each: what tells multilingual-e5-large from -large-instruct,
and -small from its distilled copy, is the table that `checkpoint=` names, not the shape.
"""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from e5spark.encoder import Encoder
from e5spark.encoder.verify import agreement
from e5spark.errors import OptionError
from e5spark.model import prompts, registry
from e5spark.model.recipe import resolve_recipe
from e5spark.model.spec import ModelOptions, model_spec
from tests.checkpoints import sentence_transformers_layout, true_size
from tests.oracle import FP32_TOLERANCE, assert_close
from tests.texts import SENTENCES

pytestmark = pytest.mark.large

E5 = {"query": "query: ", "passage": "passage: "}
TASK = "Given a claim, find documents that refute it"
INSTRUCT = {"query": f"Instruct: {TASK}\nQuery: ", "passage": ""}
# Directory and prompts of each checkpoint.
CHECKPOINTS = {
    "intfloat/e5-small-v2": ("intfloat/e5-small-v2", E5),
    "intfloat/multilingual-e5-small": ("intfloat/multilingual-e5-small", E5),
    "avditvs/multilingual-e5-small-distill-base": ("distilled", E5),
    "intfloat/multilingual-e5-large": ("intfloat/multilingual-e5-large", E5),
    "intfloat/multilingual-e5-large-instruct": ("intfloat/multilingual-e5-large", INSTRUCT),
}
# The shape of most multilingual users, and the cheapest with a vocabulary of 250,037: 0.5 GB.
SAMPLE = "intfloat/multilingual-e5-small"
BF16_WORST_COSINE = 0.9995

# The long one is cut. References take it apart from the others: their padding would cost minutes.
SHORT = (
    "x",
    SENTENCES["english"][2],
    SENTENCES["russian"][1],
    SENTENCES["chinese"][0],
    SENTENCES["emoji"][1],
    " ".join(SENTENCES["german"][:2]),
)
LONG = (" ".join(SENTENCES["english"] * 4),)
BATCHES = {"query": (SHORT, LONG), "passage": (SHORT,)}
TEXTS = {"query": SHORT + LONG, "passage": SHORT}


@dataclass(frozen=True)
class Vectors:
    """The vectors of TEXTS by role, as each of three makes them."""

    ours: dict[str, np.ndarray]
    transformers: dict[str, np.ndarray]
    sentence_transformers: dict[str, np.ndarray]


class Directories:
    """The directory of each checkpoint, written when a test first asks for it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getitem__(self, name: str) -> Path:
        return self._written(CHECKPOINTS[name][0])

    def _written(self, layout: str) -> Path:
        directory = self._root / layout.rpartition("/")[2]
        if directory.exists():
            return directory
        if layout != "distilled":
            return sentence_transformers_layout(true_size(directory, layout))
        # Published without a tokenizer of its own.
        return shutil.copytree(
            self._written("intfloat/multilingual-e5-small"),
            directory,
            ignore=shutil.ignore_patterns("tokenizer*", "sentencepiece*", "special_tokens*"),
            copy_function=os.link,
        )


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directories]:
    """The directory of each checkpoint: 9 GB for all, deleted when the module is done."""
    root = tmp_path_factory.mktemp("true_size")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E5SPARK_CACHE", str(root / "cache"))
        yield Directories(root)
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def options(directories: Directories) -> Callable[[str], ModelOptions]:
    """The options that a user sets besides the directory."""

    def of(name: str) -> ModelOptions:
        options: ModelOptions = {"checkpoint": name}
        if CHECKPOINTS[name][0] == "distilled":
            options["tokenizer"] = str(directories["intfloat/multilingual-e5-small"])
        return options

    return of


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.large_sample] * (name == SAMPLE))
        for name in CHECKPOINTS
    ],
)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def vectors(name: str, directories: Directories, options: Callable[[str], ModelOptions]) -> Vectors:
    """One model in memory at a time: the large shape takes 2.2 GB."""
    encoder = Encoder.load(str(directories[name]), **options(name))
    ours = {
        role: encoder.encode(texts, role=role, instruction=task(name, role))
        for role, texts in TEXTS.items()
    }
    del encoder
    tokenizer = options(name).get("tokenizer") or str(directories[name])
    vectors = Vectors(
        ours=ours,
        transformers=by_transformers(directories[name], tokenizer, CHECKPOINTS[name][1]),
        sentence_transformers=by_sentence_transformers(tokenizer, CHECKPOINTS[name][1]),
    )
    gc.collect()
    return vectors


@torch.inference_mode()
def by_transformers(
    directory: Path, tokenizer_directory: str, role_prompts: dict[str, str]
) -> dict[str, np.ndarray]:
    """As the model cards do it."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    model = AutoModel.from_pretrained(directory).eval()
    by_role = {}
    for role, batches in BATCHES.items():
        vectors = []
        for texts in batches:
            batch = tokenizer(
                [role_prompts[role] + text for text in texts],
                max_length=512,
                padding=True,
                truncation=True,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            pooled = hidden.masked_fill(~mask.bool(), 0.0).sum(1) / mask.sum(1)
            vectors.append(torch.nn.functional.normalize(pooled, p=2, dim=1).numpy())
        by_role[role] = np.concatenate(vectors)
    return by_role


def by_sentence_transformers(directory: str, role_prompts: dict[str, str]) -> dict[str, np.ndarray]:
    model = SentenceTransformer(directory, device="cpu")
    return {
        role: np.concatenate(
            [
                model.encode(list(texts), normalize_embeddings=True, prompt=role_prompts[role])
                for texts in batches
            ]
        )
        for role, batches in BATCHES.items()
    }


def task(name: str, role: str) -> str | None:
    return TASK if CHECKPOINTS[name][1] is INSTRUCT and role == "query" else None


def test_the_files_are_those_of_the_published_checkpoint(
    name: str, directories: Directories, options: Callable[[str], ModelOptions]
) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(directories[name]))
    checkpoint = registry.CHECKPOINTS[name]
    recipe = resolve_recipe(model_spec(str(directories[name]), options(name)), directories[name])
    assert model.embeddings.word_embeddings.weight.shape == (
        checkpoint.vocab,
        checkpoint.shape.hidden,
    )
    assert len(model.encoder.layer) == checkpoint.shape.layers
    assert model.config.num_attention_heads == checkpoint.shape.heads
    assert model.config.intermediate_size == checkpoint.shape.ffn
    assert recipe == checkpoint.recipe


@pytest.mark.parametrize("role", prompts.ROLES)
def test_vectors_equal_transformers(vectors: Vectors, role: str) -> None:
    report(f"transformers, {role}", vectors.ours[role], vectors.transformers[role])
    assert_close(vectors.ours[role], vectors.transformers[role], FP32_TOLERANCE)


@pytest.mark.parametrize("role", prompts.ROLES)
def test_vectors_equal_sentence_transformers(vectors: Vectors, role: str) -> None:
    report(
        f"sentence-transformers, {role}", vectors.ours[role], vectors.sentence_transformers[role]
    )
    assert_close(vectors.ours[role], vectors.sentence_transformers[role], FP32_TOLERANCE)


def test_the_prompt_of_the_role_makes_the_vector(vectors: Vectors) -> None:
    """Else the comparisons above could not tell a missing prompt."""
    difference = np.abs(vectors.ours["query"][: len(SHORT)] - vectors.ours["passage"]).max(axis=1)
    assert (difference > 100 * FP32_TOLERANCE).all()


def test_an_instruct_checkpoint_refuses_a_query_without_instruction(
    directories: Directories,
) -> None:
    instruct = "intfloat/multilingual-e5-large-instruct"
    recipe = resolve_recipe(
        model_spec(str(directories[instruct]), {"checkpoint": instruct}), directories[instruct]
    )
    with pytest.raises(OptionError, match="needs an instruction"):
        prompts.prefix(recipe.prompts, "query")


# Several jobs in one session: its worker has all cores, and loads each directory once.
_SESSION = """
import sys
from pyspark.sql import SparkSession
from e5spark.cli import main
builder = SparkSession.builder.master("local[2]").config("spark.task.cpus", 2)
builder = builder.config("spark.ui.enabled", False).config("spark.driver.host", "127.0.0.1")
session = builder.config("spark.log.level", "ERROR").getOrCreate()
codes = [main(["embed", job]) for job in sys.argv[1:]]
session.stop()
sys.exit(max(codes))
"""


@dataclass(frozen=True)
class Jobs:
    """What the jobs of all checkpoints have written, and how often they have loaded a model."""

    outputs: dict[str, Path]
    loads: int


@pytest.fixture(scope="module")
def jobs(
    jvm: None,
    directories: Directories,
    options: Callable[[str], ModelOptions],
    tmp_path_factory: pytest.TempPathFactory,
) -> Jobs:
    """Runs the job of each checkpoint on the texts of queries."""
    root = tmp_path_factory.mktemp("jobs")
    (root / "texts.csv").write_text(
        "\n".join(["id,text", *(f'{row},"{text}"' for row, text in enumerate(TEXTS["query"]))])
    )
    files, outputs = [], {}
    for number, name in enumerate(CHECKPOINTS):
        outputs[name] = root / f"output{number}"
        embed = {"text": "text", "role": "query", "instruction": task(name, "query") or ""}
        sections = {
            "input": {"path": str(root / "texts.csv"), "format": "csv"},
            "embed": embed,
            "model": {"name": str(directories[name]), **options(name)},
            "output": {"path": str(outputs[name])},
            "run": {"partitions": 1},
        }
        files.append(root / f"job{number}.toml")
        files[-1].write_text(
            "\n".join(
                f"[{section}]\n" + "\n".join(f"{key} = {value!r}" for key, value in values.items())
                for section, values in sections.items()
            )
        )
    environment = {
        **os.environ,
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "E5SPARK_TRACE": str(root),
    }
    environment.pop("SPARK_HOME", None)
    completed = subprocess.run(
        [sys.executable, "-c", _SESSION, *map(str, files)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-4000:]
    loads = [line for path in root.glob("*.jsonl") for line in path.read_text().splitlines()]
    return Jobs(outputs=outputs, loads=sum('"event": "load"' in line for line in loads))


# Without the sample: the jobs of all checkpoints run in one session.
@pytest.mark.parametrize("name", CHECKPOINTS, indirect=True)
def test_vectors_of_the_job_equal_transformers(name: str, jobs: Jobs, vectors: Vectors) -> None:
    table = pq.read_table(jobs.outputs[name]).sort_by([("id", "ascending")])
    assert table["status"].to_pylist() == ["ok"] * len(TEXTS["query"])
    assert table["truncated"].to_pylist() == [False] * (len(TEXTS["query"]) - 1) + [True]
    actual = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    order = [TEXTS["query"].index(text) for text in table["text"].to_pylist()]
    report("the job against transformers", actual, vectors.transformers["query"][order])
    assert_close(actual, vectors.transformers["query"][order], FP32_TOLERANCE)


def test_checkpoints_of_the_same_weights_are_loaded_once(jobs: Jobs) -> None:
    """Five jobs, three different models: what differs between them are prompts."""
    assert jobs.loads == 3


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(SAMPLE, marks=pytest.mark.large_sample),
        "intfloat/multilingual-e5-large",
    ],
)
def test_bf16_is_close_to_fp32(
    size: str, directories: Directories, options: Callable[[str], ModelOptions]
) -> None:
    some = SHORT[1:]
    pair = []
    for precision in ("fp32", "bf16"):
        encoder = Encoder.load(str(directories[size]), precision=precision, **options(size))
        pair.append(encoder.encode(some, role="query"))
        del encoder
        gc.collect()
    worst = agreement(*pair).worst_cosine
    print(f"{size}: worst cosine of bf16 to fp32 {worst:.6f}")
    assert np.abs(pair[0] - pair[1]).max() > 0, "bf16 was not in use"
    assert worst >= BF16_WORST_COSINE


def report(what: str, actual: np.ndarray, expected: np.ndarray) -> None:
    print(f"{what}: largest difference {np.abs(actual - expected).max():.2g}")
