"""The README and docs/ say what is true: their blocks run, their links and names lead somewhere."""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from e5spark import cli, errors
from e5spark.model.registry import find
from tests import checkpoints, pages
from tests.cluster import python_path
from tests.pages import PAGES, README, ROOT, Block

MODEL = "intfloat/multilingual-e5-small"
SIZES = {"layers": 2, "hidden": 384, "heads": 12, "ffn": 64}
BLOCKS = [block for page in PAGES for block in pages.blocks(page)]
RUN = [block for block in BLOCKS if block.language in ("python", "sh") and block.reason is None]
# The README's job starts Spark as it is written; all other blocks share one session.
SUBMITTED = next(block for block in RUN if block.language == "sh")
SHARED = [block for block in RUN if block is not SUBMITTED]

# Why a block is not run, and what covers it in its place.
NOT_RUN = {
    "changes the shell itself",
    "builds the environment and runs every test",
    "output of make demo",
    "writes an archive of 171 MB",
    "output of e5spark status, which tests/test_status.py checks",
    "output of e5spark doctor, which tests/test_cluster.py checks",
    "needs a finished job; tests/test_run_page.py runs it",
    "needs the Delta jars; tests/test_delta.py runs such jobs",
    "needs an input that grows; tests/test_streaming.py runs such jobs",
    "needs a cluster; tests/test_cluster.py starts one",
    "needs a cluster; tests/test_archive.py starts one",
    "needs a container engine",
    "needs an account of a cloud",
    "embeds in several precisions; tests/test_compare.py runs it",
    "downloads the data of a task; tests/test_mteb.py runs mteb on local data",
    "needs a jar from Maven Central",
    "needs a server of Qdrant",
    "needs a server of OpenSearch",
    "measures this machine for minutes; tests/test_benchmark.py runs it",
    "tests/test_dry_run.py runs such jobs",
}


@pytest.fixture(scope="module")
def environment(jvm, tmp_path_factory) -> dict[str, str]:
    """A shell as the pages assume it, whose hub cache has a small random checkpoint of their model.

    Every process that runs in it, Spark's workers too, has the sizes of that checkpoint in its
    registry: the real ones would take most of the time of these tests.
    """
    directory = tmp_path_factory.mktemp("environment")
    repository = directory / "hub" / f"models--{MODEL.replace('/', '--')}"
    snapshot = repository / "snapshots" / str(find(MODEL).revision)
    checkpoints.bert_unigram(snapshot, **SIZES)
    vocabulary = json.loads((snapshot / "config.json").read_text("utf-8"))["vocab_size"]
    modules = directory / "python"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(
        "from dataclasses import replace\n"
        "from e5spark.model import registry\n"
        f"known = registry.find({MODEL!r})\n"
        f"sizes = replace(known, shape=registry.Shape(**{SIZES}), vocab={vocabulary})\n"
        "registry.CHECKPOINTS[known.name] = sizes\n",
        "utf-8",
    )
    shutil.rmtree(ROOT / "build" / "example", ignore_errors=True)
    (ROOT / "build" / "example").mkdir(parents=True)
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": python_path(str(modules)),
        "HF_HUB_CACHE": str(directory / "hub"),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def results(environment, tmp_path_factory) -> list[dict[str, str | None]]:
    """What each block of ``SHARED`` printed, and what made it fail."""
    directory = tmp_path_factory.mktemp("session")
    blocks, results = directory / "blocks.json", directory / "results.json"
    blocks.write_text(json.dumps([asdict(block) for block in SHARED]), "utf-8")
    run([sys.executable, "-m", "tests.pages", str(blocks), str(results)], environment)
    return json.loads(results.read_text("utf-8"))


def run(command: list[str], environment: dict[str, str]) -> str:
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def name(block: Block) -> str:
    return f"{block.page}:{block.line}"


def test_job_of_the_readme_runs_as_it_is_written(environment) -> None:
    printed = run(["bash", "-euo", "pipefail", "-c", SUBMITTED.code], environment)
    assert json.loads(printed.splitlines()[-1])["ok"] == 424


@pytest.mark.parametrize("number", range(len(SHARED)), ids=map(name, SHARED))
def test_block_runs_and_prints_what_the_page_says(number: int, results) -> None:
    result = results[number]
    assert result["failure"] is None, result["failure"]
    output = SHARED[number].output
    if output is not None:
        assert result["printed"].strip() == output.strip()


def test_report_keys_are_all_documented(results) -> None:
    reports = [
        json.loads(line)
        for block, result in zip(SHARED, results, strict=True)
        if block.language == "sh"
        for line in result["printed"].splitlines()
        if line.startswith("{")
    ]
    keys = {key for report in reports if "rows_in" in report for key in report}
    page = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
    assert keys
    assert not {key for key in keys if f"`{key}`" not in page}


def test_every_block_is_run_or_excused_for_a_listed_reason() -> None:
    assert {block.language for block in BLOCKS} <= {"python", "sh", "text"}
    assert {block.reason for block in BLOCKS if block.reason is not None} == NOT_RUN


def test_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in pages.links(page):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{page.name} links to {link}"
        assert not heading or heading in pages.anchors(target), f"{page.name} links to {link}"


def test_command_line_page_names_every_command_and_option() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    subparsers = next(
        action
        for action in cli._parser(list(cli.COMMANDS))._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    for command, parser in subparsers.choices.items():
        assert f"`e5spark {command}" in page
        options = {option for action in parser._actions for option in action.option_strings}
        missing = {option for option in options - {"-h", "--help"} if f"`{option}" not in page}
        assert not missing, f"options of {command}"


def test_environment_page_names_every_variable_of_our_own() -> None:
    page = (ROOT / "docs" / "environment.md").read_text("utf-8")
    used = {
        variable
        for path in (ROOT / "e5spark").rglob("*.py")
        for variable in re.findall(r"E5SPARK_[A-Z_]+", path.read_text("utf-8"))
    }
    assert not {variable for variable in used if f"`{variable}`" not in page}


def test_troubleshooting_page_has_every_exit_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.E5SparkError)
    }
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == {0, *codes}


def test_messages_on_the_troubleshooting_page_are_messages_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^(`.+)\n: ", page, re.MULTILINE)
    assert quoted
    text = messages()
    for term in quoted:
        for fragment in re.findall(r"`([^`]+)`", term):
            for part in fragment.split("..."):
                assert part.strip() in text or fragment in NOT_OURS, fragment


# What other programs say, and names.
NOT_OURS = {
    "spark-submit: command not found",
    "'NoneType' object has no attribute 'origin'",
    "show()",
    "run.delete_missing",
}


def messages() -> str:
    """Returns the text of every string of the code and the Makefile, what is put in left out."""
    texts = [(ROOT / "Makefile").read_text("utf-8")]
    for path in (ROOT / "e5spark").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                constants = (part for part in node.values if isinstance(part, ast.Constant))
                texts.append("".join(str(part.value) for part in constants))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_paths_on_the_extending_page_exist() -> None:
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    paths = re.findall(r"`((?:e5spark|tests|docs|conf)/[^`]+)`", page)
    assert paths
    for path in paths:
        place = (ROOT / path).parent if "NAME" in path else ROOT / path
        assert place.exists(), path
