"""The recipes of examples/ against the real stores: `make recipes` installs their packages.

Each loads three exports of one table: all rows, what has changed since, and what has changed then.
The stores are in this process, in files, or, for PostgreSQL, a server of its own on a local socket.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from e5spark import nearest
from e5spark.cli import main
from tests.cluster import REPOSITORY
from tests.tables import table_of

pytestmark = pytest.mark.recipes

K, QUERIES = 10, 20
Rows = dict[Any, list[float]]


@dataclass(frozen=True)
class Exports:
    """Directories of exports with one kind of ids."""

    all: Path
    changes: Path
    deletion: Path
    skipped: Path
    all_now: Path


@dataclass(frozen=True)
class Store:
    """A store that a recipe loads and searches, and what it wants."""

    load: Callable[[Path], int]
    search: Callable[[np.ndarray, int], list[Any]]
    ids: str = "table"
    recall: float = 1.0


@pytest.fixture(scope="module")
def table(spark: SparkSession, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a table in three states, and of its exports with each kind of ids."""
    directory = tmp_path_factory.mktemp("table")
    job = directory / "job.toml"
    job.write_text(
        f'[input]\npath = "{directory}/docs.parquet"\nid = "id"\n'
        '[embed]\ntext = "body"\nrole = "passage"\n'
        f'[model]\nname = "{model}"\n[output]\npath = "{directory}/out"\n'
        "[run]\ndelete_missing = true\n[quality]\ncanaries = false\n",
        "utf-8",
    )
    texts: dict[str, str | None] = {
        f"it's {number}": f"text {number} of {number % 7} and {number % 11}"
        for number in range(400)
    }
    changed = {f"it's {number}": f"another text {number % 97}" for number in range(30, 60)}
    changed |= {f"new {number}": f"a new text, the {number}th" for number in range(25)}
    gone = [f"it's {number}" for number in range(100, 125)]
    texts_now = {id: text for id, text in (texts | changed).items() if id not in gone}
    states = [texts, texts_now | {"it's 1": None}, texts_now | {"it's 1": None, "it's 2": None}]
    kinds = {"table": [], "uuid": ["--uuid"], "int64": ["--int64"]}
    for number, state in enumerate(states):
        pq.write_table(table_of(state), directory / "docs.parquet")
        assert main(["embed", str(job)]) == 0
        for kind, options in kinds.items():
            to = directory / kind
            since = [f"--since={to}/{number - 1}"] if number else []
            assert main(["export", str(job), f"--to={to}/{number}", *options, *since]) == 0
        if number == 1:
            for kind, options in kinds.items():
                assert main(["export", str(job), f"--to={directory / kind / 'now'}", *options]) == 0
    return directory


def exports(table: Path, ids: str) -> Exports:
    names = ("0", "1", "2", "2", "now")
    return Exports(*(table / ids / name for name in names))


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], ModuleType]:
    """Imports a recipe; skips the test if the package of its store is not installed."""

    def load(name: str, package: str) -> ModuleType:
        try:
            importlib.import_module(package)
        except ImportError:
            pytest.skip(f"the package {package} is not installed; make recipes installs it")
        path = REPOSITORY / "examples" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def duckdb_table(recipe: Callable[..., ModuleType], tmp_path: Path) -> Store:
    module, path = recipe("duckdb_table", "duckdb"), str(tmp_path / "passages.duckdb")
    return Store(
        lambda export: module.load(str(export), path),
        lambda vector, k: module.search(path, vector, k),
    )


@pytest.fixture
def lancedb_table(recipe: Callable[..., ModuleType], tmp_path: Path) -> Store:
    module, path = recipe("lancedb_table", "lancedb"), str(tmp_path / "lance")
    return Store(
        lambda export: module.load(str(export), path),
        lambda vector, k: module.search(path, vector, k),
    )


@pytest.fixture
def qdrant_collection(recipe: Callable[..., ModuleType]) -> Store:
    module = recipe("qdrant_collection", "qdrant_client")
    client = module.QdrantClient(":memory:")
    return Store(
        lambda export: module.load(str(export), client),
        lambda vector, k: module.search(client, vector, k),
        ids="uuid",
    )


