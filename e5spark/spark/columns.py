"""Columns of a table by name: the text columns, and the columns that ``embed`` adds."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql.types import StringType, StructField

from e5spark.errors import ColumnError, OptionError
from e5spark.model.resolve import Plan
from e5spark.names import RESERVED, listed
from e5spark.spark.results import FIGURES, result_type

RENAME = "drop or rename it, or set column_prefix='...' for the added columns"


@dataclass(frozen=True, kw_only=True)
class TextColumns:
    """Which columns of a table are embedded, and how.

    Attributes:
        text: The name of a string column, or several names.
        role: ``query``, ``passage``, or a column that holds one of them in each row.
        instruction: The task of a query, or a column of tasks.
        join: The separator that joins several columns into one text; None embeds each on its own.
        column_prefix: The prefix of the added columns' names.

    Raises:
        OptionError: At construction, if a part is of the wrong type.
    """

    text: str | Sequence[str]
    role: str | Column
    instruction: str | Column | None = None
    join: str | None = None
    column_prefix: str = ""

    def __post_init__(self) -> None:
        _check_names(self.text)
        check_role_type(self.role)
        check_instruction_type(self.instruction)
        _check_string("join", self.join, "a string, such as '\\n', or None", optional=True)
        _check_string("column_prefix", self.column_prefix, "a string, '' for none")

    @property
    def names(self) -> list[str]:
        """Returns the names in ``text``."""
        return [self.text] if isinstance(self.text, str) else list(self.text)

    @property
    def column_prefixes(self) -> list[str]:
        """Returns the prefix of the added columns' names, for each text."""
        if isinstance(self.text, str) or self.join is not None or len(self.text) == 1:
            return [self.column_prefix]
        return [f"{self.column_prefix}{name}_" for name in self.text]


def check_role_type(role: object) -> None:
    """Raises unless a role is a string or a column; any string passes.

    Raises:
        OptionError: If it is neither.
    """
    if not isinstance(role, str | Column):
        raise OptionError(
            f"role is {role!r}; it must be 'query' or 'passage', or a Column that holds one of "
            "them in each row."
        )


def check_instruction_type(instruction: object) -> None:
    """Raises unless an instruction is a string, a column or None.

    Raises:
        OptionError: If it is none of these.
    """
    if not isinstance(instruction, str | Column | None):
        raise OptionError(
            f"instruction is {instruction!r}; it must be one sentence, a Column of sentences, or "
            "None."
        )


def check_model_type(model: object) -> None:
    """Raises unless a model is a string.

    Raises:
        OptionError: If it is not.
    """
    example = "the name of a checkpoint, such as 'intfloat/e5-small-v2', or a directory as a string"
    _check_string("model", model, example)


def result_names(plan: Plan, texts: TextColumns) -> list[dict[str, str]]:
    """Returns the names of the added columns, for each text: field of the result to column."""
    fields = result_type(plan).names
    return [{field: prefix + field for field in fields} for prefix in texts.column_prefixes]


def figure_names(texts: TextColumns) -> list[dict[str, str]]:
    """Returns the names of the columns of figures, for each text: figure to column."""
    count = len(texts.column_prefixes)
    return [{field: f"{RESERVED}_{field}_{n}" for field in FIGURES} for n in range(count)]


def resolve_column(df: DataFrame, name: str) -> StructField:
    """Returns the column of this name, which the table may spell in another case.

    Raises:
        ColumnError: If there is none, or more than one.
    """
    matches = [field for field in df.schema if _is_same(df, field.name, name)]
    if not matches:
        similar = difflib.get_close_matches(name, df.columns, n=1)
        hint = f"Did you mean {listed(similar)}?" if similar else f"It has {listed(df.columns)}."
        raise ColumnError(f"The table has no column {name!r}. {hint}")
    if len(matches) > 1:
        raise ColumnError(f"The table has {len(matches)} columns {name!r}; rename one of them.")
    return matches[0]


def text_column(df: DataFrame, name: str) -> str:
    """Returns the name of a string column, as the table spells it.

    Raises:
        ColumnError: If there is no such column, or it does not hold strings.
    """
    field = resolve_column(df, name)
    if not isinstance(field.dataType, StringType):
        raise ColumnError(
            f"Column {field.name!r} is {field.dataType.simpleString()}; embed needs a string "
            f"column. If it holds text, cast it: F.col({field.name!r}).cast('string')."
        )
    return str(field.name)


def check_reserved(df: DataFrame) -> None:
    """Raises if a column of the table has a name that is reserved for e5spark.

    Raises:
        ColumnError: If a name begins with ``__e5spark``, in any case.
    """
    reserved = [name for name in df.columns if name.lower().startswith(RESERVED)]
    if reserved:
        raise ColumnError(
            f"The table has a column {reserved[0]!r}; names that begin with {RESERVED!r} are "
            "reserved for e5spark. Rename it or drop it."
        )


def check_free(df: DataFrame, names: Sequence[str], *, remedy: str = RENAME) -> None:
    """Raises if one of the names is taken by a column of the table, in any case.

    Delta and most catalogs do not distinguish cases.

    Args:
        df: The table.
        names: The names of the columns to add.
        remedy: How to free a name; the end of the message.

    Raises:
        ColumnError: If a name is taken, or would be added twice.
    """
    existing = {column.lower(): column for column in df.columns}
    lowered = [name.lower() for name in names]
    for name in names:
        if lowered.count(name.lower()) > 1:
            raise ColumnError(f"Column {name!r} would be added twice; name each text column once.")
        if name.lower() in existing:
            raise ColumnError(
                f"The table already has a column {existing[name.lower()]!r}, and e5spark adds "
                f"{name!r}; {remedy}."
            )


def _check_names(text: object) -> None:
    names = [text] if isinstance(text, str) else text
    if not isinstance(names, Sequence) or isinstance(names, bytes):
        raise OptionError(
            f"text is {text!r}; pass the name of a string column, such as text='body', or a list "
            "of names. To embed an expression, add it as a column first."
        )
    if not names:
        raise OptionError("text names no column; pass the name of a string column, or several.")
    for name in names:
        if not isinstance(name, str):
            raise OptionError(f"text names the column {name!r}; pass each name as a string.")


def _check_string(option: str, value: object, requirement: str, *, optional: bool = False) -> None:
    if not isinstance(value, str) and not (optional and value is None):
        raise OptionError(f"{option} is {value!r}; it must be {requirement}.")


def _is_same(df: DataFrame, name: str, other: str) -> bool:
    if df.sparkSession.conf.get("spark.sql.caseSensitive", "false") == "true":
        return name == other
    return name.lower() == other.lower()
