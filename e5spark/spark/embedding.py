"""The driver's side: columns are checked and the plan is made; nothing runs before an action."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField

from e5spark.errors import ColumnError, OptionError
from e5spark.model import prompts
from e5spark.model.resolve import Plan, make_plan
from e5spark.model.spec import ModelOptions, ModelSpec, model_spec
from e5spark.names import listed, quoted
from e5spark.spark.archive import localized
from e5spark.spark.results import result_type
from e5spark.spark.udf import Udf, result_udf, vector_udf
from e5spark.spark.worker import Request

_STRUCT = "__e5spark"
_WINDOW = "__e5spark_window"


def embed(  # a call that says what it does, all of it by keyword
    df: DataFrame,
    *,
    text: str | Sequence[str],
    role: str | Column,
    model: str,
    instruction: str | Column | None = None,
    join: str | None = None,
    column_prefix: str = "",
    **options: Unpack[ModelOptions],
) -> DataFrame:
    """Returns the rows of ``df`` with the vector of a text column, and what became of each text.

    Nothing runs before an action. All columns pass through; the columns added are

    - ``embedding``: ``array<float>``, unit length, null unless ``status`` is ``ok``; another type
      with another ``output_type``: ``array<tinyint>`` for int8, else ``binary``;
    - ``n_tokens``: int, tokens before truncation, prompt and special tokens included; 0 where
      there was no text, an estimate beyond 65,536 characters;
    - ``truncated``: boolean, whether tokens were cut;
    - ``already_prompted``: boolean, whether the text began with a prompt already;
    - ``status``: ``ok``, ``null_text``, ``empty_text`` (white space only) or ``error``;
    - ``error``: string, why, where ``status`` is ``error``.

    With ``long_text="split"`` a long text becomes several rows, and the columns ``window`` (from
    0), ``start`` and ``end`` (characters of the text) are added too. With several text columns
    each gets its own six columns, named ``title_embedding`` and so on.

    A sort of the result makes Spark run the model twice, because it samples the rows first: write
    the result, then sort what was written.

    Args:
        df: Any DataFrame, classic or Spark Connect.
        text: The string column to embed, without prompts: they are added here; or several.
        role: ``query`` or ``passage``, or a column that holds one of them in each row.
        model: A checkpoint's name on the hub or a directory; see ``e5spark.model.spec.ModelSpec``.
        instruction: The task of a query, for instruct checkpoints only; or a column of tasks.
        join: Makes several text columns one text, with this between them; nulls are left out.
        column_prefix: Put before the names of the added columns.
        **options: The other keywords of ``e5spark.model.spec.ModelSpec``.

    Raises:
        ColumnError: If a text column is missing or no string, or an added name is taken.
        ModelError: If the checkpoint is unknown, absent or incomplete.
        OptionError: If an option is wrong.
    """
    return embed_plan(
        df,
        plan_model(model_spec(model, options)),
        Texts(
            text=text, role=role, instruction=instruction, join=join, column_prefix=column_prefix
        ),
    )


def embedding_udf(
    *,
    role: str,
    model: str,
    instruction: str | None = None,
    **options: Unpack[ModelOptions],
) -> Udf:
    """Returns a UDF from a text column to its vectors: ``array<float>``, null where there is none.

    It is an Arrow UDF where Spark has them (4.1 and later), else a pandas UDF. Use it in
    ``select`` and ``withColumn``, or register it for SQL: ``spark.udf.register("e5", udf)``.

    Args:
        role: ``query`` or ``passage``.
        model: A checkpoint's name on the hub or a directory; see ``e5spark.model.spec.ModelSpec``.
        instruction: The task of a query, for instruct checkpoints only.
        **options: The other keywords of ``e5spark.model.spec.ModelSpec``.

    Raises:
        ModelError: If the checkpoint is unknown, absent or incomplete.
        OptionError: If an option is wrong.
    """
    plan = plan_model(model_spec(model, options))
    if plan.recipe.long_text == "split":
        raise OptionError("A UDF gives one vector a row; long_text='split' is for embed.")
    if not isinstance(role, str) or not isinstance(instruction, str | None):
        raise OptionError("A UDF has one role and one instruction; columns of them are for embed.")
    request, _ = _request(plan, 1, Texts(text="", role=role, instruction=instruction))
    return vector_udf(request)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Which texts of a table are embedded, and how; ``embed`` says what each part means."""

    text: str | Sequence[str]
    role: str | Column
    instruction: str | Column | None = None
    join: str | None = None
    column_prefix: str = ""


def plan_model(spec: ModelSpec, *, required: bool = False) -> Plan:
    """Returns the model as this driver resolves it; see ``make_plan``."""
    return make_plan(spec, localized(spec), required=required)


