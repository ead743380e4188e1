"""The content of a checkpoint's weights, which is the same whatever files hold them."""

import hashlib
import json
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from e5spark.cpus import available_cpus
from e5spark.model.architecture import ModelConfig
from e5spark.model.digest import cached, identity
from e5spark.model.weights import TensorEntry, canonical_name, read_entries

_VERSION = 1
_BLOCK = 1 << 22  # bytes
# Keys of config.json beyond the architecture's own that decide a vector, if they are set.
_FURTHER_KEYS = (
    "attention_bias",
    "head_dim",
    "is_decoder",
    "layer_types",
    "mlp_bias",
    "position_embedding_type",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
)
_UNSET = (None, False, "absolute")  # the last is the only position_embedding_type in use


def content_sha256(paths: Sequence[Path], config: ModelConfig) -> str:
    """Returns the identity of a checkpoint's weights: 64 hex digits.

    It is the hash of the tensors that the architecture needs, under their canonical names and
    widened to float32 (which is exact), and of the values of config.json that decide a vector. So
    the same weights have one identity in safetensors or ONNX, in one file or in shards, in fp16 or
    widened, with a pooler, a head and buffers or without.

    Reading takes about 3 s per GB and thread, so the hash is cached on this machine like a file's.

    Args:
        paths: The weight files, in safetensors.
        config: The checkpoint's config.json.

    Raises:
        ModelError: If a file is truncated, or not safetensors.
    """
    facts = _facts(config)
    key = ["content", _VERSION, facts, *(identity(path) for path in paths)]
    return cached(key, lambda: _compute(paths, config, facts))


def _facts(config: ModelConfig) -> dict[str, Any]:
    keys = {*config.architecture.defaults, *_FURTHER_KEYS}
    if not config.architecture.skips_padding:  # padding never reaches a vector
        keys.discard("pad_token_id")
    values = {key: config.values.get(key) for key in sorted(keys)}
    facts = {key: value for key, value in values.items() if value not in _UNSET}
    return {"model_type": config.architecture.name, **facts}


def _compute(paths: Sequence[Path], config: ModelConfig, facts: dict[str, Any]) -> str:
    names = {name for name, _ in config.tensors()}
    tensors = {
        canonical_name(name, config): (path, entry)
        for path in paths
        for name, entry in read_entries(path).items()
    }
    used = sorted(names & set(tensors))
    with ThreadPoolExecutor(available_cpus()) as pool:  # hashing holds no lock
        hashes = pool.map(lambda name: _hash(*tensors[name]), used)
        lines = [
            f"{name} {list(tensors[name][1].shape)} {digest}"
            for name, digest in zip(used, hashes, strict=True)
        ]
    text = "\n".join([json.dumps(facts, sort_keys=True), *lines])
    return hashlib.sha256(text.encode()).hexdigest()


def _hash(path: Path, entry: TensorEntry) -> str:
    digest = hashlib.sha256()
    if entry.dtype not in ("F32", "F16", "BF16"):
        digest.update(entry.dtype.encode())
    if entry.end > entry.start:
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as content,
        ):
            for start in range(entry.start, entry.end, _BLOCK):
                with content[start : min(start + _BLOCK, entry.end)] as block:
                    digest.update(_widened(block, entry.dtype))
    return digest.hexdigest()


def _widened(block: memoryview, dtype: str) -> bytes | memoryview:
    """The float32 bytes of a block of half-precision numbers; any other block as it is."""
    if dtype == "F16":
        return np.frombuffer(block, "<f2").astype("<f4").tobytes()
    if dtype == "BF16":
        return (np.frombuffer(block, "<u2").astype("<u4") << 16).tobytes()
    return block