@pytest.fixture
def pgvector_table(
    recipe: Callable[..., ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # or pgserver warns
    module = recipe("pgvector_table", "adbc_driver_postgresql")
    server = pytest.importorskip(
        "pgserver", reason="pgserver, a PostgreSQL with pgvector, is not installed: make recipes"
    ).get_server(tmp_path / "server")
    try:
        yield Store(
            lambda export: module.load(str(export), server.get_uri()),
            lambda vector, k: module.search(server.get_uri(), vector, k),
        )
    finally:
        server.cleanup()


@pytest.fixture
def faiss_shards(recipe: Callable[..., ModuleType], spark: SparkSession, tmp_path: Path) -> Store:
    module, path = recipe("faiss_shards", "faiss"), str(tmp_path / "index")
    return Store(
        lambda export: module.load(spark, str(export), path),
        lambda vector, k: module.search(path, vector, k, probes=12),
        ids="int64",
        recall=0.9,
    )


@pytest.fixture
def usearch_shards(recipe: Callable[..., ModuleType], spark: SparkSession, tmp_path: Path) -> Store:
    module, path = recipe("usearch_shards", "usearch"), str(tmp_path / "index")
    return Store(
        lambda export: module.load(spark, str(export), path),
        lambda vector, k: module.search(path, vector, k),
        ids="int64",
        recall=0.95,
    )


STORES = [
    "duckdb_table",
    "lancedb_table",
    "qdrant_collection",
    "pgvector_table",
    "faiss_shards",
    "usearch_shards",
]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


def rows_of(export: Path) -> Rows:
    rows = pq.read_table(export / "vectors").to_pylist()
    return {row["id"]: row["vector"] for row in rows}


def ok(export: Path) -> int:
    return json.loads((export / "export.json").read_text("utf-8"))["counts"]["ok"]


def recall(spark: SparkSession, store: Store, corpus: Path, queries: list[list[float]]) -> float:
    """Returns which share of the exact answers a store finds; equal scores are equal answers."""
    df = spark.read.parquet(f"{corpus}/vectors").withColumnRenamed("vector", "embedding")
    frame = spark.createDataFrame(list(enumerate(queries)), "id int, embedding array<float>")
    exact = nearest(frame, df, k=K).collect()
    lowest = {
        number: min(row.score for row in exact if row.query_id == number)
        for number in range(len(queries))
    }
    vectors, good = rows_of(corpus), 0
    for number, query in enumerate(queries):
        found = store.search(np.array(query, np.float32), K)
        assert len(set(found)) == K
        scores = np.array([vectors[id] for id in found], np.float32) @ np.array(query, np.float32)
        good += int((scores >= lowest[number] - 1e-5).sum())
    share = good / (K * len(queries))
    print(f"recall {share:.3f}")  # shown with -rP
    return share


def test_a_store_follows_the_table_and_is_searched(
    store: Store, table: Path, spark: SparkSession
) -> None:
    states = exports(table, store.ids)
    before, now = rows_of(states.all), rows_of(states.all_now)
    rng = np.random.default_rng(0)
    queries = [list(now[id]) for id in rng.choice(sorted(now), QUERIES, replace=False)]
    for _ in range(2):
        assert store.load(states.all) == ok(states.all) == len(before)
        assert recall(spark, store, states.all, queries) >= store.recall
    with pytest.raises(AssertionError, match="Load the export that this one starts from"):
        store.load(states.skipped)
    for _ in range(2):
        assert store.load(states.changes) == ok(states.changes) == len(now)
        # A search that finds an id that is gone fails: it has no vector.
        assert recall(spark, store, states.all_now, queries) >= store.recall
    gone = pq.read_table(states.deletion / "deleted")["id"].to_pylist()
    assert len(gone) == 1
    for _ in range(2):
        assert store.load(states.deletion) == len(now) - 1
    assert gone[0] not in store.search(np.array(now[gone[0]], np.float32), K)
