"""The driver's side: columns are checked and the plan is made; nothing runs before an action."""

import difflib
from dataclasses import replace
from typing import Unpack

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField

from e5spark import prompts
from e5spark.checkpoint import check_published, hash_files, is_directory, locate, pin
from e5spark.errors import ColumnError, ModelError
from e5spark.models import CHECKPOINTS
from e5spark.recipe import describe
from e5spark.spark.udf import RESULT, Udf, result_udf, vector_udf
from e5spark.spark.worker import Plan, Request, directory_of
from e5spark.spec import ModelOptions, ModelSpec, model_spec

_STRUCT = "__e5spark"


def embed(
    df: DataFrame,
    *,
    text: str,
    role: str | Column,
    model: str,
    instruction: str | Column | None = None,
    prefix: str = "",
    **options: Unpack[ModelOptions],
) -> DataFrame:
    """Returns the rows of ``df`` with the vector of a text column, and what became of each text.

    Nothing runs before an action. All columns pass through; the columns added are

    - ``embedding``: ``array<float>``, unit length; null unless ``status`` is ``ok``;
    - ``n_tokens``: int, tokens before truncation, prompt and special tokens included; 0 where
      there was no text;
    - ``truncated``: boolean, whether tokens were cut;
    - ``status``: ``ok``, ``null_text``, ``empty_text`` (white space only) or ``error``;
    - ``error``: string, why, where ``status`` is ``error``.

    A sort of the result makes Spark run the model twice, because it samples the rows first: write
    the result, then sort what was written.

    Args:
        df: Any DataFrame, classic or Spark Connect.
        text: The string column to embed, without prompts: they are added here.
        role: ``query`` or ``passage``, or a column that holds one of them in each row.
        model: A checkpoint's name on the hub or a directory; see ``e5spark.spec.ModelSpec``.
        instruction: The task of a query, for instruct checkpoints only; or a column of tasks.
        prefix: Put before the names of the added columns.
        **options: The other keywords of ``e5spark.spec.ModelSpec``.

    Raises:
        ColumnError: If the text column is missing or no string, or an added name is taken.
        ModelError: If the checkpoint is unknown, absent or incomplete.
        OptionError: If an option is wrong.
    """
    plan = plan_model(model_spec(model, options))
    return embed_plan(df, plan, text=text, role=role, instruction=instruction, prefix=prefix)


def embed_plan(
    df: DataFrame,
    plan: Plan,
    *,
    text: str,
    role: str | Column,
    instruction: str | Column | None = None,
    prefix: str = "",
) -> DataFrame:
    """Returns what ``embed`` returns, for a model that is resolved already.

    Raises:
        ColumnError: If the text column is missing or no string, or an added name is taken.
        OptionError: If the role or the instruction is wrong.
    """
    column = text_column(df, text)
    request, extra = _request(plan, role, instruction)
    added = [field.name for field in RESULT.fields]
    check_free(df, [prefix + name for name in added])
    # As bytes, because Spark's strings can hold invalid UTF-8, which would kill the task.
    texts = F.col(quoted(column)).cast("binary")
    return (
        df.select("*", result_udf(request)(texts, *extra).alias(_STRUCT))
        .select("*", *(F.col(_STRUCT)[name].alias(prefix + name) for name in added))
        .drop(_STRUCT)
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
        model: A checkpoint's name on the hub or a directory; see ``e5spark.spec.ModelSpec``.
        instruction: The task of a query, for instruct checkpoints only.
        **options: The other keywords of ``e5spark.spec.ModelSpec``.

    Raises:
        ModelError: If the checkpoint is unknown, absent or incomplete.
        OptionError: If an option is wrong.
    """
    request, _ = _request(plan_model(model_spec(model, options)), role, instruction)
    return vector_udf(request)


def plan_model(spec: ModelSpec) -> Plan:
    """Returns the model as this driver resolves it; the driver reads and hashes its own copy.

    A known checkpoint that the driver does not have is left to the executors, unless the driver
    may download it.

    Raises:
        ModelError: If the checkpoint is unknown, absent or incomplete.
        OptionError: If an option contradicts it.
    """
    local = replace(spec, model=directory_of(spec.model))
    try:
        files = locate(local)
    except ModelError:
        if is_directory(spec.model) or spec.download or spec.model not in CHECKPOINTS:
            raise
        return Plan(spec=spec, recipe=describe(spec), weights=None)
    check_published(local, files)
    return Plan(
        spec=pin(spec, files), recipe=describe(local, files.model), weights=hash_files(files)
    )


def resolve_column(df: DataFrame, name: str) -> StructField:
    """Returns the column of this name, which the table may spell in another case.

    Raises:
        ColumnError: If there is none, or more than one.
    """
    matches = [field for field in df.schema if _same(df, field.name, name)]
    if not matches:
        near = difflib.get_close_matches(name, df.columns, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(df.columns)}."
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
    for name in names:
        if name.lower() in taken:
            raise ColumnError(
                f"The table has a column {taken[name.lower()]!r} already, and embed adds "
                f"{name!r}; drop or rename it, or give prefix='...' for the added columns."
            )


def quoted(name: str) -> str:
    """Returns a column name that Spark does not take apart at its dots."""
    return "`" + name.replace("`", "``") + "`"


def _same(df: DataFrame, one: str, other: str) -> bool:
    if df.sparkSession.conf.get("spark.sql.caseSensitive", "false") == "true":
        return one == other
    return one.lower() == other.lower()


def _request(
    plan: Plan, role: str | Column, instruction: str | Column | None
) -> tuple[Request, list[Column]]:
    """The request, and the columns that follow the texts: role and instruction by row."""
    constant = role if isinstance(role, str) else None
    extra = [each for each in (role, instruction) if isinstance(each, Column)]
    fixed = instruction if isinstance(instruction, str) else None
    if not extra:
        prompts.prefix(plan.recipe.prompts, str(constant), fixed)  # wrong ones fail here
    elif constant is not None:
        prompts.check_role(constant)
    request = Request(
        plan=plan,
        texts=1,
        role=constant,
        instruction=fixed,
        has_instructions=isinstance(instruction, Column),
    )
    return request, [each.cast("string") for each in extra]
