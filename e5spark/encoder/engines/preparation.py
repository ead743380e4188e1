"""Preparation on demand: a checkpoint's prepared model in this machine's cache."""

import os
import subprocess
import sys
from pathlib import Path

from e5spark.encoder.packages import require
from e5spark.errors import ModelError, from_text
from e5spark.model import prepared
from e5spark.model.checkpoint import Files, hash_files
from e5spark.model.digest import cache_directory


def prepared_directory(files: Files) -> Path:
    """Returns the directory of a checkpoint's prepared model on this machine.

    The first process that needs the prepared model makes it while the others wait. It is kept for
    every later process, under the hash of the checkpoint's files.

    Raises:
        ModelError: If it cannot be made.
        OptionError: If torch or transformers is not installed.
    """
    directory = _directory(files)
    if prepared.read(directory) is None:
        with prepared.locked(directory.with_suffix(".lock")):
            if prepared.read(directory) is None:
                _export(files, directory)
    return directory


def check_preparable(files: Files) -> None:
    """Checks that a checkpoint has a prepared model on this machine, or can be prepared here.

    Raises:
        ModelError: If e5spark's cache cannot be written.
        OptionError: If torch or transformers is not installed.
    """
    directory = _directory(files)
    if prepared.read(directory) is not None:
        return
    _require(files)
    existing = next(parent for parent in directory.parents if parent.is_dir())
    if not os.access(existing, os.W_OK):
        raise ModelError(
            f"{cache_directory()}, e5spark's cache, cannot be written, and the prepared model of "
            f"{files.model} belongs there. Set E5SPARK_CACHE to a directory that can be written, "
            "or use a model made with e5spark prepare."
        )


def _directory(files: Files) -> Path:
    weights = hash_files(files)
    name = f"{weights.weights[:20]}-{weights.tokenizer[:12]}-{prepared.FORMAT}"
    return cache_directory() / "prepared" / name


def _require(files: Files) -> None:
    require(
        ("torch", "transformers"),
        extra="torch",
        purpose=f"Preparing {files.model} for the openvino engine (e5spark prepare does so once "
        "for every machine)",
    )


def _export(files: Files, to: Path) -> None:
    _require(files)
    if "torch" in sys.modules:  # already in this process's memory
        from e5spark.encoder.engines.export import export

        export(files, to)
        return
    # In a process of its own: a worker does not keep torch, transformers and a second copy of the
    # weights in its memory (350 MB and more) for the rest of its life.
    command = [sys.executable, "-m", "e5spark.encoder.engines.export"]
    process = subprocess.run(
        [*command, str(files.model), str(files.tokenizer), str(to)],
        # Only this process has the files of --py-files on its path.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise from_text(process.stderr) or ModelError(
            f"{files.model} could not be prepared for the openvino engine: {lines[-1]}. Executors "
            "without torch and transformers need a model made with e5spark prepare."
        )
