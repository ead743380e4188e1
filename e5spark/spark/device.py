"""The device on which a worker runs its model."""

import os

from pyspark import TaskContext


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
