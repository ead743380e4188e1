"""The result of an evaluation: a JSON document, and a table to read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from e5spark.evaluate import published
from e5spark.evaluate.config import TaskConfig
from e5spark.evaluate.embedding import VectorTable
from e5spark.evaluate.published import Figure
from e5spark.evaluate.tasks import Judgement
from e5spark.search.vectors import VectorColumn

_SPEED = (
    "rows",
    "embedded",
    "skipped",
    "tokens",
    "truncated",
    "seconds",
    "texts_per_second",
    "tokens_per_second",
)
_HEADER = ("task", "metric", "value", "95 % interval", "published", "difference", "source")


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What one task gave.

    Attributes:
        task: The task.
        judgement: Its scores.
        tables: Its tables, for what their vectors are.
    """

    task: TaskConfig
    judgement: Judgement
    tables: Mapping[str, VectorTable]

    @property
    def model(self) -> str:
        """The checkpoint's name, or what the user called the model."""
        return self._column.facts.get("model", "")

    @property
    def protocol(self) -> dict[str, Any]:
        """How its vectors were computed; see ``published.protocol``."""
        return published.protocol(next(iter(self.tables.values())).parts)

    @property
    def _column(self) -> VectorColumn:
        return next(iter(self.tables.values())).vectors[0]

    def published(self, metric: str) -> list[Figure]:
        """Returns the published figures of a metric, those of the nearest protocol first."""
        return published.figures(self.model, self.task.name, metric, self.protocol)

    def as_dict(self) -> dict[str, Any]:
        """Returns the task's part of the JSON document."""
        scores = {
            metric: {
                **{key: value for key, value in asdict(score).items() if value is not None},
                **({"published": figures} if figures else {}),
            }
            for metric, score in self.judgement.scores.items()
            for figures in [[asdict(figure) for figure in self.published(metric)]]
        }
        reports = {side: table.report for side, table in self.tables.items() if table.report}
        return {
            "task": self.task.key,
            "name": self.task.name,
            "kind": self.task.kind,
            "model": self.model,
            "fingerprint": self._column.fingerprint,
            "output_type": self._column.output_type,
            "protocol": self.protocol,
            "scores": scores,
            "counts": dict(self.judgement.counts),
            **(
                {"embedding": {side: _speed(report) for side, report in reports.items()}}
                if reports
                else {}
            ),
        }


def _speed(report: Mapping[str, Any]) -> dict[str, Any]:
    keys = (
        "rows",
        "ok",
        "tokens",
        "truncated",
        "embedded",
        "skipped",
        "seconds",
        "texts_per_second",
        "tokens_per_second",
    )
    return {key: report[key] for key in keys}


def table(results: Sequence[TaskResult]) -> str:
    """Returns the scores as aligned lines, with the published figure of the nearest protocol.

    Where that protocol differs from the judged vectors', the source says in what.
    """
    rows: list[tuple[str, ...]] = [_HEADER]
    for result in results:
        for metric, score in result.judgement.scores.items():
            interval = "" if score.low is None else f"{score.low:.4f} to {score.high:.4f}"
            figure = next(iter(result.published(metric)), None)
            rows.append(
                (
                    result.task.key,
                    metric,
                    f"{score.value:.6f}",
                    interval,
                    *_cells(figure, score.value),
                )
            )
    return aligned(rows)


def _cells(figure: Figure | None, value: float) -> tuple[str, str, str]:
    if figure is None:
        return "", "", ""
    differences = ", ".join(f"{key} {part}" for key, part in figure.differences.items())
    source = figure.source + (f" ({differences})" if differences else "")
    return f"{figure.value:.6f}", f"{value - figure.value:+.6f}", source


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as lines of columns of equal width; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
