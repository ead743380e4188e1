"""Writes the report of a run into the state directory of its table: report.json, report.html."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from e5spark import page
from e5spark.errors import E5SparkError, GateError
from e5spark.job.config import JobConfig
from e5spark.job.report import RunReport, check_errors
from e5spark.job.source import vector_names
from e5spark.job.trace import Trace
from e5spark.model.checkpoint import known_checkpoint
from e5spark.model.resolve import Plan
from e5spark.names import redacted
from e5spark.page.build import FORMAT
from e5spark.tables.ledger import reports
from e5spark.tables.storage.protocol import Storage

log = logging.getLogger("e5spark")

# Of an option of Spark, of a reader or of a writer: values of other kinds may be credentials.
_HARMLESS = re.compile(r"true|false|\d{1,9}[kmgt]?b?|(append|overwrite|zstd|snappy|gzip|lz4)", re.I)
_SECRET = re.compile(r"secret|password|passwd|token|credential|key|pin|auth|signature|sas", re.I)
_HIDDEN = "(not shown)"


def write(
    storage: Storage,
    config: JobConfig,
    plan: Plan,
    report: RunReport,
    trace: Trace,
    moments: tuple[str, str],
) -> str:
    """Writes the report and returns the path of its page, or of its document without one.

    The rows are committed, so a failure is a warning, and the path is empty.

    Args:
        storage: The table's directory.
        config: The job.
        plan: The model.
        report: What the run counted.
        trace: What it left on the way.
        moments: When it began and ended, in UTC.
    """
    try:
        result = document(config, plan, report, trace, moments)
        files = {reports.DOCUMENT: dumped(result)}
        if config.report.html:
            files[reports.PAGE] = page.html(result).encode()
        directory = reports.keep(storage, report.counts.epoch, files)
    except Exception as error:  # a report never fails a run
        # Other errors may quote a row.
        cause = str(error) if isinstance(error, E5SparkError) else type(error).__name__
        log.warning("The rows are committed, but the run has no report: %s", redacted(cause))
        return ""
    return redacted(f"{storage.root}/{directory}/{list(files)[-1]}")


def dumped(result: Mapping[str, Any]) -> bytes:
    """Returns a document as the content of report.json."""
    return json.dumps(result, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def document(
    config: JobConfig, plan: Plan, report: RunReport, trace: Trace, moments: tuple[str, str]
) -> dict[str, Any]:
    """Returns the content of report.json; for the arguments see ``write``."""
    columns = vector_names(config.embed)
    checkpoint = known_checkpoint(plan.spec)
    errors = _errors(report, config.run.max_error_rate)
    problem = errors.pop("problem")
    band = checkpoint.pair_cosine if checkpoint else None
    return {
        "format": FORMAT,
        "epoch": report.counts.epoch,
        "started_at": moments[0],
        "ended_at": moments[1],
        "output": redacted(report.output),
        "columns": columns,
        "problems": [*([problem] if problem else []), *report.quality.failures],
        "warnings": report.quality.warnings,
        "errors": errors,
        "band": list(band) if band else None,
        "model": {
            "engine": plan.spec.engine,
            "device": plan.spec.device,
            "precision": plan.spec.precision,
            "output_type": plan.spec.output_type,
            "pooling": plan.recipe.pooling,
            "normalize": plan.recipe.normalize,
            "max_tokens": plan.recipe.max_tokens,
            "long_text": plan.recipe.long_text,
            "prompts": dict(plan.recipe.prompts),
        },
        "settings": settings(config),
        "report": report.as_dict(),
        **trace.as_dict(columns),
    }


def settings(config: JobConfig) -> dict[str, dict[str, Any]]:
    """Returns the keys of a job that differ from their defaults, without credentials.

    Values of Spark's settings and options are shown only if they are plainly none: numbers, true
    and false, and the names of codecs.
    """
    result: dict[str, dict[str, Any]] = {}
    for part in fields(JobConfig):
        value = getattr(config, part.name)
        if part.name == "spark":
            chosen = {key: _harmless(key, text) for key, text in value.items()}
        elif part.name == "model":
            chosen = {
                "name": _shown(value.name),
                **{k: _shown(v) for k, v in value.options.items()},
            }
        else:
            chosen = {
                field.name: _shown(getattr(value, field.name))
                for field in fields(value)
                if field.default is MISSING or getattr(value, field.name) != field.default
            }
            chosen.pop("options", None)
            options = getattr(value, "options", {}).items()
            chosen |= {f"options.{key}": _harmless(key, text) for key, text in options}
        if chosen:
            result[part.name] = chosen
    return result


def _shown(value: Any) -> Any:  # noqa: ANN401  # a value of TOML
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    return {key: item for key, item in value.items()} if isinstance(value, Mapping) else value


def _harmless(key: str, value: str) -> str:
    return value if _HARMLESS.fullmatch(value) and not _SECRET.search(key) else _HIDDEN


def _errors(report: RunReport, highest: float) -> dict[str, Any]:
    """Returns the verdict on the share of errors, as the verdict of a gate."""
    counts = report.counts
    texts = counts.texts * counts.rows_in // max(counts.embedded, 1)
    problem = ""
    try:
        check_errors(report, highest)
    except GateError as error:
        problem = str(error)
    return {
        "value": round(counts.error / texts, 6) if texts else None,
        "lowest": None,
        "highest": highest,
        "passed": not problem,
        "problem": problem,
    }
