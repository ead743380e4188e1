"""HTML that is safe by construction: whatever is not markup already is escaped."""

import json
from collections.abc import Sequence
from html import escape


class Markup(str):
    """HTML; any other string is text."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | None) -> Markup:
    """Returns an element.

    Args:
        tag: Its name.
        children: Markup, or text that is escaped.
        attributes: Values, which are escaped; None leaves the attribute out. ``class_`` is
            ``class``, and other underscores are hyphens.
    """
    listed = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{listed}>{joined(*children)}</{tag}>")


def joined(*parts: str) -> Markup:
    """Returns parts one after the other; text is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def script_json(value: object) -> Markup:
    """Returns a value as JSON for a script element, which nothing in a string can close."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, caption: str) -> Markup:
    """Returns a table in a box that scrolls on a narrow screen; the first cell of a row heads it.

    Cells that look like numbers are aligned to the right.
    """
    head = element("tr", *(element("th", name, scope="col") for name in header))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(
                element("td", cell, class_="number" if _is_number(cell) else None)
                for cell in row[1:]
            ),
        )
        for row in rows
    ]
    content = element(
        "table",
        element("caption", caption, class_="hidden"),
        element("thead", head),
        element("tbody", *body),
    )
    # Reached by the keyboard, because it may scroll.
    return element("div", content, class_="scroll", tabindex="0", role="group", aria_label=caption)


def _is_number(cell: str) -> bool:
    return not isinstance(cell, Markup) and bool(cell) and cell[0] in "-0123456789"
