"""Documents of runs, as report.json has them, for the tests of the page."""

from copy import deepcopy
from typing import Any

import numpy as np

from e5spark.job.lengths import edges
from e5spark.page.sample import describe

# Whatever a string of the document may hold: it would end a script, an attribute or a comment.
HOSTILE = "</script><script>alert('x')</script><!--\"onload=alert(1) &amp; \u2028 ${x} $body"


def vectors(rows: int = 300, dim: int = 32) -> np.ndarray:
    """Vectors in six groups, with cosines like those of E5."""
    generator = np.random.default_rng(0)
    centers = 0.6 * generator.normal(size=(6, dim))
    noise = 0.5 * generator.normal(size=(rows, dim))
    return (centers[np.arange(rows) % 6] + noise + 1).astype(np.float32)


def gate(figure: str, value: float | None, highest: float | None, *, passed: bool = True) -> Any:
    return {
        "figure": figure, "value": value, "lowest": None, "highest": highest, "passed": passed,
    }  # fmt: skip


def document(rows: int = 300) -> dict[str, Any]:
    """The document of a run that embedded this many rows, and refreshed or skipped 30 more."""
    limits = edges(512)
    counts = [0] * (len(limits) + 1)
    for number in range(rows):
        counts[10 + number % 20] += 1
    ids = [f"doc-{number:05d}" for number in range(rows)]
    return {
        "format": 1,
        "epoch": 7,
        "started_at": "2026-11-25T18:00:00+00:00",
        "ended_at": "2026-11-25T18:01:10+00:00",
        "output": "s3a://bucket/vectors/docs_embedded",
        "columns": ["embedding"],
        "problems": [],
        "warnings": [],
        "errors": gate("", 0.0, 0.0),
        "band": [0.6, 0.95],
        "model": {
            "engine": "openvino",
            "device": "cpu",
            "precision": "fp32",
            "output_type": "float32",
            "pooling": "mean",
            "normalize": True,
            "max_tokens": 512,
            "long_text": "truncate",
            "prompts": {"query": "query: ", "passage": "passage: "},
        },
        "settings": {"input": {"path": "s3a://bucket/docs", "id": "id"}},
        "report": {
            "rows_in": rows + 30,
            "embedded": rows,
            "refreshed": 10,
            "skipped": 20,
            "deleted": 0,
            "recovered": 0,
            "duplicates": 0,
            "rows": rows,
            "ok": rows,
            "null_text": 0,
            "empty_text": 0,
            "error": 0,
            "truncated": 0,
            "already_prompted": 0,
            "tokens": 100 * rows,
            "lost_tokens": 0,
            "seconds": 70.0,
            "texts_per_second": 4.3,
            "tokens_per_second": 430.0,
            "model": "intfloat/e5-small-v2",
            "dim": 384,
            "fingerprint": "ab" * 32,
            "versions": {"e5spark": "0", "spark": "4.1.4"},
            "quality": {
                "figures": {},
                "gates": [gate("zeros", 0, 0), gate("pair_cosine", None, 0.95)],
                "drift": [gate("truncated_share", 0.01, 0.1)],
                "canaries": "matched",
            },
        },
        "speed": {
            "chunks": 9,
            "chunk_seconds": {"lowest": 5.0, "mean": 7.5, "highest": 10.0},
            "seconds": 2.0,
            "last_seconds": 1.0,
            "rows": [4.0 + number % 3 for number in range(35)],
            "tokens": [400.0 + 50 * (number % 4) for number in range(35)],
        },
        "tokens": {"edges": limits, "counts": counts, "limit": 512},
        "sample": {
            "rows": rows,
            "ids": ids,
            "columns": [
                {"column": "embedding", **describe(vectors(rows)), "texts": {}}
            ],
        },
    }  # fmt: skip


def nothing_to_do() -> dict[str, Any]:
    result = document()
    result |= {"speed": None, "tokens": None, "sample": None}
    zero = ("embedded", "rows", "ok", "tokens", "refreshed", "texts_per_second")
    result["report"] |= dict.fromkeys(zero, 0) | {"skipped": 330, "tokens_per_second": 0}
    result["report"]["quality"] |= {"drift": [], "canaries": "not_needed"}
    return result


def empty_table() -> dict[str, Any]:
    result = nothing_to_do()
    result["report"] |= {"skipped": 0, "rows_in": 0}
    result["errors"]["value"] = None
    return result


def all_errors() -> dict[str, Any]:
    result = document()
    result |= {"tokens": None, "sample": None, "problems": ["300 of 300 texts failed."]}
    result["errors"] = gate("", 1.0, 0.0, passed=False)
    result["report"] |= {"ok": 0, "error": 300, "tokens": 0}
    return result


def one_row() -> dict[str, Any]:
    result = document(1)
    result["speed"] |= {"chunks": 1, "rows": [1.0], "tokens": [100.0]}
    return result


def several_columns() -> dict[str, Any]:
    result = document()
    result["columns"] = ["title_embedding", "body_embedding"]
    column = result["sample"]["columns"][0]
    other = {**column, **describe(vectors(200)), "texts": {}}
    result["sample"]["columns"] = [
        {**column, "column": "title_embedding"}, {**other, "column": "body_embedding"},
    ]  # fmt: skip
    result["report"]["ok"] = 600
    return result


def failed_gate() -> dict[str, Any]:
    result = document()
    result["report"]["quality"]["gates"][0] = gate("zeros", 4, 0, passed=False)
    result["problems"] = ["zeros is 4, and at most 0 is allowed. Check it with e5spark verify."]
    result["warnings"] = ["pair_cosine is 0.91, and it was 0.8 in the last run."]
    return result


def equal_vectors() -> dict[str, Any]:
    result = document()
    column = result["sample"]["columns"][0]
    column |= describe(np.ones((300, 8), np.float32))
    return result


def texts() -> dict[str, Any]:
    result = document()
    column = result["sample"]["columns"][0]
    column["texts"] = {str(row): f"The text of row {row}. " * 7 for row in range(300)}
    return result


def hostile() -> dict[str, Any]:
    """Every string that comes from a user, from a row or from a damaged file."""
    result = deepcopy(texts())
    result |= {"output": HOSTILE, "problems": [HOSTILE], "warnings": [HOSTILE]}
    result["sample"]["ids"] = [f"{HOSTILE}{number}" for number in range(300)]
    result["sample"]["columns"][0]["texts"] = {str(row): HOSTILE for row in range(300)}
    result["settings"] = {"input": {"where": HOSTILE, HOSTILE: HOSTILE}}
    result["model"]["prompts"] = {"query": HOSTILE}
    result["report"] |= {"model": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    result["report"]["quality"]["canaries"] = HOSTILE
    result["report"]["quality"]["gates"][0]["figure"] = HOSTILE
    return result


KINDS = {
    "a run": document,
    "nothing to do": nothing_to_do,
    "an empty table": empty_table,
    "errors only": all_errors,
    "one row": one_row,
    "several text columns": several_columns,
    "a failed gate": failed_gate,
    "equal vectors": equal_vectors,
    "texts": texts,
    "hostile strings": hostile,
}
