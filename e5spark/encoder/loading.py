"""A checkpoint to its tokenizer and the engine that runs it: what is expensive, loaded once."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from e5spark.encoder.engine import Loaded
from e5spark.encoder.tokenizer import Tokenizer, appends_eos
from e5spark.errors import ModelError, OptionError, from_text
from e5spark.model import prepared
from e5spark.model.checkpoint import Files, hash_files
from e5spark.model.digest import cache_directory

# OpenVINO reports its use to its makers where this package is found; no executor calls home.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what import expects


def load(files: Files, *, engine: str, precision: str, device: str, threads: int | None) -> Loaded:
    """Returns the loaded checkpoint.

    Args:
        files: A checkpoint, or a prepared model.
        engine: ``torch``, ``openvino`` or ``auto``.
        precision: Decided by now: ``auto`` is not one.
        device: ``auto``, or a torch device.
        threads: CPU threads of the forward passes; None leaves the engine's own choice.

    Raises:
        ModelError: If it cannot be loaded.
        OptionError: If the engine is not installed, or cannot run this.
    """
    chosen = decide_engine(files, engine=engine, device=device)
    # Importing the door must load no engine; loading a model loads the one it needs.
    if chosen == "openvino":
        return _load_openvino(files, precision=precision, threads=threads)
    from e5spark.encoder.engines.torch import TorchEngine

    tokenizer = Tokenizer.load(files.tokenizer, appends_eos=appends_eos(files.model))
    running = TorchEngine.load(
        files.model, precision=precision, device=device, threads=threads, pad_id=tokenizer.pad_id
    )
    return Loaded(tokenizer=tokenizer, engine=running)


def decide_engine(files: Files, *, engine: str, device: str) -> str:
    """Returns the engine that runs a model here: OpenVINO on CPUs that have it, else torch.

    Raises:
        OptionError: If the engine that was asked for cannot run it.
    """
    installed = importlib.util.find_spec("openvino") is not None
    is_prepared = prepared.read(files.model) is not None
    if engine == "torch" and is_prepared:
        raise OptionError(
            f"{files.model} is a prepared model, which the openvino engine runs; engine is 'torch'."
        )
    if engine == "openvino" or is_prepared:
        if not installed:
            raise OptionError(
                "The openvino engine is not installed here: pip install 'e5spark[openvino]'."
            )
        if device not in ("auto", "cpu"):
            raise OptionError(f"The openvino engine runs on CPUs; device is {device!r}.")
        return "openvino"
    fits = installed and prepared.can_prepare(files.model) and _is_cpu(device)
    return "openvino" if engine == "auto" and fits else "torch"


def _is_cpu(device: str) -> bool:
    if device != "auto" or importlib.util.find_spec("torch") is None:
        return device in ("auto", "cpu")
    import torch

    return not torch.cuda.is_available()


def _load_openvino(files: Files, *, precision: str, threads: int | None) -> Loaded:
    from e5spark.encoder.engines.openvino import OpenVINOEngine

    directory = files.model
    if prepared.read(directory) is None:
        directory = ready(files)
    manifest = prepared.read(directory)
    if manifest is None:
        raise ModelError(f"{directory} is no prepared model.")
    tokenizer = Tokenizer.read(directory / prepared.TOKENIZER, pad_id=manifest.pad_id)
    running = OpenVINOEngine.load(directory, manifest, precision=precision, threads=threads)
    return Loaded(tokenizer=tokenizer, engine=running)


def ready(files: Files) -> Path:
    """Returns the directory of a checkpoint's prepared model on this machine.

    It is made by the first process that asks, while the others wait, and kept for every later one
    under the hash of the checkpoint's files.

    Raises:
        ModelError: If it cannot be made.
    """
    weights = hash_files(files)
    name = f"{weights.weights[:20]}-{weights.tokenizer[:12]}-{prepared.FORMAT}"
    directory = cache_directory() / "prepared" / name
    if prepared.read(directory) is None:
        with prepared.locked(directory.with_suffix(".lock")):
            if prepared.read(directory) is None:
                _export(files, directory)
    return directory


def _export(files: Files, to: Path) -> None:
    if "torch" in sys.modules:  # nothing to save
        from e5spark.encoder.engines.export import export

        export(files, to)
        return
    # In a process of its own: a worker does not keep torch, transformers and a second copy of the
    # weights in its memory (350 MB and more) for the rest of its life.
    command = [sys.executable, "-m", "e5spark.encoder.engines.export"]
    done = subprocess.run(
        [*command, str(files.model), str(files.tokenizer), str(to)],
        # What Spark ships with --py-files is on the path of this process only.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise from_text(done.stderr) or ModelError(
            f"{files.model} could not be prepared for the openvino engine: {last[0]}. Executors "
            "without torch and transformers need a model that e5spark prepare made."
        )
