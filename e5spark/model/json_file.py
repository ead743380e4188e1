"""The small JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from e5spark.errors import ModelError


def read_json(path: Path, default: Any = None) -> Any:  # noqa: ANN401  # whatever JSON holds
    """Returns the content of a JSON file; the default if there is no such file.

    Args:
        path: The file.
        default: The value for a missing file, of the type that the file must hold. Without one the
            file must hold an object (a dict).

    Raises:
        ModelError: If the file is not JSON of that type, or is missing and has no default.
    """
    expected = dict if default is None else type(default)
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if default is None:
            raise ModelError(f"{path.parent} has no {path.name}.") from None
        return default
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}. Fetch it again.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}. Fetch it again.") from None
    if not isinstance(content, expected):
        raise ModelError(
            f"{path} holds a JSON {type(content).__name__}; it needs a {expected.__name__}. Fetch "
            "it again."
        )
    return content
