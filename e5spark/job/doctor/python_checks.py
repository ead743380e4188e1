"""Checks of the Python that workers run: whether it starts, and what is installed in it."""

import re
from collections.abc import Callable, Iterator

from e5spark.errors import OptionError, missing_package
from e5spark.job.doctor.facts import IN_WORKERS, Facts, major, minor, numbers, place
from e5spark.job.doctor.finding import Finding, of_message
from e5spark.limits import MemoryCeiling
from e5spark.model.engines import ENGINES
from e5spark.model.footprint import check_fits
from e5spark.tables.spark_errors import reason, worker_died

_NO_PYTHON = re.compile(r'Cannot run program "([^"]+)"')
_OTHER_PYTHON = re.compile(r"\[PYTHON_VERSION_MISMATCH\]|has different version|different minor")
_CAUSE = re.compile(r"Lost task [^\n]*?\): ([^\n]+)")


def _failures(facts: Facts) -> Iterator[Finding]:
    for failure in facts.survey.failures:
        name = f"executor {failure.executor} on {failure.host}" if failure.host else "executors"
        program = _NO_PYTHON.search(failure.text)
        known = missing_package(failure.text)
        if program:
            yield Finding(
                check="python",
                where=name,
                found=f"There is no Python {program[1]!r}.",
                fix="Install Python there, or name the one that is there with PYSPARK_PYTHON or "
                "spark.pyspark.python; or ship one with --archives.",
            )
        elif _OTHER_PYTHON.search(failure.text):
            yield Finding(
                check="python",
                where=name,
                found=f"Workers run another Python than the driver's {facts.driver['python']}.",
                needed="Functions travel from the driver to workers of the same minor release "
                "only.",
                fix=f"Give them Python {minor(facts.driver['python'])}: set PYSPARK_PYTHON or "
                "spark.pyspark.python.",
            )
        elif known:
            yield of_message("packages", name, str(known))
        elif worker_died(RuntimeError(failure.text)):
            yield from _death(facts, name)
        else:
            cause = _CAUSE.search(failure.text)
            text = cause[1] if cause else failure.text
            yield Finding(
                check="python",
                where=name,
                found=f"A task could not run: {reason(RuntimeError(text))}",
                fix=f"Check {IN_WORKERS}, and the executor's log.",
            )


def _death(facts: Facts, name: str) -> Iterator[Finding]:
    """A worker that has ended as it looked at the model: usually for lack of memory."""
    ceilings = [
        MemoryCeiling(**ceiling)
        for report in facts.survey.reports
        for ceiling in report.get("memory", ())
    ]
    try:
        if facts.needs is not None:
            check_fits(facts.model, facts.needs, ceilings)
    except OptionError as error:
        yield of_message("memory", name, str(error))
        return
    yield Finding(
        check="memory",
        where=name,
        found="The Python worker ended as it looked at the model, without an error.",
        fix="Look into the executor's log. The usual cause is a limit on memory: raise "
        "spark.executor.memoryOverhead, and leave spark.executor.pyspark.memory unset.",
    )


def _e5spark(facts: Facts) -> Iterator[Finding]:
    wanted = facts.driver["versions"]["e5spark"]
    for report in facts.survey.reports:
        broken = report.get("import_error")
        version = report["versions"].get("e5spark")
        if broken and (known := missing_package(broken)):
            yield of_message("packages", place(report), str(known))
        elif broken:
            yield Finding(
                check="packages",
                where=place(report),
                found=f"e5spark cannot be imported: {broken}.",
                fix=f"Install e5spark {wanted} again in {IN_WORKERS}.",
            )
        elif version != wanted:
            yield Finding(
                check="packages",
                where=place(report),
                found=f"e5spark is {version}.",
                needed=f"The driver has {wanted}.",
                fix=f"Install the same release in {IN_WORKERS}.",
            )
        has_engine = any(
            all(report["versions"].get(name) for name in entry.packages)
            for entry in ENGINES.values()
        )
        if broken and not has_engine:
            yield Finding(
                check="engine",
                where=place(report),
                found=f"No engine is installed: {' or '.join(ENGINES)}.",
                fix=f"Run pip install 'e5spark[openvino]' in {IN_WORKERS}, and use a model made "
                "with e5spark prepare; or pip install 'e5spark[torch,openvino]'.",
            )


def _arrow(facts: Facts) -> Iterator[Finding]:
    """Batches travel as Arrow between the JVM and workers, and a plan may hold Arrow's objects."""
    wanted = facts.driver["versions"].get("pyarrow")
    for report in facts.survey.reports:
        version = report["versions"].get("pyarrow")
        if version and wanted and major(version) != major(wanted):
            yield Finding(
                check="pyarrow",
                where=place(report),
                found=f"pyarrow is {version}.",
                needed=f"The driver has {wanted}; both must be of one major release.",
                fix=f"Run pip install 'pyarrow=={major(wanted)}.*' in {IN_WORKERS}.",
            )
        elif not version and report.get("import_error"):
            message = str(missing_package("ModuleNotFoundError: No module named 'pyarrow'"))
            yield of_message("packages", place(report), message)


def _pandas(facts: Facts) -> Iterator[Finding]:
    """Spark before 4.1 has no Arrow UDFs, so that texts travel by pandas."""
    release = numbers(facts.session.get("spark", ""))
    for report in facts.survey.reports:
        if release and release < (4, 1) and not report["versions"].get("pandas"):
            message = str(missing_package("ModuleNotFoundError: No module named 'pandas'"))
            yield of_message("packages", place(report), message)


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    *(_failures, _e5spark, _arrow, _pandas),
)
