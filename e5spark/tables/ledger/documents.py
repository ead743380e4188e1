"""State files: JSON objects with a format number, checked when they are read.

A release reads every format up to its own, and refuses a newer one. A file that a disk error or a
manual edit has damaged raises a ConflictError with a remedy, never another error's traceback.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from e5spark.errors import ConflictError
from e5spark.names import redacted
from e5spark.tables.storage.protocol import Storage

FORMAT = 1
RESTORE = "Restore it from a backup, or give a new output."

Document = TypeVar("Document")


def dumped(document: Mapping[str, Any]) -> bytes:
    """Returns a document as the content of a file."""
    return json.dumps(document, indent=1, ensure_ascii=False).encode()


def read_document(
    storage: Storage, name: str, kind: type[Document], *, remedy: str = RESTORE
) -> Document | None:
    """Returns a state file as a dataclass; None if there is no such file.

    Args:
        storage: The directory.
        name: The file.
        kind: A dataclass with a field ``format``. Fields that the file lacks take their defaults;
            fields that only the file has are ignored.
        remedy: What to do about a damaged file; a sentence.

    Raises:
        ConflictError: If the file is damaged, or a later release of e5spark wrote it.
    """
    data = storage.read(name)
    if data is None:
        return None
    path = f"{redacted(storage.root)}/{name}"
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            raise TypeError("it is not a JSON object")
        version = document["format"]
        if type(version) is not int:
            raise TypeError("format is not a whole number")
        if version <= FORMAT:
            return kind(**_checked(document, kind))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConflictError(f"{path} is damaged: {_cause(error)}. {remedy}") from error
    raise ConflictError(
        f"{path} has format {version}; this e5spark reads formats up to {FORMAT}. Use the release "
        "that wrote it, or a later one."
    )


def _checked(document: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Returns a document's values for the fields of a dataclass, arrays as tuples."""
    hints = get_type_hints(kind)
    values = {}
    for field in fields(kind):
        if field.name not in document:
            if field.default is MISSING and field.default_factory is MISSING:
                raise TypeError(f"it has no {field.name}")
            continue
        value = document[field.name]
        if not _fits(value, hints[field.name]):
            raise TypeError(f"{field.name} has a value of the wrong type")
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return values


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401  # a type, or a form of typing
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if hint is float:
        return type(value) in (int, float)
    return hint is Any or type(value) is hint


def _cause(error: Exception) -> str:
    """Returns why a file is damaged, without its content."""
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON (line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}"
    return str(error) or type(error).__name__
