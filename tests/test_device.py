"""Where a worker runs its model: what Spark gave its task, then what its process may see."""

from types import SimpleNamespace

import pytest
from pyspark import TaskContext
from pyspark.resource import ResourceInformation

from e5spark.spark.device import decide_device


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def task(monkeypatch):
    """Makes this process a task that Spark gave these GPUs."""

    def begin(*addresses):
        assigned = {"gpu": ResourceInformation("gpu", list(addresses))} if addresses else {}
        context = SimpleNamespace(resources=lambda: assigned)
        monkeypatch.setattr(TaskContext, "get", lambda: context)

    return begin


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_device_that_is_named_stays(device, task):
    task("0")
    assert decide_device(device) == device


def test_without_a_gpu_of_its_own_a_worker_takes_the_cpu(task):
    assert decide_device("auto") == "cpu"
    task()
    assert decide_device("auto") == "cpu"


def test_a_task_takes_the_gpu_that_spark_gave_it(task):
    task("3")
    assert decide_device("auto") == "cuda:3"


@pytest.mark.parametrize(
    ("visible", "device"),
    [("3", "cuda:0"), ("2, 3", "cuda:1"), ("GPU-5c91", "cuda:0"), ("-1", "cpu")],
)
def test_its_number_is_the_one_that_the_process_sees(visible, device, task, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    task("3")
    assert decide_device("auto") == device


@pytest.mark.parametrize(
    ("visible", "device"),
    [("0", "cuda:0"), ("2,3", "cuda:0"), ("", "cpu"), ("-1", "cpu"), ("NoDevFiles", "cpu")],
)
def test_without_resources_of_spark_the_process_decides(visible, device, task, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    task()
    assert decide_device("auto") == device
