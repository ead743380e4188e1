"""What ``e5spark embed`` shows on a terminal before it begins, and when it is done."""

from typing import TYPE_CHECKING

from e5spark.job.config import JobConfig
from e5spark.job.report import RunReport
from e5spark.names import redacted

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def title(config: JobConfig) -> "Text":
    """Returns what is embedded, with what, and where the vectors go."""
    from rich.text import Text

    source = config.input.table or config.input.path
    target = config.output.table or config.output.path
    texts = (
        config.embed.text if isinstance(config.embed.text, str) else ", ".join(config.embed.text)
    )
    precision = config.model.options.get("precision", "auto")
    return Text.assemble(
        ("e5spark embed ", "bold"),
        f"{redacted(source)} ({texts}) → {redacted(target)}\n",
        (f"{redacted(config.model.name)}, precision {precision}; Spark is starting", "dim"),
    )


def table(report: RunReport) -> "Table":
    """Returns the counts of a run: rows that add up to the input, texts that add up to the rows."""
    from rich.table import Table

    counts = report.counts
    result = Table.grid(padding=(0, 2))
    result.add_column(justify="right")
    result.add_column()
    rows = {
        "rows read": counts.rows_in,
        "embedded": counts.embedded,
        "unchanged": counts.skipped,
        "with other columns changed": counts.refreshed,
        "left out, duplicate ids": counts.duplicates,
        "removed from the table": counts.deleted,
        "recovered from an earlier run": counts.recovered,
    }
    texts = {
        "texts with a vector": counts.ok,
        "null": counts.null_text,
        "empty": counts.empty_text,
        "errors": counts.error,
        "truncated": counts.truncated,
        "already prompted": counts.already_prompted,
    }
    always = {"rows read", "embedded", "texts with a vector"}
    for group in (rows, texts):
        for name, count in group.items():
            if count or name in always:
                result.add_row(f"{count:,}", name, style="red" if name == "errors" else "")
    if counts.truncated:
        result.add_row(f"{report.lost_token_share:.2%}", "of all tokens lost by truncation")
    result.add_row(
        f"{report.seconds:,.1f} s",
        f"{report.texts_per_second:,.1f} texts/s, {report.tokens_per_second:,.0f} tokens/s",
    )
    result.add_row(
        "output", f"{redacted(report.output)}: {report.dim} dimensions of {redacted(report.model)}"
    )
    for warning in report.quality.warnings:
        result.add_row("drift", warning, style="yellow")
    return result
