"""Directives that generate parts of the reference from the code, so that they always agree."""

import json
import re
import typing
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from e5spark import errors
from e5spark.job import config
from e5spark.model.registry import CHECKPOINTS
from e5spark.model.spec import ModelSpec

ROOT = Path(__file__).parents[2]
JOB_FILE = ROOT / "conf" / "embed.toml"
_HEADER = re.compile(r"(?:# )?\[([\w.]+)\]\s*(?:# (.*))?")
_KEY = re.compile(r"(?:# )?(\w+) = .*?\s{2,}# (.*)")
_CONTINUATION = re.compile(r"\s{8,}# (.*)")
_ATTRIBUTE = re.compile(r"^ {8}(\w+): (.+?)(?=^ {8}\w+: |^ {0,4}\S|\Z)", re.MULTILINE | re.DOTALL)
_WORDS = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: ""}


def job_file_comments() -> dict[str, str]:
    """Returns the comment of each key of the example job file, by ``section.key``."""
    comments: dict[str, str] = {}
    section = name = ""
    for line in JOB_FILE.read_text("utf-8").splitlines():
        if header := _HEADER.fullmatch(line):
            section = name = header[1]
            if header[2]:
                comments[name] = header[2]
        elif key := _KEY.fullmatch(line):
            name = f"{section}.{key[1]}"
            comments[name] = key[2]
        elif (continuation := _CONTINUATION.fullmatch(line)) and name in comments:
            comments[name] += f" {continuation[1]}"
    return comments


def model_attributes() -> dict[str, str]:
    """Returns what the docstring of ``ModelSpec`` says about each of its attributes."""
    attributes = _ATTRIBUTE.findall(ModelSpec.__doc__ or "")
    return {name: " ".join(text.split()) for name, text in attributes}


def described(hint: Any) -> str:  # noqa: ANN401  # any annotation
    """Returns a type as a reader of TOML sees it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(filter(None, map(described, arguments)))
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {described(arguments[0])}s"
    if origin is not None:
        return "table"
    return _WORDS[hint]


def _default(field: Field[Any]) -> str:
    default = field.default
    if default is MISSING:
        return "required" if field.default_factory is MISSING else "optional"
    if default is None or default == "":
        return "optional"
    return f"default `{json.dumps(default)}`"


def _sentence(text: str) -> str:
    """Returns the text with a full stop, and capitalised unless its first word is a value."""
    text = text.replace("``", "`").rstrip(".") + "."
    return text if re.match(r"\w+:", text) else text[:1].upper() + text[1:]


class _Markdown(SphinxDirective):
    """A directive that generates Markdown."""

    def markdown(self) -> str:
        """Returns the Markdown that replaces the directive."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Returns the content as nodes of the page."""
        self.env.note_dependency(str(JOB_FILE))
        return self.parse_text_to_nodes(self.markdown())


class Section(_Markdown):
    """``{job-section} input``: the keys of a section of a job file."""

    required_arguments = 1

    def markdown(self) -> str:
        """Returns a definition list of the keys: type, default, meaning."""
        section = self.arguments[0]
        kind = ModelSpec if section == "model" else getattr(config, f"{section.title()}Config")
        hints = get_type_hints(kind)
        attributes = model_attributes() if section == "model" else {}
        comments = job_file_comments()
        entries = []
        for field in fields(kind):
            key = "name" if (section, field.name) == ("model", "model") else field.name
            name = f"{section}.{key}"
            text = attributes.get(field.name) or comments[name]
            entries.append(
                f"`{name}`\n"
                f": {described(hints[field.name])}, {_default(field)}. {_sentence(text)}\n"
            )
        return "\n".join(entries)


class Checkpoints(_Markdown):
    """``{checkpoints}``: the table of published checkpoints."""

    def markdown(self) -> str:
        """Returns a table with a row for each checkpoint."""
        rows = [
            "| checkpoint | architecture | layers | dim | max tokens | pooling | languages |",
            "|---|---|---|---|---|---|---|",
        ]
        for checkpoint in CHECKPOINTS.values():
            cells = (
                checkpoint.name,
                checkpoint.architecture,
                checkpoint.shape.layers,
                checkpoint.recipe.dim,
                checkpoint.recipe.max_tokens,
                checkpoint.recipe.pooling,
                checkpoint.languages.removesuffix(" languages"),
            )
            rows.append(f"| {' | '.join(map(str, cells))} |")
        return "\n".join(rows)


class Errors(_Markdown):
    """``{error-classes}``: the tree of errors."""

    def markdown(self) -> str:
        """Returns a table with a row for each class of error."""
        rows = ["| class | exit code | meaning |", "|---|---|---|"]
        for kind in vars(errors).values():
            if isinstance(kind, type) and issubclass(kind, errors.E5SparkError):
                meaning = (kind.__doc__ or "").splitlines()[0]
                rows.append(f"| `{kind.__name__}` | {kind.exit_code} | {meaning} |")
        return "\n".join(rows)


def setup(app: Sphinx) -> dict[str, typing.Any]:
    """Adds the directives."""
    app.add_directive("job-section", Section)
    app.add_directive("checkpoints", Checkpoints)
    app.add_directive("error-classes", Errors)
    return {"parallel_read_safe": True}
