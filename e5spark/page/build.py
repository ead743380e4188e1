"""Builds the page: the sections, the charts' options and the library, in one file."""

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

from e5spark.page import checks, sections, vectors
from e5spark.page.markup import Markup, element, joined, script_json

FORMAT = 1  # of the document; every later release reads it


def html(document: Mapping[str, Any]) -> str:
    """Returns the page of a run: one file that requests nothing, and needs no script for its text.

    A Content-Security-Policy lets only the two scripts of the page run, by their hashes, and no
    request leave it, whatever a string of the document holds.

    Args:
        document: What ``e5spark.job.run_document`` makes; the content of report.json.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError: If it is damaged.
    """
    charts: sections.Charts = {}
    main = element(
        "main",
        joined(sections.tiles(document), checks.problems(document)),
        checks.section(document),
        sections.rows(document),
        sections.statuses(document),
        sections.timeline(document, charts),
        sections.lengths(document, charts),
        vectors.sections(document, charts),
        sections.setup(document),
    )
    # Without a chart there is nothing to draw, and the page has 20 kB in place of 750.
    scripts = [_asset("echarts/echarts.common.min.js"), _asset("page.js")] if charts else []
    return Template(_asset("page.html")).substitute(
        title=joined(f"e5spark: run {document['epoch']} of {document['output']}"),
        hashes=" ".join(_hash(script) for script in scripts) or "'none'",
        style=_asset("page.css"),
        body=joined(sections.header(document), main, _footer(document)),
        charts=script_json(charts),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _footer(document: Mapping[str, Any]) -> Markup:
    version = document["report"]["versions"].get("e5spark", "")
    return element(
        "footer",
        element(
            "p",
            f"Written by e5spark {version}. This page loads nothing from anywhere. Charts: Apache "
            "ECharts, Apache License 2.0.",
        ),
    )


def _asset(name: str) -> str:
    return files("e5spark.page").joinpath(name).read_text("utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
