"""What the driver and the executors reported, which the checks look at."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e5spark.model.footprint import Footprint
from e5spark.spark.survey import Survey

Report = Mapping[str, Any]

IN_WORKERS = (
    "the Python that Spark's workers run, which PYSPARK_PYTHON or spark.pyspark.python names"
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was reported.

    Attributes:
        driver: The report of the driver's own process.
        session: Versions of the session: ``spark``, ``java``, ``scala``, ``hadoop``, ``delta``; a
            value that is not known is empty.
        survey: The reports of the executors.
        precision: The precision that the job was planned with; empty without a plan.
        model: The model's name, for messages.
        needs: What a worker with the model takes; None if it is not known.
        weights: The identity of the weights on the driver; empty without a plan.
        downloads: Whether the job may download the model.
        delta: The release of Delta that e5spark is tested with on this Spark; empty if the job has
            no Delta table.
    """

    driver: Report
    session: Mapping[str, str]
    survey: Survey
    precision: str = ""
    model: str = ""
    needs: Footprint | None = None
    weights: str = ""
    downloads: bool = False
    delta: str = ""


def place(report: Report) -> str:
    """Returns the name of the executor of a report."""
    name = report.get("executor") or report.get("key", "?")
    return f"executor {name} on {report['host']}"


def numbers(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version; none if it has none."""
    parts = re.match(r"(\d+)\.(\d+)", version)
    return (int(parts[1]), int(parts[2])) if parts else ()


def minor(version: str) -> str:
    """Returns the minor release of a version: 4.1 of 4.1.4."""
    return ".".join(version.split(".")[:2])


def major(version: str) -> str:
    """Returns the major release of a version: 26 of 26.0.1."""
    return version.partition(".")[0]
