"""The page of a run in a real browser: make report, where Chromium is installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from e5spark.page import html
from tests import browser
from tests.page_documents import KINDS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser.CHROMIUM is None, reason=browser.MISSING),
]

WIDTHS = (400, 900, 1600)
# Text whose contrast with the ground behind it is less than WCAG's 4.5, and text in charts that
# lies over other text of the same chart.
PALE = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (color) => {
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = rgb(color).map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (!/, 0\\)|transparent/.test(color)) return color;
    }
    return "white";
  };
  return [...document.querySelectorAll("body *:not(script):not(svg *)")]
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .filter((e) => e.checkVisibility())
    .map((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.textContent.slice(0, 40)];
    })
    .filter(([contrast]) => contrast < 4.5);
})()
"""
DRAWN = """
[...document.querySelectorAll(".chart svg")]
  .filter((svg) => svg.querySelectorAll("path").length > 3).length
"""
OVERLAPS = """
[...document.querySelectorAll(".chart")].flatMap((chart) => {
  const boxes = [...chart.querySelectorAll("text")]
    .filter((t) => t.textContent.length > 1).map((t) => [t.textContent, t.getBoundingClientRect()]);
  const frame = chart.getBoundingClientRect();
  const clipped = boxes.filter(([, b]) => b.left < frame.left - 12 || b.right > frame.right + 12)
    .map(([text]) => "clipped: " + text);
  return clipped.concat(boxes.flatMap(([text, a], n) => boxes.slice(n + 1)
    .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
    .map(([other]) => text + " / " + other)));
})
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(params=KINDS, scope="module")
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html(KINDS[request.param]()), "utf-8")
    return path.as_uri()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_is_silent_requests_nothing_fits_and_draws_its_charts(
    tab: browser.Page, url: str, width: int, dark: bool
) -> None:
    tab.show(url, width=width, dark=dark)
    assert tab.messages == []
    assert tab.requests == [url]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    charts = tab.evaluate("document.querySelectorAll('.chart').length")
    assert tab.evaluate(DRAWN) == charts
    assert tab.evaluate(PALE) == []
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate("document.querySelectorAll('details.data[open]').length") == 0


def test_a_page_has_its_tables_without_scripts(tab: browser.Page, url: str) -> None:
    tab.show(url, width=900, script=False)
    assert (tab.messages, tab.requests) == ([], [url])
    shown = tab.evaluate("[...document.querySelectorAll('table')].every(t => t.rows.length > 0)")
    assert shown is True
    assert tab.evaluate("document.querySelectorAll('.chart svg').length") == 0


def test_a_page_prints(tab: browser.Page, url: str, tmp_path: Path) -> None:
    tab.show(url, width=900, dark=True)
    tab.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert tab.messages == []
