"""Where a worker runs its model: what Spark gave its task, then what its process may see.

And the precision that ``auto`` means, which the driver decides from the session's settings.
"""

from types import SimpleNamespace

import pytest
from pyspark import TaskContext
from pyspark.resource import ResourceInformation

from e5spark.model.spec import model_spec
from e5spark.spark.device import decide_device, default_precision
from e5spark.spark.embedding import plan_model


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


def session_with(**settings):
    """A session as far as its settings go."""
    return SimpleNamespace(
        conf=SimpleNamespace(get=lambda key, default: settings.get(key, default))
    )


ONE_GPU = {"spark.task.resource.gpu.amount": "1"}


@pytest.mark.parametrize(
    ("settings", "options", "precision"),
    [
        ({}, {}, "fp32"),
        (ONE_GPU, {}, "bf16"),
        ({"spark.task.resource.gpu.amount": "0.25"}, {}, "bf16"),
        ({"spark.task.resource.gpu.amount": "0"}, {}, "fp32"),
        (ONE_GPU, {"engine": "torch"}, "bf16"),
        (ONE_GPU, {"engine": "openvino"}, "fp32"),  # which runs on CPUs only
        (ONE_GPU, {"device": "cpu"}, "fp32"),
        ({}, {"device": "cuda:1"}, "bf16"),
        ({}, {"device": "mps"}, "fp32"),
    ],
)
def test_auto_means_bf16_where_tasks_have_gpus(settings, options, precision):
    spec = model_spec("intfloat/e5-small-v2", options)
    assert default_precision(session_with(**settings), spec) == precision


def test_the_precision_on_gpus_is_part_of_the_fingerprint(model):
    spec = model_spec(model, {})
    on_gpus = plan_model(spec, spark=session_with(**ONE_GPU))
    on_cpus = plan_model(spec, spark=session_with())
    assert (on_gpus.spec.precision, on_cpus.spec.precision) == ("bf16", "fp32")
    assert on_gpus.fingerprint.digest != on_cpus.fingerprint.digest
    fp32 = plan_model(model_spec(model, {"precision": "fp32"}), spark=session_with(**ONE_GPU))
    assert fp32.fingerprint.digest == on_cpus.fingerprint.digest


def test_a_table_keeps_its_precision_on_machines_with_other_devices(model):
    spec = model_spec(model, {})
    assert plan_model(spec, spark=session_with(**ONE_GPU), stored="fp32").spec.precision == "fp32"
    assert plan_model(spec, spark=session_with(), stored="bf16").spec.precision == "bf16"
