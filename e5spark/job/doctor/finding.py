"""A finding of the doctor: what does not fit, where, and how to mend it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from e5spark.names import redacted

Level = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that does not fit.

    Attributes:
        check: What was checked, in one word.
        level: ``error`` if a run would fail or be wrong; ``warning`` if it may be slow or fail.
        where: The driver, the session, or the executors that it was found on.
        found: What was found.
        needed: What is needed; empty if ``found`` says it.
        fix: What to do.
    """

    check: str
    level: Level = "error"
    where: str
    found: str
    needed: str = ""
    fix: str = ""

    @property
    def sentences(self) -> str:
        """Returns all of it as one text."""
        return redacted(" ".join(filter(None, (self.found, self.needed, self.fix))))

    def as_dict(self) -> dict[str, Any]:
        """Returns the finding as JSON."""
        return {name: redacted(value) for name, value in asdict(self).items()}


def of_message(check: str, where: str, message: str, *, level: Level = "error") -> Finding:
    """Returns the finding for the message of an error of e5spark.

    Such a message says what was found in its first sentence, and in the next ones what to do.
    """
    found, dot, fix = message.partition(". ")
    return Finding(check=check, level=level, where=where, found=found + dot.strip(), fix=fix)


def grouped(findings: Iterable[Finding], *, executors: int) -> list[Finding]:
    """Returns findings, each once, with all places that have it; errors come first.

    Args:
        findings: The findings.
        executors: How many executors there are, of which "all" is said.
    """
    places: dict[Finding, list[str]] = {}
    for finding in findings:
        places.setdefault(replace(finding, where=""), []).append(finding.where)
    merged = []
    for finding, names in places.items():
        distinct = list(dict.fromkeys(names))
        is_all = len(distinct) == executors > 1 and distinct[0].startswith("executor ")
        where = f"all {executors} executors" if is_all else ", ".join(distinct)
        merged.append(replace(finding, where=where))
    return sorted(merged, key=lambda finding: finding.level != "error")
