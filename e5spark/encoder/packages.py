"""The optional packages that engines and commands need."""

import importlib.util
from collections.abc import Iterable

from e5spark.errors import OptionError


def missing(packages: Iterable[str]) -> list[str]:
    """Returns the packages that this interpreter cannot import, in order."""
    return [package for package in packages if not _is_importable(package)]


def require(packages: Iterable[str], *, extra: str, purpose: str) -> None:
    """Raises unless this interpreter has the packages.

    Args:
        packages: Importable names.
        extra: The extras of e5spark that install them, comma-separated.
        purpose: The command or engine that needs them; the subject of the message.

    Raises:
        OptionError: If one is missing; the message names it and the extras.
    """
    names = missing(packages)
    if names:
        verb = "is" if len(names) == 1 else "are"
        raise OptionError(
            f"{purpose} needs {' and '.join(names)}, which {verb} not installed here: "
            f"pip install 'e5spark[{extra}]'."
        )


def _is_importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # blocked, or half imported
        return False
