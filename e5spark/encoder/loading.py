"""A checkpoint's tokenizer and engine, loaded."""

import sys
from importlib import import_module
from types import ModuleType

from e5spark.encoder.engine import LoadedModel
from e5spark.encoder.packages import missing, require
from e5spark.errors import ModelError, OptionError
from e5spark.model import prepared
from e5spark.model.architecture import read_config
from e5spark.model.checkpoint import Files
from e5spark.model.engines import ENGINES

# OpenVINO reports its use to its makers if it can import this package; this blocks the import.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what import expects


def load(
    files: Files, *, engine: str, precision: str, device: str, threads: int | None
) -> LoadedModel:
    """Returns the loaded checkpoint.

    Args:
        files: A checkpoint, or a prepared model.
        engine: A name in ``ENGINES``, or ``auto``.
        precision: A resolved precision, never ``auto``.
        device: ``auto``, or a torch device.
        threads: CPU threads of the forward passes; None leaves the engine's own choice.

    Raises:
        ModelError: If the checkpoint cannot be loaded.
        OptionError: If the engine is not installed, or cannot run the checkpoint.
    """
    name = decide_engine(files, engine=engine, device=device)
    loaded: LoadedModel = _module(name).load(
        files, precision=precision, device=device, threads=threads
    )
    return loaded


def check_loadable(files: Files, *, engine: str, precision: str, device: str) -> str:
    """Checks all that an engine needs of this machine before it loads a model; loads none.

    Args:
        files: A checkpoint, or a prepared model.
        engine: The engine that ``decide_engine`` has returned.
        precision: A resolved precision, never ``auto``.
        device: ``auto``, or a torch device.

    Returns:
        The precision that the engine would compute in here.

    Raises:
        ModelError: If the model cannot be loaded here.
        OptionError: If a package or the device is missing.
    """
    actual: str = _module(engine).check(files, precision=precision, device=device)
    return actual


def _module(engine: str) -> ModuleType:
    # Importing e5spark.encoder loads no engine; loading a checkpoint loads the one that it needs.
    try:
        return import_module(f"e5spark.encoder.engines.{engine}")
    except ImportError as error:
        raise OptionError(
            f"The {engine} engine cannot be imported: {error}. Install its packages again: "
            f"pip install 'e5spark[{ENGINES[engine].extra}]'."
        ) from error


def decide_engine(files: Files, *, engine: str, device: str) -> str:
    """Returns the engine that runs a model on this machine, as ``ENGINES`` says.

    A prepared model names its engine. For a checkpoint ``auto`` is the first engine that is
    installed, runs on the device and can run the architecture.

    Raises:
        ModelError: If the model was prepared for an engine that this e5spark does not have.
        OptionError: If the requested engine cannot run the model, or is not installed.
    """
    manifest = prepared.read(files.model)
    if manifest is not None:
        if engine not in ("auto", manifest.engine):
            raise OptionError(
                f"{files.model} is a prepared model, which the {manifest.engine} engine runs; "
                f"engine is {engine!r}. Use the checkpoint itself, or engine='auto'."
            )
        if manifest.engine not in ENGINES:
            raise ModelError(
                f"{files.model} was prepared for the engine {manifest.engine!r}; this e5spark has "
                f"{' and '.join(ENGINES)}. Prepare it again, or install the release that "
                "prepared it."
            )
        engine = manifest.engine
    elif engine == "auto":
        engine = _preferred(files, device)
    _check_runnable(engine, device)
    return engine


def _preferred(files: Files, device: str) -> str:
    """The first engine that can run a checkpoint; the last one if none can."""
    device_type = _device_type(device)
    runnable = (
        name
        for name, entry in ENGINES.items()
        if device_type in entry.devices
        and not missing(entry.packages)
        and (not entry.runs_prepared or name == _prepared_by(files))
    )
    return next(runnable, list(ENGINES)[-1])


def _prepared_by(files: Files) -> str | None:
    return read_config(files.model).architecture.prepared_by


def _check_runnable(engine: str, device: str) -> None:
    entry = ENGINES[engine]
    if device != "auto" and _device_type(device) not in entry.devices:
        raise OptionError(
            f"device is {device!r}, but the {engine} engine runs on {', '.join(entry.devices)} "
            "only; use engine='auto'."
        )
    require(entry.packages, extra=entry.extra, purpose=f"The {engine} engine")


def _device_type(device: str) -> str:
    if device != "auto":
        return device.partition(":")[0]
    if missing(["torch"]):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
