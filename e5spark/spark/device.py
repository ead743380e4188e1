"""The device on which a worker runs its model, and the precision that ``auto`` means there."""

import os

from pyspark import TaskContext
from pyspark.sql import SparkSession

from e5spark.model.engines import ENGINES
from e5spark.model.spec import ModelSpec, Precision

_TASK_GPUS = "spark.task.resource.gpu.amount"


def default_precision(spark: SparkSession | None, spec: ModelSpec) -> Precision:
    """Returns what ``precision="auto"`` means for a model that is not an int8 model.

    It is bf16 where the model runs on GPUs: Spark gives each task one, or the spec names one. On
    the driver only settings are read, because it may be a machine without a GPU.

    Args:
        spark: The session; None if there is none yet.
        spec: The model as the user described it.
    """
    if spec.engine != "auto" and "cuda" not in ENGINES[spec.engine].devices:
        return "fp32"
    if spec.device.startswith("cuda"):
        return "bf16"
    gpus = spark.conf.get(_TASK_GPUS, None) if spark is not None else None
    return "bf16" if spec.device == "auto" and float(gpus or 0) > 0 else "fp32"


def decide_device(device: str) -> str:
    """Returns the device for ``auto``: the task's GPU, else the process's, else ``cpu``.

    A GPU that neither Spark nor ``CUDA_VISIBLE_DEVICES`` assigns may belong to another process and
    is not used. Any other ``device`` is returned as it is.
    """
    if device != "auto":
        return device
    visible = [number.strip() for number in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context is not None else None
    if gpu is not None and (len(visible) > 1 or visible == [""]):
        # torch numbers the GPUs that the process sees, Spark all GPUs of the machine.
        address = gpu.addresses[0]
        return f"cuda:{visible.index(address) if address in visible else address}"
    # Cluster managers set -1 or NoDevFiles where there is no GPU.
    return "cpu" if visible[0] in ("", "-1", "NoDevFiles") else "cuda:0"