def embed_plan(df: DataFrame, plan: Plan, texts: Texts) -> DataFrame:
    """Returns what ``embed`` returns, for a model that is resolved already.

    Raises:
        ColumnError: If a text column is missing or no string, or an added name is taken.
        OptionError: If the role, the instruction or their combination is wrong.
    """
    asked, arguments = request(df, plan, texts)
    added = result_names(plan, texts)
    check_free(df, [name for one in added for name in one.values()])
    if asked.texts > 1 and plan.recipe.long_text == "split":
        raise OptionError("long_text='split' takes one text column; give join, or one at a time.")
    result = df.select("*", result_udf(asked)(*arguments).alias(_STRUCT))
    if plan.recipe.long_text == "split":
        result = result.select("*", F.explode(F.col(_STRUCT)["t0"]).alias(_WINDOW)).drop(_STRUCT)
        parts = [F.col(_WINDOW)]
    else:
        parts = [F.col(_STRUCT)[f"t{number}"] for number in range(asked.texts)]
    vectors = [
        part[field].alias(name)
        for part, one in zip(parts, added, strict=True)
        for field, name in one.items()
    ]
    return result.select("*", *vectors).drop(_STRUCT, _WINDOW)


def request(df: DataFrame, plan: Plan, texts: Texts) -> tuple[Request, list[Column]]:
    """Returns what the UDF does, and its arguments: the texts, then role and instruction by row.

    Raises:
        ColumnError: If a text column is missing or no string.
        OptionError: If the role, the instruction or their combination is wrong.
    """
    names = [texts.text] if isinstance(texts.text, str) else list(texts.text)
    if not names:
        raise OptionError("text names no column.")
    columns = [text_column(df, name) for name in names]
    # As bytes, because Spark's strings can hold invalid UTF-8, which would kill the task.
    arguments = [F.col(quoted(name)).cast("binary") for name in columns]
    if texts.join is not None:
        arguments = [_joined(columns, texts.join).cast("binary")]
    asked, extra = _request(plan, len(arguments), texts)
    return asked, [*arguments, *extra]


def result_names(plan: Plan, texts: Texts) -> list[dict[str, str]]:
    """Returns field to column name of what is added, for each text that is embedded."""
    fields = result_type(plan).names
    return [{field: prefix + field for field in fields} for prefix in column_prefixes(texts)]


def column_prefixes(texts: Texts) -> list[str]:
    """Returns what is put before the names of the added columns, for each text."""
    if isinstance(texts.text, str) or texts.join is not None or len(texts.text) == 1:
        return [texts.column_prefix]
    return [f"{texts.column_prefix}{name}_" for name in texts.text]


def _joined(columns: Sequence[str], separator: str) -> Column:
    """The columns as one text; null only where all of them are."""
    parts = [F.col(quoted(name)) for name in columns]
    return F.when(F.coalesce(*parts).isNotNull(), F.concat_ws(separator, *parts))


def resolve_column(df: DataFrame, name: str) -> StructField:
    """Returns the column of this name, which the table may spell in another case.

    Raises:
        ColumnError: If there is none, or more than one.
    """
    matches = [field for field in df.schema if _same(df, field.name, name)]
    if not matches:
        near = difflib.get_close_matches(name, df.columns, n=1)
        hint = f"Did you mean {listed(near)}?" if near else f"It has {listed(df.columns)}."
        raise ColumnError(f"The table has no column {name!r}. {hint}")
    if len(matches) > 1:
        raise ColumnError(f"The table has {len(matches)} columns {name!r}; rename one of them.")
    return matches[0]


def text_column(df: DataFrame, name: str) -> str:
    """Returns the name of a string column, as the table spells it.

    Raises:
        ColumnError: If there is no such column, or it holds something else than strings.
    """
    field = resolve_column(df, name)
    if not isinstance(field.dataType, StringType):
        raise ColumnError(
            f"Column {field.name!r} is {field.dataType.simpleString()}; embed needs a string "
            f"column. If it holds text, cast it: F.col({field.name!r}).cast('string')."
        )
    return str(field.name)


def check_free(df: DataFrame, names: list[str]) -> None:
    """Raises unless none of the names is taken by a column of the table, in any case.

    Raises:
        ColumnError: If one is; Delta and most catalogs do not tell cases apart.
    """
    taken = {column.lower(): column for column in df.columns}
    twice = next((name for name in names if [n.lower() for n in names].count(name.lower()) > 1), "")
    if twice:
        raise ColumnError(f"Column {twice!r} would be added twice; name each text column once.")
    for name in names:
        if name.lower() in taken:
            raise ColumnError(
                f"The table has a column {taken[name.lower()]!r} already, and embed adds "
                f"{name!r}; drop or rename it, or give column_prefix='...' for the added columns."
            )


def _same(df: DataFrame, one: str, other: str) -> bool:
    if df.sparkSession.conf.get("spark.sql.caseSensitive", "false") == "true":
        return one == other
    return one.lower() == other.lower()


def _request(plan: Plan, count: int, texts: Texts) -> tuple[Request, list[Column]]:
    """The request, and the columns that follow the texts: role and instruction by row."""
    role, instruction = texts.role, texts.instruction
    constant = role if isinstance(role, str) else None
    fixed = instruction if isinstance(instruction, str) else None
    extra = [each for each in (role, instruction) if isinstance(each, Column)]
    if not extra:
        prompts.prefix(plan.recipe.prompts, str(constant), fixed)  # wrong ones fail here
    elif constant is not None:
        prompts.check_role(constant)
    request = Request(
        plan=plan,
        texts=count,
        role=constant,
        instruction=fixed,
        has_instructions=isinstance(instruction, Column),
    )
    return request, [each.cast("string") for each in extra]
