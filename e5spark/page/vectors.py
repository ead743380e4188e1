"""The sections on a sample of the vectors: cosines of random pairs, a map, nearest neighbours."""

from collections.abc import Mapping, Sequence
from typing import Any

from e5spark.page.amounts import count
from e5spark.page.charts import cosines, vector_map
from e5spark.page.markup import Markup, element, joined
from e5spark.page.sections import Charts, chart, data_table


def sections(document: Mapping[str, Any], charts: Charts) -> Markup:
    """Returns the sections of each column of vectors."""
    sample = document["sample"]
    if not sample:
        return Markup("")
    names = sample["ids"] or [f"row {row + 1} of the sample" for row in range(sample["rows"])]
    several = len(sample["columns"]) > 1
    parts = []
    for number, column in enumerate(sample["columns"]):
        name = f" of {column['column']}" if several else ""
        if column["cosines"]:
            parts.append(_cosines(document, column, name, f"chart-cosines-{number}", charts))
        if column["map"]:
            parts.append(_map(column, name, f"chart-map-{number}", names, charts))
        if column["examples"]:
            parts.append(_neighbours(column, name, names))
    return joined(*parts)


def _cosines(
    document: Mapping[str, Any], column: Mapping[str, Any], name: str, id: str, charts: Charts
) -> Markup:
    histogram, band = column["cosines"], document["band"]
    charts[id] = cosines(histogram, band)
    figures = (
        f"{count(histogram['pairs'])} random pairs of a sample of {count(column['vectors'])} "
        f"vectors: mean {histogram['mean']:.3f}, from {histogram['lowest']:.3f} to "
        f"{histogram['highest']:.3f}."
    )
    meaning = (
        "E5 is trained with a temperature of 0.01, so that its cosines lie in a narrow band, about "
        "0.7 to 1, even for texts that have nothing in common: compare cosines with each other, "
        f"not with 0. The mean should lie in the shaded band, {band[0]} to {band[1]}; far outside "
        "of it the vectors say little."
        if band
        else "For this checkpoint e5spark knows no band in which the mean should lie."
    )
    edges = histogram["edges"]
    data = [
        (f"{begin:.3f} to {end:.3f}", count(pairs))
        for begin, end, pairs in zip(edges, edges[1:], histogram["counts"], strict=False)
        if pairs
    ]
    return element(
        "section",
        element("h2", f"Cosines of random pairs{name}"),
        element("p", figures, class_="note"),
        chart(id, f"Histogram of cosines. {figures}"),
        element("p", meaning, class_="note"),
        data_table(("cosine", "pairs"), data, caption=f"Cosines of random pairs{name}"),
    )


def _map(
    column: Mapping[str, Any], name: str, id: str, names: Sequence[str], charts: Charts
) -> Markup:
    points, examples = column["map"], column["examples"]
    charts[id] = vector_map(points, examples, names)
    kept = sum(points["variance"])
    note = (
        f"{count(len(points['rows']))} vectors of the sample in the plane of their first two "
        f"principal components, which hold {100 * kept:.0f} % of their variance: points that are "
        "near here may be far apart. A letter is a row of the next section; lines lead to its "
        "nearest neighbours."
    )
    return element(
        "section",
        element("h2", f"Map of a sample{name}"),
        element("p", note, class_="note"),
        chart(id, f"Map of vectors. {note}", tall=True),
        class_="wide" if column["texts"] else None,
    )


def _neighbours(column: Mapping[str, Any], name: str, names: Sequence[str]) -> Markup:
    texts = column["texts"]
    items = []
    for number, example in enumerate(column["examples"]):
        swatch = element("span", "ABCDEFGH"[number], class_=f"swatch n{number + 1}")
        near = [
            element(
                "li",
                element("span", names[one["row"]]),
                element("span", f"{one['cosine']:.3f}", class_="number"),
                *_text(texts, one["row"]),
            )
            for one in example["neighbours"]
        ]
        heading = element("b", names[example["row"]])
        items.append(
            element("li", swatch, heading, *_text(texts, example["row"]), element("ol", *near))
        )
    note = (
        f"Random rows, and the rows with the highest cosines among the {count(column['vectors'])} "
        "of the sample, not of the whole table."
    )
    return element(
        "section",
        element("h2", f"Nearest neighbours{name}"),
        element("p", note, class_="note"),
        element("ul", *items, class_="neighbours"),
        class_="wide" if texts else None,  # beside the map they would be far longer than it
    )


def _text(texts: Mapping[str, str], row: int) -> list[Markup]:
    return [element("small", texts[str(row)])] if str(row) in texts else []
