"""The page of a run: whole, safe whatever a row holds, readable without scripts, and small."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from e5spark.job.lengths import edges
from e5spark.page import html
from e5spark.page.amounts import duration, share
from e5spark.page.charts import length_range, token_lengths
from e5spark.page.sample import describe
from tests.page_documents import HOSTILE, KINDS, document, vectors

ECHARTS = files("e5spark.page") / "echarts"
# npm pack echarts@6.1.0, dist/echarts.common.min.js
ECHARTS_SHA256 = "61f13280aba3161f77fc801bf5f9c786f55f10432153a0683fc5cc0700b013d5"
VOID = {"meta", "link"}


class Outline(HTMLParser):
    """The elements of a page, checked to be closed in order; its headings, and its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    @property
    def levels(self) -> list[int]:
        return [int(tag[1]) for tag, _ in self.elements if re.fullmatch(r"h[1-6]", tag)]

    @property
    def charts(self) -> dict[str, object]:
        return json.loads(self.text["script"][0])


@pytest.fixture(params=KINDS, scope="module")
def page(request: pytest.FixtureRequest) -> str:
    return html(KINDS[request.param]())


def test_every_kind_of_run_has_a_page_whose_headings_and_charts_are_in_order(page: str) -> None:
    outline = Outline(page)
    assert outline.levels[:2] == [1, 2]
    assert outline.levels.count(1) == 1
    steps = zip(outline.levels, outline.levels[1:], strict=False)
    assert max(below - above for above, below in steps) == 1
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    places = {
        attributes["id"]
        for _, attributes in outline.elements
        if attributes.get("role") == "img" and attributes["aria-label"]
    }
    assert set(outline.charts) == places


def test_no_page_is_larger_than_900_kb(page: str) -> None:
    assert len(page.encode()) < 900_000


def test_a_page_requests_nothing_and_runs_only_its_own_scripts(page: str) -> None:
    outline = Outline(page)
    tags = [tag for tag, _ in outline.elements]
    assert not {"img", "iframe", "object", "embed", "base", "form", "a"} & set(tags)
    addresses = [
        value
        for _, attributes in outline.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data")
    ]
    assert addresses == ["data:,"]
    policy = next(a["content"] for _, a in outline.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; ")
    scripts = [script for script in outline.text["script"][1:] if script.strip()]
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ]
    assert policy.rpartition("script-src ")[2] == (" ".join(hashes) or "'none'")


def test_strings_of_rows_and_settings_never_become_markup() -> None:
    page = html(KINDS["hostile strings"]())
    outline, harmless = Outline(page), Outline(html(KINDS["texts"]()))
    assert [tag for tag, _ in outline.elements].count("script") == 3
    assert not [a for _, a in outline.elements if any(name.startswith("on") for name in a)]
    assert {tag for tag, _ in outline.elements} == {tag for tag, _ in harmless.elements}
    assert HOSTILE not in page.replace(outline.text["script"][0], "")
    tips = json.dumps(outline.charts, ensure_ascii=False)
    assert "</script>" in tips  # it is there, as data
    assert "</script>" not in outline.text["script"][0].replace("\\u003c/script", "")


def test_the_figures_of_a_run_are_on_its_page_without_scripts() -> None:
    outline = Outline(html(document()))
    example = document()["sample"]["columns"][0]["examples"][0]
    words = " ".join(
        text for tag, texts in outline.text.items() if tag != "script" for text in texts
    )
    for expected in (
        "330 rows read = 300 + 10 + 20.",
        "docs_embedded",
        "intfloat/e5-small-v2",
        "ab" * 32,
        "passed",
        f"doc-{example['row']:05d}",
        "0.6 to 0.95",
        "input.path",
        "limit",
    ):
        assert expected in words


def test_counts_that_do_not_reconcile_are_shown_as_such() -> None:
    broken = document()
    broken["report"]["skipped"] = 1
    assert "330 rows read ≠ 300 + 10 + 1." in html(broken)


def test_a_failed_gate_heads_the_page_with_its_remedy() -> None:
    page = html(KINDS["a failed gate"]())
    assert 'class="pill bad">a gate failed' in page
    assert "Check it with e5spark verify." in page
    assert "passed with a warning" not in page


def test_no_text_is_shown_unless_the_document_has_texts() -> None:
    assert "<small>" not in html(document())
    assert "<small>The text of row" in html(KINDS["texts"]())


def test_echarts_is_as_pinned_and_its_licence_is_shipped() -> None:
    library = (ECHARTS / "echarts.common.min.js").read_bytes()
    assert hashlib.sha256(library).hexdigest() == ECHARTS_SHA256
    assert b"Licensed to the Apache Software Foundation" in library
    assert "Apache License" in (ECHARTS / "LICENSE").read_text("utf-8")
    assert "Apache ECharts" in (ECHARTS / "NOTICE").read_text("utf-8")


