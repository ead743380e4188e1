"""What a worker may use, what a model takes, and what becomes of a worker that is too small."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from e5spark import encoder
from e5spark.encoder.engines.preparation import prepared_directory
from e5spark.encoder.isolated import IsolatedEncoder
from e5spark.errors import E5SparkError, ModelError, OptionError
from e5spark.limits import Kind, MemoryCeiling, memory_ceilings
from e5spark.model.checkpoint import Files
from e5spark.model.footprint import Footprint, check_fits, footprint, spare
from e5spark.model.resolve import Plan
from e5spark.model.spec import model_spec
from e5spark.spark import encoder_cache
from e5spark.spark.embedding import plan_model
from e5spark.spark.encoder_cache import encoder_for, isolated_encoder_for
from e5spark.spark.worker import Request, run, window_bytes
from tests.oracle import INVARIANCE_TOLERANCE, assert_close
from tests.tables import Job, table_of
from tests.trace import Trace

MB, GB = 1 << 20, 1 << 30
NEEDS = Footprint(
    usual={"address_space": 1000 * MB, "resident": 400 * MB},
    least={"address_space": 600 * MB, "resident": 200 * MB},
)
# v1's largest number, which stands for no limit.
NO_LIMIT = "9223372036854771712"


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Path]:
    """Writes a machine of 16 GB, with what /proc and /sys say on it."""

    def write(files: dict[str, str], *, swap_kb: int = 0) -> Path:
        meminfo = f"MemTotal: 16777216 kB\nMemAvailable: 12582912 kB\nSwapTotal: {swap_kb} kB\n"
        status = "Name: python\nRssAnon: 1048576 kB\n"
        everything = {"proc/meminfo": meminfo, "proc/self/status": status, **files}
        for name, content in everything.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


def resident(root: Path) -> list[int]:
    return sorted(c.bytes // MB for c in memory_ceilings(root) if c.kind == "resident")


def test_the_limits_of_a_container_and_of_all_around_it_are_found(
    machine: Callable[..., Path],
) -> None:
    root = machine(
        {
            "proc/self/cgroup": "0::/pods/executor\n",
            "sys/fs/cgroup/pods/executor/memory.max": "max\n",
            "sys/fs/cgroup/pods/memory.max": f"{3 * GB}\n",
            "sys/fs/cgroup/memory.max": f"{8 * GB}\n",
        }
    )
    assert resident(root) == [3072, 8192, 16384]


def test_a_container_of_cgroups_1_that_does_not_see_its_own_path_finds_its_limit(
    machine: Callable[..., Path],
) -> None:
    root = machine(
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/docker/6f2a\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GB}\n",
        }
    )
    assert resident(root) == [2048, 16384]


def test_without_a_container_the_machine_is_the_limit(machine: Callable[..., Path]) -> None:
    root = machine(
        {
            "proc/self/cgroup": "4:memory:/user\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT,
        }
    )
    (ceiling,) = (c for c in memory_ceilings(root) if c.kind == "resident")
    assert ceiling.source == "the machine's memory"
    # 16 GB, of which 12 are available and this process has 1.
    assert (ceiling.bytes, ceiling.others) == (16 * GB, 3 * GB)


@pytest.mark.parametrize(
    ("swap_max", "limit"), [(f"{GB}", 3 * 1024), ("0", 2 * 1024), ("max", 6 * 1024)]
)
def test_swap_that_a_container_may_use_counts(
    machine: Callable[..., Path], swap_max: str, limit: int
) -> None:
    root = machine(
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{2 * GB}",
            "sys/fs/cgroup/memory.swap.max": swap_max,
        },
        swap_kb=4 << 20,
    )
    assert resident(root)[0] == limit


def test_what_others_in_the_container_use_is_not_spare(machine: Callable[..., Path]) -> None:
    root = machine(
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{4 * GB}",
            "sys/fs/cgroup/memory.stat": f"anon {3 * GB}\nfile {GB}\n",
        }
    )
    (ceiling,) = (c for c in memory_ceilings(root) if c.bytes == 4 * GB)
    assert ceiling.others == 2 * GB  # this process has the third
    assert spare(NEEDS, [ceiling]) == 2 * GB - 400 * MB


def test_a_system_that_shows_no_limits_has_none(tmp_path: Path) -> None:
    assert resident(tmp_path) == []
    assert spare(NEEDS, []) is None


def test_the_address_space_that_spark_allows_is_a_limit() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from e5spark.limits import memory_ceilings\n"
        "c = memory_ceilings()[0]; print(c.kind, c.bytes, c.source)"
    )
    environment = {**os.environ, "PYSPARK_EXECUTOR_MEMORY_MB": "1024"}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert output == f"address_space {GB} spark.executor.pyspark.memory\n"


def ceiling(kind: Kind, size: int) -> MemoryCeiling:
    return MemoryCeiling(kind=kind, bytes=size, source="a limit")


@pytest.mark.parametrize(("kind", "least"), [("address_space", 600 * MB), ("resident", 200 * MB)])
def test_a_model_is_refused_only_below_the_least_that_it_needs(kind: Kind, least: int) -> None:
    check_fits("x", NEEDS, [ceiling(kind, least)])
    with pytest.raises(OptionError, match=r"a limit allows .* MB.*Raise"):
        check_fits("x", NEEDS, [ceiling("resident", GB), ceiling(kind, least - 1)])


def test_each_limit_is_compared_with_what_it_counts() -> None:
    both = [ceiling("address_space", 1200 * MB), ceiling("resident", 900 * MB)]
    check_fits("x", NEEDS, both)
    assert spare(NEEDS, both) == 200 * MB


@pytest.fixture
def plan(model: str) -> Plan:
    return plan_model(model_spec(model, {"precision": "fp32", "engine": "openvino"}))


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kind, int], None]:
    """Sets the limit of this process, as the cache of encoders sees it."""

    def set_limit(kind: Kind, size: int) -> None:
        monkeypatch.setattr(encoder_cache, "memory_ceilings", lambda: [ceiling(kind, size)])

    return set_limit


@pytest.mark.parametrize("encode_in", [encoder_for, isolated_encoder_for])
def test_a_worker_too_small_for_its_model_says_so_and_loads_nothing(
    encode_in: Callable[[Plan], object],
    new_model: str,
    allow: Callable[[Kind, int], None],
    monkeypatch: pytest.MonkeyPatch,
    trace: Trace,
) -> None:
    monkeypatch.setattr(encoder, "load", pytest.fail)
    allow("address_space", 400 * MB)
    plan = plan_model(model_spec(new_model, {"precision": "fp32"}))
    with pytest.raises(OptionError) as caught:
        encode_in(plan)
    message = str(caught.value)
    assert f"The model {new_model} does not fit." in message
    assert "a limit allows 400 MB" in message
    assert "spark.executor.pyspark.memory" in message
    assert "MemoryError" not in message  # which a job would take for a text's fault
    assert trace.events("load") == []


def test_a_model_that_cannot_be_loaded_within_a_limit_says_that_memory_is_short(
    new_model: str, allow: Callable[[Kind, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(encoder, "load", load)
    plan = plan_model(model_spec(new_model, {"precision": "fp32"}))
    allow("address_space", 800 * MB)
    with pytest.raises(OptionError, match=r"lack of memory.* a limit allows 800 MB.*bad_alloc"):
        encoder_for(plan)
    allow("address_space", 8 * GB)
    with pytest.raises(MemoryError, match="bad_alloc"):
        encoder_for(plan)


def test_a_damaged_model_is_not_taken_for_a_lack_of_memory(
    new_model: str, allow: Callable[[Kind, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ModelError("The weights are damaged. Prepare the model again.")

    monkeypatch.setattr(encoder, "load", load)
    allow("address_space", 800 * MB)
    with pytest.raises(ModelError, match="Prepare the model again"):
        encoder_for(plan_model(model_spec(new_model, {"precision": "fp32"})))


def test_a_model_in_the_child_process_is_counted_once() -> None:
    needs = Footprint(
        usual={"address_space": 3 * GB, "resident": 2 * GB},
        least={"address_space": GB, "resident": GB},
    )
    limits = [
        MemoryCeiling(kind="resident", bytes=8 * GB, others=3 * GB, source="the container"),
        MemoryCeiling(kind="address_space", bytes=9 * GB, source="Spark"),
    ]
    assert spare(needs, limits) == 3 * GB
    assert spare(needs, limits, in_child=True) == 5 * GB


def test_a_process_that_cannot_load_a_model_within_a_limit_says_so_too(
    new_model: str, allow: Callable[[Kind, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: IsolatedEncoder) -> None:
        raise E5SparkError("The model has ended its process, 3 times in a row.")

    monkeypatch.setattr(IsolatedEncoder, "start", start)
    allow("address_space", 800 * MB)
    with pytest.raises(OptionError, match=r"lack of memory.* a limit allows 800 MB.*3 times"):
        isolated_encoder_for(plan_model(model_spec(new_model, {"precision": "fp32"})))


LOAD = """
import resource, sys
from pathlib import Path
import pyspark.worker
from e5spark.encoder import Encoder
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
encoder = Encoder.load(sys.argv[1], engine=sys.argv[2], precision="fp32", threads=1)
encoder.encode(["text " * 600] * 8, role="passage")
"""


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_a_model_runs_within_its_usual_footprint(model: str, engine: str) -> None:
    directory = Path(model)
    files = Files(model=directory, tokenizer=directory)
    if engine == "openvino":  # prepared before, because that takes torch
        directory = prepared_directory(files)
        files = Files(model=directory, tokenizer=directory)
    usual = footprint(files, engine=engine, precision="fp32").usual["address_space"]
    # As a worker has it: with a thread for each CPU, the tokenizer would take memory for each.
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, model, engine, str(usual)]
    subprocess.run(command, check=True, timeout=120, env=environment)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_has_the_footprint_of_its_prepared_model(model: str, precision: str) -> None:
    files = Files(model=Path(model), tokenizer=Path(model))
    directory = prepared_directory(files)
    prepared = Files(model=directory, tokenizer=directory)
    first, second = (
        footprint(each, engine="openvino", precision=precision) for each in (files, prepared)
    )
    for kind in first.usual:
        assert first.usual[kind] == pytest.approx(second.usual[kind], rel=0.01)
        assert first.least[kind] == pytest.approx(second.least[kind], rel=0.01)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_least_is_less_than_the_usual(model: str, engine: str, precision: str) -> None:
    files = Files(model=Path(model), tokenizer=Path(model))
    needs = footprint(files, engine=engine, precision=precision)
    assert all(0 < needs.least[kind] < needs.usual[kind] for kind in needs.usual)


def test_the_memory_of_an_engine_that_is_not_ours_is_not_estimated(model: str) -> None:
    files = Files(model=Path(model), tokenizer=Path(model))
    needs = footprint(files, engine="hashes", precision="fp32")
    check_fits("x", needs, [ceiling("resident", 0)])


@pytest.mark.parametrize("spare_bytes", [None, 5 * GB, 1 << 40])
def test_where_memory_is_plenty_or_unknown_windows_are_whole(spare_bytes: int | None) -> None:
    assert window_bytes(spare_bytes) == 64 * MB


def test_a_window_never_costs_more_than_there_is_and_never_vanishes() -> None:
    sizes = [window_bytes(spare_bytes) for spare_bytes in range(-GB, 5 * GB, 10 * MB)]
    assert sizes == sorted(sizes)
    assert min(sizes) == 256 << 10
    assert window_bytes(400 * MB) < 3 * MB


def test_a_worker_with_little_spare_memory_has_smaller_windows_and_the_same_vectors(
    plan: Plan, allow: Callable[[Kind, int], None]
) -> None:
    request = Request(plan=plan, texts=1, role="passage")
    texts = pa.array([f"{number} " + "word " * 400 for number in range(1000)])  # 2 MB

    def vectors() -> list[pa.Array]:
        return [result for (result,) in run(request, [(texts,)])]

    allow("resident", 1 << 40)
    whole = vectors()
    files = Files(model=Path(plan.spec.model), tokenizer=Path(plan.spec.model))
    usual = footprint(files, engine="openvino", precision="fp32").usual["resident"]
    allow("resident", usual + 50 * MB)
    parts = vectors()
    assert [len(part) for part in whole] == [64, 64, 512, 360]
    assert len(parts) > len(whole)
    first, second = (
        pa.chunked_array([part.field("embedding") for part in parts]).combine_chunks().flatten()
        for parts in (whole, parts)
    )
    assert_close(first.to_numpy(), second.to_numpy(), INVARIANCE_TOLERANCE)


def test_a_job_whose_workers_are_too_small_ends_with_one_clear_error(
    spark: SparkSession,
    embed: Callable[..., dict[str, Any]],
    base: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trace: Trace,
) -> None:
    pq.write_table(table_of({1: "a text"}), tmp_path / "docs.parquet")
    # What Spark puts there for spark.executor.pyspark.memory=440m.
    monkeypatch.setitem(spark.sparkContext.environment, "PYSPARK_EXECUTOR_MEMORY_MB", "440")
    base["model"]["engine"] = "openvino"
    report = embed()
    assert (report["code"], report["error"]) == (2, "OptionError"), report
    assert "spark.executor.pyspark.memory allows 440 MB" in report["message"]
    assert trace.events("load") == []
