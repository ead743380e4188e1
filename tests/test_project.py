"""Workflows, hooks, issue forms and the pages at the root agree with the code and each other."""

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from e5spark import __version__
from e5spark.model.engines import ENGINES
from tests.cluster import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*")
TARGET = re.compile(r"\bmake ((?:[a-z][a-z0-9.-]*|\$\{\{ matrix\.target \}\}))")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]


def document(path: Path) -> dict[Any, Any]:
    """A YAML file."""
    return yaml.safe_load(path.read_text("utf-8"))


def requirements(path: Path) -> dict[str, str]:
    """Package to exact version."""
    lines = path.read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normalized(name): version for name, version in pairs}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def make_targets() -> set[str]:
    """The targets of the Makefile, with those built from $(VERSIONS)."""
    text = (REPOSITORY / "Makefile").read_text("utf-8")
    versions = re.search(r"^VERSIONS := (.+)$", text, re.MULTILINE)
    assert versions
    named = re.findall(r"^([a-z][\w.-]*)(?=[^=\n]*:(?!=))", text, re.MULTILINE)
    return {*named, *(f"versions-{version}" for version in versions[1].split())}


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    """The steps of all jobs of a workflow."""
    return list(chain.from_iterable(job["steps"] for job in workflow["jobs"].values()))


def matrix_targets(job: dict[str, Any]) -> set[str]:
    """The values of matrix.target."""
    matrix = job.get("strategy", {}).get("matrix", {})
    return {*matrix.get("target", []), *(row["target"] for row in matrix.get("include", []))}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_say_their_version(path: Path) -> None:
    lines = [line.strip(" -") for line in path.read_text("utf-8").splitlines() if "uses:" in line]
    assert lines
    assert [line for line in lines if not PINNED.fullmatch(line)] == []
    assert len(lines) == sum("uses" in step for step in steps(document(path)))


def test_an_action_has_the_same_version_everywhere() -> None:
    texts = [path.read_text("utf-8") for path in WORKFLOWS]
    uses = set(chain.from_iterable(re.findall(r"uses: (\S+)@(\S+)", text) for text in texts))
    assert len(uses) == len({action for action, _ in uses})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_bounded_in_rights_time_and_number(path: Path) -> None:
    workflow = document(path)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert workflow["concurrency"]["group"]
    assert all(0 < job["timeout-minutes"] <= 180 for job in workflow["jobs"].values())
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_only_the_job_that_publishes_may_write() -> None:
    writers = {
        (path.stem, name)
        for path in WORKFLOWS
        for name, job in document(path)["jobs"].items()
        if "write" in job.get("permissions", {}).values()
    }
    assert writers == {("release", "publish")}


def test_make_targets_that_are_named_exist() -> None:
    named: set[str] = set()
    for path in WORKFLOWS:
        for job in document(path)["jobs"].values():
            for step in job["steps"]:
                named |= set(TARGET.findall(step.get("run", "")))
            named |= matrix_targets(job)
    contributing = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    quoted = re.findall(r"`(make [^`]+)`", contributing)
    named |= set(chain.from_iterable(map(TARGET.findall, quoted)))
    named.discard("${{ matrix.target }}")
    assert {"check", "test", "chaos", "lowest"} <= named
    assert sorted(named - make_targets()) == []


def test_hosted_tests_cover_every_python_and_spark() -> None:
    rows = document(REPOSITORY / ".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]
    tested = {row["python"] for row in rows["include"] if row["target"] == "test"}
    prefix = "Programming Language :: Python :: "
    declared = {name.removeprefix(prefix) for name in PROJECT["classifiers"] if prefix in name}
    assert tested == declared - {"3 :: Only"}
    sparks = {target for target in make_targets() if target.startswith("versions-")}
    assert sparks == {row["target"] for row in rows["include"]} - {"test"}


def test_hooks_run_the_versions_that_make_check_runs() -> None:
    versions = requirements(REPOSITORY / "conf" / "constraints.txt")
    hooks = document(REPOSITORY / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    pins = list(chain.from_iterable(hook.get("additional_dependencies", []) for hook in hooks))
    assert {pin.split("==")[0] for pin in pins} == {"ruff", "typos"}
    assert [pin for pin in pins if versions[pin.split("==")[0]] != pin.split("==")[1]] == []


def test_extra_of_each_engine_installs_its_packages() -> None:
    extras = PROJECT["optional-dependencies"]
    for entry in ENGINES.values():
        installed = {re.match(r"[\w-]+", requirement)[0] for requirement in extras[entry.extra]}  # type: ignore[index]
        assert set(entry.packages) <= installed


def test_lowest_environment_has_the_floor_of_every_dependency() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = [*PROJECT["dependencies"], *extras["torch"], *extras["int8"], *extras["spark"]]
    floors = dict(re.match(r"([\w-]+)>=([\d.]+)", requirement).groups() for requirement in declared)  # type: ignore[union-attr]
    lowest = requirements(REPOSITORY / "conf" / "constraints-lowest.txt")
    for name, floor in floors.items():
        version = lowest[normalized(name)]
        assert version == floor or re.fullmatch(rf"{re.escape(floor)}(\.0)+", version), name


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_are_complete(path: Path) -> None:
    form = document(path)
    if path.name == "config.yml":
        assert form["blank_issues_enabled"] is False
        return
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["id"] and field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_files_that_contributing_names_exist() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`((?:e5spark|tests|conf|jobs)/[\w/.-]+)`", text)
    named += re.findall(r"\]\(([A-Z_]+\.md)\)", text)
    assert len(named) > 20
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_changelog_has_this_version_or_unreleased_changes() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings
    assert headings[0] in ("Unreleased", __version__)
    links = re.findall(r"^\[(.+?)\]: https://github\.com/e5spark/e5spark/", text, re.MULTILINE)
    assert sorted(links) == sorted(headings)


def test_urls_of_the_project_are_of_one_place() -> None:
    assert {"Source", "Issues", "Changelog"} <= set(PROJECT["urls"])
    place = "https://github.com/e5spark/e5spark"
    assert all(url.startswith(place) for url in PROJECT["urls"].values())