# The sample.


def test_random_pairs_have_the_cosines_of_the_vectors() -> None:
    result = describe(np.array([[1, 0], [2, 0], [0, 3]], np.float32))
    cosines = result["cosines"]
    assert (cosines["pairs"], cosines["lowest"], cosines["highest"]) == (3, 0.0, 1.0)
    assert cosines["mean"] == pytest.approx(1 / 3, abs=1e-4)
    assert sum(cosines["counts"]) == 3


def test_a_large_sample_compares_20_000_pairs_and_finds_its_mean() -> None:
    sample = vectors(1500)
    cosines = describe(sample)["cosines"]
    unit = sample / np.linalg.norm(sample, axis=1)[:, None]
    everything = (unit @ unit.T)[np.triu_indices(1500, 1)]
    assert 19_900 < cosines["pairs"] <= 20_000
    assert cosines["mean"] == pytest.approx(everything.mean(), abs=0.005)


def test_neighbours_are_the_nearest_vectors_of_other_rows() -> None:
    sample = vectors()
    unit = sample / np.linalg.norm(sample, axis=1)[:, None]
    examples = describe(sample)["examples"]
    assert len(examples) == 6
    for example in examples:
        scores = unit @ unit[example["row"]]
        scores[example["row"]] = -1
        best = np.argsort(-scores)[:5]
        assert [near["row"] for near in example["neighbours"]] == best.tolist()
        assert example["neighbours"][0]["cosine"] == pytest.approx(scores[best[0]], abs=1e-4)


def test_windows_of_one_text_are_neither_paired_nor_neighbours() -> None:
    twice = np.repeat(vectors(40), 2, axis=0)
    groups = np.repeat(np.arange(40), 2)
    result = describe(twice, rows=np.arange(80), groups=groups)
    for example in result["examples"]:
        for near in example["neighbours"]:
            assert groups[near["row"]] != groups[example["row"]]
    assert result["cosines"]["highest"] < 1
    assert describe(twice[:2], groups=np.zeros(2, int))["cosines"] is None


def test_vectors_without_a_direction_are_counted_and_left_out() -> None:
    sample = vectors(50)
    sample[3], sample[7, 2], sample[9, 1] = 0, np.nan, np.inf
    result = describe(sample)
    assert (result["vectors"], result["unusable"]) == (50, 3)
    assert not {3, 7, 9} & set(result["map"]["rows"])
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("dim", [8, 500])
def test_the_map_holds_as_much_variance_as_it_says(dim: int) -> None:
    sample = vectors(200, dim)
    points = describe(sample)["map"]
    unit = sample / np.linalg.norm(sample, axis=1)[:, None]
    total = ((unit - unit.mean(axis=0)) ** 2).sum()
    shares = [(np.array(points[axis]) ** 2).sum() / total for axis in "xy"]
    assert shares == pytest.approx(points["variance"], abs=0.01)
    assert shares[0] > shares[1] > 0


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_handful_of_vectors_has_no_map(rows: int) -> None:
    assert describe(vectors(rows))["map"] is None
    assert describe(np.ones((5, 4), np.float32))["map"] is None


# Charts and numbers.


def test_bins_of_token_lengths_cover_every_length_once() -> None:
    limits = edges(512)
    assert 512 in limits
    assert (limits[0], limits[-1], len(limits)) == (8, 4096, 37)
    for limit in (4, 8, 100, 256, 32_768):
        assert limit in edges(limit)
        assert edges(limit)[-1] == 8 * limit
    words = [length_range(limits, number) for number in range(len(limits) + 1)]
    assert words[:2] == ["1 to 8", "9 to 10"]
    assert words[-1] == "over 4,096"


def test_the_limit_is_on_the_chart_of_token_lengths_although_all_texts_are_short() -> None:
    counts = [0] * 38
    counts[3] = 5
    chart = token_lengths(edges(512), counts, 512)
    line = chart["series"][0]["markLine"]["data"][0]
    assert line["xAxis"] == 9
    assert chart["xAxis"]["min"] < 3.5 < line["xAxis"] < chart["xAxis"]["max"]


def test_small_shares_are_not_shown_as_nothing_or_as_everything() -> None:
    assert share(1, 1_000_000) == "< 0.1 %"
    assert share(999_999, 1_000_000) == "> 99 %"
    assert [share(0, 5), share(5, 5), share(1, 3)] == ["0 %", "100 %", "33 %"]
    assert [duration(1.25), duration(61), duration(7322)] == ["1.2 s", "1 min 01 s", "2 h 02 min"]
