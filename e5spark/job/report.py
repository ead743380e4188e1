"""The report of a run: its counts, its speed, and the identity of the vectors."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pyspark.sql import SparkSession

from e5spark import __version__
from e5spark.errors import GateError
from e5spark.job.quality import Quality, check_quality
from e5spark.names import redacted


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one sync did, or the sum over the micro-batches of a stream.

    Rows are rows of the input unless stated otherwise. Texts are counted over all text columns,
    and a text that is split into windows counts once.

    Attributes:
        rows_in: Rows read.
        duplicates: Further rows with an id of these rows, which ``on_duplicate`` left out.
        rows: Rows written; with ``long_text = "split"`` one for each window.
        ok: Texts with a vector.
        null_text: Texts that are null.
        empty_text: Texts of white space only.
        error: Texts that could not be embedded.
        truncated: Texts, or windows, that lost tokens.
        already_prompted: Texts that began with a prompt.
        tokens: Tokens before truncation, prompts and special tokens included.
        lost_tokens: Tokens that were cut.
        embedded: Rows whose texts were embedded, whatever their status.
        refreshed: Rows whose vectors stay and whose other columns have changed.
        skipped: Rows that have not changed.
        deleted: Ids removed from the table.
        recovered: Rows that an earlier run had embedded or refreshed, and that this run made
            visible.
        chunks: Chunks committed.
        epoch: The number of the run among the runs of this table.
        micro_batches: Micro-batches of a stream; None for a batch run.
    """

    rows_in: int
    duplicates: int
    rows: int
    ok: int
    null_text: int
    empty_text: int
    error: int
    truncated: int
    already_prompted: int
    tokens: int
    lost_tokens: int
    embedded: int
    refreshed: int
    skipped: int
    deleted: int
    recovered: int
    chunks: int
    epoch: int
    micro_batches: int | None = None

    @property
    def texts(self) -> int:
        """Texts of the rows that were embedded."""
        return self.ok + self.null_text + self.empty_text + self.error

    def as_dict(self) -> dict[str, int]:
        """Returns the counts by name, with ``micro_batches`` for a stream only."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def total(batches: Sequence[Counts], *, recovered: int) -> Counts:
    """Returns the counts of a stream.

    Args:
        batches: The counts of its micro-batches, at least one, all of the same run.
        recovered: Rows that were recovered before the first one.
    """
    sums = {
        field.name: sum(getattr(batch, field.name) for batch in batches)
        for field in fields(Counts)
        if field.name not in ("recovered", "epoch", "micro_batches")
    }
    return Counts(**sums, recovered=recovered, epoch=batches[0].epoch, micro_batches=len(batches))


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run did; its JSON document is the last line of the command line's output.

    Attributes:
        counts: Rows, and texts by status.
        quality: Figures of the vectors, the verdicts of the gates, drift and canaries.
        seconds: From the first look at the input's rows to the last commit.
        model: The checkpoint's name, or the model as the user named it.
        dim: Components of a vector.
        fingerprint: 64 hex digits; vectors with equal ones are comparable.
        fingerprint_parts: What the fingerprint is the hash of.
        output: The table as the user names it, without credentials.
        versions: Of e5spark, Python, Spark and the driver's packages.
        page: The path of report.html, or of report.json without one; empty if there is none.
    """

    counts: Counts
    quality: Quality
    seconds: float
    model: str
    dim: int
    fingerprint: str
    fingerprint_parts: Mapping[str, Any]
    output: str
    versions: Mapping[str, str]
    page: str = ""

    @property
    def lost_token_share(self) -> float:
        """Share of all tokens that were cut."""
        return round(self.counts.lost_tokens / max(self.counts.tokens, 1), 6)

    @property
    def texts_per_second(self) -> float:
        """Texts with a vector, per second of the whole run."""
        return round(self.counts.ok / self.seconds, 1)

    @property
    def tokens_per_second(self) -> float:
        """Tokens that the model has seen, per second of the whole run."""
        return round((self.counts.tokens - self.counts.lost_tokens) / self.seconds, 1)

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON document."""
        return {
            **self.counts.as_dict(),
            "lost_token_share": self.lost_token_share,
            "seconds": round(self.seconds, 3),
            "texts_per_second": self.texts_per_second,
            "tokens_per_second": self.tokens_per_second,
            "model": redacted(self.model),
            "dim": self.dim,
            "fingerprint": self.fingerprint,
            "fingerprint_parts": dict(self.fingerprint_parts),
            "output": redacted(self.output),
            "versions": dict(self.versions),
            "quality": self.quality.as_dict(),
            **({"page": self.page} if self.page else {}),
        }

    def sentences(self) -> list[str]:
        """Returns the summary of the run for the log."""
        counts = self.counts
        lines = [
            f"{counts.rows_in} rows: {counts.embedded} to embed, {counts.refreshed} refreshed, "
            f"{counts.skipped} unchanged, {counts.deleted} removed, {counts.recovered} recovered "
            "from an earlier run."
        ]
        if counts.duplicates:
            lines.append(f"{counts.duplicates} further rows had a duplicate id and were left out.")
        lines.append(
            f"{counts.rows} rows written: {counts.ok} embedded, {counts.null_text} null, "
            f"{counts.empty_text} empty, {counts.error} errors; {counts.truncated} truncated "
            f"({100 * self.lost_token_share:.2f} % of all tokens lost), "
            f"{counts.already_prompted} already prompted."
        )
        lines.append(
            f"{self.seconds:.1f} s: {self.texts_per_second:.1f} texts/s, "
            f"{self.tokens_per_second:.0f} tokens/s. Vectors of {self.dim} dimensions are in "
            f"{redacted(self.output)}."
        )
        lines += [f"Drift: {warning}" for warning in self.quality.warnings]
        return [*lines, f"Report: {self.page}"] if self.page else lines


def check_errors(report: RunReport, max_error_rate: float) -> None:
    """Checks that no more than a share of all texts of the input ended in an error.

    Raises:
        GateError: If more did; the good rows are written, the others have ``status = 'error'``.
    """
    counts = report.counts
    # Unchanged rows count too, with as many texts in each as in an embedded row.
    texts = counts.texts * counts.rows_in // max(counts.embedded, 1)
    if counts.error > max_error_rate * texts:
        raise GateError(
            f"{counts.error} of {texts} texts could not be embedded, more than "
            f"run.max_error_rate = {max_error_rate} allows. All rows are in "
            f"{redacted(report.output)}; for rows with status = 'error', the column error says why."
        )


def check_gates(report: RunReport, max_error_rate: float) -> None:
    """Checks the share of errors and the gates of ``[quality]``; the message has all that failed.

    Raises:
        GateError: If a gate failed; the good rows are written.
    """
    problems = []
    try:
        check_errors(report, max_error_rate)
    except GateError as error:
        problems.append(str(error))
    try:
        check_quality(report.quality, report.output)
    except GateError as error:
        problems.append(str(error))
    if problems:
        raise GateError(" ".join(problems))


def versions(spark: SparkSession) -> dict[str, str]:
    """Returns the versions of e5spark, Python, Spark and the driver's packages.

    They are read from the packages' metadata, because importing torch takes seconds.
    """
    installed = {
        "e5spark": __version__,
        "python": platform.python_version(),
        "spark": spark.version,
    }
    for name in ("pyspark", "torch", "openvino", "transformers", "tokenizers", "pyarrow", "numpy"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
