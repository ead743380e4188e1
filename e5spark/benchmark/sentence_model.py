"""sentence-transformers as people use it, with a counter of tokens."""

from functools import cache
from typing import Any

from e5spark.benchmark import passes


def sentence_model(directory: str, **options: Any) -> Any:  # noqa: ANN401  # untyped here
    """Returns a SentenceTransformer that records the tokens of each forward pass."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(directory, **options)
    model[0].register_forward_hook(_count)
    return model


@cache
def worker_model(directory: str, device: str | None = None) -> Any:  # noqa: ANN401
    """Returns this Spark worker's model, loaded once, as in the better form of the usual recipe."""
    return sentence_model(directory, device=device)


def _count(module: object, inputs: tuple[dict[str, Any], ...], outputs: object) -> None:
    del module, outputs
    mask = inputs[0]["attention_mask"]
    passes.record(int(mask.sum()), mask.numel())
