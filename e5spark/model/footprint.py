"""The memory that a model takes in a worker, estimated from its files before it is loaded.

The constants are measured; docs/worker-deaths.md has the table.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from e5spark.errors import OptionError
from e5spark.limits import Kind, MemoryCeiling
from e5spark.model import prepared
from e5spark.model.architecture import read_config
from e5spark.model.checkpoint import Files, weight_files
from e5spark.model.weights import read_entries

_MB = 1 << 20
# What OpenVINO keeps of a weight file in its own order, as a part of the file.
_COPIES = {"fp32": 1.0, "bf16": 0.5, "int8": 1.0}
# Bytes of a tokenizer for each token of its vocabulary: the 250,002 of XLM-R take 144 MB.
_TOKEN = 600
# The address space of CUDA's libraries, which torch maps where no GPU is used, too.
_CUDA = 2650 * _MB


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The memory of a worker with a loaded model, without the texts of its sort windows.

    Attributes:
        usual: Bytes that it takes, with the activations of forward passes.
        least: Bytes without which it certainly cannot be loaded: below them a worker is refused.
    """

    usual: Mapping[Kind, int]
    least: Mapping[Kind, int]


_UNKNOWN = Footprint(
    usual={"address_space": 0, "resident": 0}, least={"address_space": 0, "resident": 0}
)


def footprint(files: Files, *, engine: str, precision: str, threads: int = 1) -> Footprint:
    """Returns the estimated memory of a model on the CPU; no weight is read.

    Args:
        files: A checkpoint, or a prepared model.
        engine: The engine that runs it, never ``auto``. All numbers of an engine that is not
            e5spark's are 0.
        precision: The precision that it is run in, never ``auto``.
        threads: CPU threads of its forward passes.

    Raises:
        ModelError: If the checkpoint's files are damaged.
    """
    if engine not in ("openvino", "torch"):
        return _UNKNOWN
    values = read_config(files.model).values
    tokenizer = _TOKEN * int(values["vocab_size"])
    if engine == "torch":
        weights = sum(_size(files.model / name) for name in weight_files(files.model))
        return _torch(weights, tokenizer)
    table = 4 * int(values["vocab_size"]) * int(values["hidden_size"])
    return _openvino(
        table, _other_weights(files.model, table), tokenizer, _COPIES[precision], threads
    )


def check_fits(model: str, needs: Footprint, ceilings: Iterable[MemoryCeiling]) -> None:
    """Raises if a model certainly cannot be loaded within the limits.

    Args:
        model: The model's name, for the message.
        needs: Its footprint.
        ceilings: The limits of this process.

    Raises:
        OptionError: If a limit is below the least that the model needs.
    """
    for ceiling in ceilings:
        if ceiling.bytes < needs.least[ceiling.kind]:
            raise OptionError(f"The model {model} does not fit. {_comparison(needs, ceiling)}")


def shortage(model: str, needs: Footprint, ceilings: Iterable[MemoryCeiling]) -> str | None:
    """Returns why a model that could not be loaded has probably had too little memory.

    Args:
        model: The model's name, for the message.
        needs: Its footprint.
        ceilings: The limits of this process.

    Returns:
        The message; None if every limit allows what the model usually takes.
    """
    for ceiling in ceilings:
        if ceiling.bytes < needs.usual[ceiling.kind]:
            return (
                f"The model {model} could not be loaded, probably for lack of memory. "
                f"{_comparison(needs, ceiling)}"
            )
    return None


def _comparison(needs: Footprint, ceiling: MemoryCeiling) -> str:
    usual, least = needs.usual[ceiling.kind], needs.least[ceiling.kind]
    return (
        f"With it a Python worker takes about {_mb(usual)} of {_COUNTED[ceiling.kind]}, at the "
        f"very least {_mb(least)}, but {ceiling.source} allows {_mb(ceiling.bytes)}. "
        f"{_REMEDIES[ceiling.kind]}"
    )


def spare(
    needs: Footprint, ceilings: Iterable[MemoryCeiling], *, in_child: bool = False
) -> int | None:
    """Returns the bytes that the limits leave for texts beside a model; None without limits.

    Args:
        needs: The model's footprint.
        ceilings: The limits of this process.
        in_child: Whether a child process has loaded the model, so that what other processes use
            includes it.

    Returns:
        A number below 0 if the model takes more than there is.
    """
    return min(
        (
            ceiling.bytes
            - ceiling.others
            - (0 if in_child and ceiling.kind == "resident" else needs.usual[ceiling.kind])
            for ceiling in ceilings
        ),
        default=None,
    )


_COUNTED: Mapping[Kind, str] = {"address_space": "address space", "resident": "memory"}
_SMALLER = (
    "or take a smaller model, the openvino engine, or one worker for each executor "
    "(spark.task.cpus = spark.executor.cores)."
)
_REMEDIES: Mapping[Kind, str] = {
    "address_space": "Spark divides spark.executor.pyspark.memory by spark.executor.cores. Raise "
    f"it, leave it unset and limit the container instead, {_SMALLER}",
    "resident": f"Raise spark.executor.memoryOverhead, or the machine's memory, {_SMALLER}",
}


def _openvino(table: int, weights: int, tokenizer: int, copied: float, threads: int) -> Footprint:
    """Maps the table and the weights, and copies most weights when it compiles the model."""
    copy = int(copied * weights)
    more = threads - 1
    return Footprint(
        usual={
            "address_space": (900 + 100 * more) * _MB + table + weights + copy + tokenizer,
            "resident": (240 + 40 * more) * _MB + int(1.6 * weights) + tokenizer,
        },
        least={
            "address_space": 500 * _MB + table + weights + copy // 2 + tokenizer // 2,
            "resident": 80 * _MB + copy // 2 + tokenizer // 2,
        },
    )


def _torch(weights: int, tokenizer: int) -> Footprint:
    """Maps the weights twice while it loads them; in fp32 they stay pages of their file."""
    libraries, has_cuda = _torch_libraries()
    cuda = _CUDA if has_cuda else 0
    return Footprint(
        usual={
            "address_space": 500 * _MB + libraries + cuda + 2 * weights + tokenizer,
            "resident": 860 * _MB + int(0.8 * weights),
        },
        least={
            "address_space": libraries + cuda // 3 + weights,
            "resident": 200 * _MB,
        },
    )


def _torch_libraries() -> tuple[int, bool]:
    """The bytes of torch's own libraries, which it maps, and whether it is built for CUDA."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return 0, False
    library = Path(found.origin).parent / "lib"
    names = ("libtorch_cpu.so", "libtorch_cuda.so", "libtorch_python.so")
    return sum(_size(library / name) for name in names), (library / names[1]).exists()


def _other_weights(model: Path, table: int) -> int:
    """The bytes of a model's weights, once prepared, without its table of token embeddings."""
    if prepared.read(model) is not None:
        return _size(model / prepared.WEIGHTS)
    entries = (
        entry for name in weight_files(model) for entry in read_entries(model / name).values()
    )
    return max(0, sum(4 * math.prod(entry.shape) for entry in entries) - table)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _mb(size: int) -> str:
    return f"{size / _MB:,.0f} MB"
