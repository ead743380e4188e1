"""The oracle: vectors as the model cards make them, and how ours are compared with them."""

from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from pyspark.sql import DataFrame

from tests.frames import to_arrow

FP32_TOLERANCE = 1e-5
INVARIANCE_TOLERANCE = 1e-6


@cache
def _loaded(directory: str) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return tokenizer, transformers.AutoModel.from_pretrained(directory).eval()


@cache
def reference(
    directory: str, texts: tuple[str, ...], *, prompt: str, max_tokens: int = 512
) -> np.ndarray:
    """The vectors as the model card makes them: AutoModel, masked mean, normalize."""
    tokenizer, model = _loaded(directory)
    vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    for start in range(0, len(order), 16):
        some = order[start : start + 16]
        batch = tokenizer(
            [prompt + texts[position] for position in some],
            max_length=max_tokens,
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"]
        pooled = hidden.masked_fill(~mask[..., None].bool(), 0.0).sum(1) / mask.sum(1)[..., None]
        vectors[some] = torch.nn.functional.normalize(pooled, p=2, dim=1).numpy()
    return vectors


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Every component within the tolerance; the largest difference is in the message."""
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    largest = float(np.abs(actual.astype(np.float64) - expected).max())
    assert largest <= tolerance, f"the largest difference is {largest:.3g}, over {tolerance:g}"


def vectors_of(df: DataFrame) -> np.ndarray:
    """The vectors of an embedded table in the order of its ids; every row must have one."""
    table = to_arrow(df.select("id", "embedding")).sort_by("id")
    column = table["embedding"].combine_chunks()
    assert column.null_count == 0
    return np.asarray(column.flatten(), dtype=np.float32).reshape(len(table), -1)


def rows_of(df: DataFrame) -> list[dict[str, Any]]:
    """The rows in the order of their ids."""
    return to_arrow(df).sort_by("id").to_pylist()
