"""Where a worker runs its model."""

import os

from pyspark import TaskContext


def decide_device(device: str) -> str:
    """Returns what ``auto`` is here: the GPU of the task, else that of the process, else ``cpu``.

    Without either a GPU of this machine may be somebody else's, and is left alone.
    """
    if device != "auto":
        return device
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    context = TaskContext.get()
    gpu = context.resources().get("gpu") if context is not None else None
    if gpu is not None and (len(visible) > 1 or visible == [""]):
        # torch numbers what the process may see, Spark what the machine has.
        address = gpu.addresses[0]
        return f"cuda:{visible.index(address) if address in visible else address}"
    # -1 and NoDevFiles are how a cluster manager says that there is none.
    return "cpu" if visible[0] in ("", "-1", "NoDevFiles") else "cuda:0"
