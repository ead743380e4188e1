"""Checks of the executors' machines: model, engine, precision, memory, threads and directories."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from e5spark.job.doctor.facts import Facts, Report, place
from e5spark.job.doctor.finding import Finding, of_message

_MB = 1 << 20


def _model(facts: Facts) -> Iterator[Finding]:
    """What the steps of a worker meet: packages, model, engine and memory."""
    for report in facts.survey.reports:
        for problem in report.get("problems", ()):
            step, message = problem["step"], problem["message"]
            if step == "absent" and facts.downloads:
                yield Finding(
                    check="model",
                    level="warning",
                    where=place(report),
                    found="The model is not there yet; the run downloads it, once on each machine.",
                    fix="Make sure that the hub can be reached from there, or ship a prepared "
                    "model with --archives.",
                )
            elif step != "precision":
                check = {"absent": "model", "placement": "model"}.get(step, step)
                needed = _hashes(facts, report) if step == "model" else ""
                yield replace(of_message(check, place(report), message), needed=needed)


def _hashes(facts: Facts, report: Report) -> str:
    """The two identities of the weights, where they differ."""
    there = (report.get("model") or {}).get("weights", "")
    if not there or not facts.weights or there == facts.weights:
        return ""
    return f"Its weights are {there[:12]}, and the driver's {facts.weights[:12]}."


def _precision(facts: Facts) -> Iterator[Finding]:
    reports = [report for report in facts.survey.reports if report.get("precision")]
    others = [report for report in reports if report["precision"] != facts.precision]
    for report in others:
        count = f"{len(others)} of {len(reports)}" if len(others) < len(reports) else "All"
        yield Finding(
            check="precision",
            where=place(report),
            found=f"{count} executors compute in {report['precision']}, as their CPUs have no "
            f"{facts.precision} instructions ({report.get('cpu') or 'unknown CPU'}).",
            needed=f"The job's precision is {facts.precision}: vectors of two precisions must not "
            "be mixed.",
            fix="Set model.precision = 'fp32', or use machines that all have "
            f"{facts.precision} (AVX512_BF16 or AMX).",
        )


def _engines(facts: Facts) -> Iterator[Finding]:
    reports = [report for report in facts.survey.reports if report.get("engine")]
    names = sorted({report["engine"] for report in reports})
    if len(names) > 1:
        parts = [
            f"{name} on {sum(report['engine'] == name for report in reports)} executors"
            for name in names
        ]
        yield Finding(
            check="engine",
            level="warning",
            where="executors",
            found=f"The engine is {' and '.join(parts)}.",
            needed="fp32 vectors of two engines differ by less than 1e-5, but not their speed.",
            fix="Install the same packages on all executors, or set model.engine.",
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    for report in facts.survey.reports:
        if report.get("shortage"):
            yield of_message("memory", place(report), report["shortage"], level="warning")
        needs = report.get("needs_bytes", {}).get("resident", 0)
        ceilings = [item for item in report.get("memory", ()) if item["kind"] == "resident"]
        workers = report.get("workers", 1)
        if workers < 2 or not ceilings:
            continue
        lowest = min(ceilings, key=lambda ceiling: int(ceiling["bytes"]))
        if workers * needs > lowest["bytes"]:
            yield Finding(
                check="memory",
                level="warning",
                where=place(report),
                found=f"{workers} workers run at once, each with a model of about "
                f"{needs // _MB:,} MB, but {lowest['source']} allows "
                f"{lowest['bytes'] // _MB:,} MB.",
                fix="Set spark.task.cpus to spark.executor.cores: one worker with all cores is as "
                "fast.",
            )


def _threads(facts: Facts) -> Iterator[Finding]:
    for report in facts.survey.reports:
        threads, cpus = report.get("threads") or 0, report.get("cpus") or 0
        if cpus and threads > cpus:
            yield Finding(
                check="threads",
                level="warning",
                where=place(report),
                found=f"A task has {threads} cpus (spark.task.cpus), but the process may use "
                f"{cpus}.",
                fix="Set spark.executor.cores and spark.task.cpus to the CPUs of a machine, or of "
                "a container.",
            )


def _directories(facts: Facts) -> Iterator[Finding]:
    named = [("driver", facts.driver), *((place(r), r) for r in facts.survey.reports)]
    for where, report in named:
        for name, found in report.get("directories", {}).items():
            if found["problem"]:
                yield Finding(
                    check="output",
                    where=where,
                    found=f"The {name} {found['path']} cannot be written: {found['nearest']}: "
                    f"{found['problem']}.",
                    fix="Give another path, or grant the user of the process permission to write "
                    "there.",
                )
            elif not found["shows_marker"]:
                yield Finding(
                    check="output",
                    where=where,
                    found=f"The {name} {found['path']} is another directory than the driver's.",
                    needed="It must be one directory for all machines.",
                    fix="Give a path that all of them share: a network file system, HDFS or an "
                    "object store.",
                )


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    *(_model, _precision, _engines, _memory, _threads, _directories),
)
