"""The terminal that a person watches, if there is one and rich is installed to draw on it."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def terminal() -> "Console | None":
    """Returns the terminal of stderr; None if stderr goes elsewhere, or rich is not installed."""
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(stderr=True, highlight=False)
