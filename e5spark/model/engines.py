"""The registry of engines: what the driver and the loader know about an engine they do not import.

The code of an engine is the module of the same name in ``e5spark.encoder.engines``.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """An engine as data.

    Attributes:
        packages: Importable names of the packages that it needs.
        extra: The extra of e5spark that installs them.
        devices: Types of torch devices that it runs on.
        precisions: Precisions that it computes in.
        runs_prepared: Whether it runs prepared models, which it makes from checkpoints on demand;
            otherwise it runs checkpoints as they were published.
    """

    packages: tuple[str, ...]
    extra: str
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    runs_prepared: bool


# ``auto`` means the first that can run the model on the device; the last runs every checkpoint.
ENGINES = {
    "openvino": EngineEntry(
        packages=("openvino",),
        extra="openvino",
        devices=("cpu",),
        precisions=("fp32", "bf16", "int8"),
        runs_prepared=True,
    ),
    "torch": EngineEntry(
        packages=("torch", "transformers", "safetensors"),
        extra="torch",
        devices=("cpu", "cuda", "mps"),
        precisions=("fp32", "bf16"),
        runs_prepared=False,
    ),
}
