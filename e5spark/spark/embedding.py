"""``embed`` and ``embedding_udf``: columns are checked and the model is planned on the driver.

Nothing runs before an action.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from e5spark.errors import OptionError
from e5spark.model import prompts
from e5spark.model.fingerprint import Weights
from e5spark.model.resolve import Plan, make_plan, with_stored_identity
from e5spark.model.spec import ModelOptions, ModelSpec, Precision, model_spec
from e5spark.names import RESERVED, quoted
from e5spark.spark.archive import localized
from e5spark.spark.columns import (
    TextColumns,
    check_free,
    check_instruction_type,
    check_model_type,
    check_reserved,
    check_role_type,
    figure_names,
    result_names,
    text_column,
)
from e5spark.spark.device import default_precision
from e5spark.spark.results import provenance
from e5spark.spark.udf import Udf, result_udf, vector_udf
from e5spark.spark.worker import Request, RequestOptions

_STRUCT = RESERVED
_WINDOW = f"{RESERVED}_window"


def embed(
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
    """Returns the rows of ``df`` with the vector of a text column and the status of each text.

    Nothing runs before an action. All columns pass through, and these are added:

    - ``embedding``: ``array<float>`` of unit length, null unless ``status`` is ``ok``. With
      another ``output_type`` it is ``array<tinyint>`` (int8) or ``binary`` (all others). The
      column's metadata says which vectors they are, unless only the executors have the checkpoint.
    - ``n_tokens``: int, tokens before truncation, including prompt and special tokens; 0 where
      there is no text, an estimate beyond 65,536 characters.
    - ``truncated``: boolean, whether tokens were cut.
    - ``already_prompted``: boolean, whether the text already began with a prompt.
    - ``status``: ``ok``, ``null_text``, ``empty_text`` (white space only) or ``error``.
    - ``error``: string, the reason where ``status`` is ``error``.

    With ``long_text="split"`` a long text becomes several rows, which also have the columns
    ``window`` (from 0), ``start`` and ``end`` (characters of the text). With several text columns
    each gets its own six columns, named ``title_embedding`` and so on.

    Sorting the result makes Spark run the model twice, because it samples the rows first: write the
    result, then sort the written table. To look at a few rows, limit the table first:
    ``embed(docs.limit(3), ...).show()`` runs three rows through the model, ``embed(docs,
    ...).show(3)`` hundreds.

    Args:
        df: Any DataFrame, classic or Spark Connect.
        text: The name of the string column to embed, or several names. Texts come without
            prompts, which ``embed`` adds.
        role: ``query`` or ``passage``, or a column that holds one of them in each row.
        model: A checkpoint's name on the hub or a directory; see ``e5spark.model.spec.ModelSpec``.
        instruction: The task of a query, for instruct checkpoints only; or a column of tasks.
        join: The separator that joins several text columns into one text; nulls are left out.
        column_prefix: The prefix of the added columns' names.
        **options: The other keywords of ``e5spark.model.spec.ModelSpec``.

    Raises:
        ColumnError: If a text column is missing or does not hold strings, an added name is taken,
            or a column has a reserved name.
        ModelError: If the checkpoint is unknown, absent or incomplete.
        OptionError: If an option is wrong.
    """
    check_model_type(model)
    texts = TextColumns(
        text=text, role=role, instruction=instruction, join=join, column_prefix=column_prefix
    )
    check_reserved(df)
    plan = plan_model(model_spec(model, options), spark=df.sparkSession)
    return embed_plan(df, plan, texts)


def embedding_udf(
    *,
    role: str,
    model: str,
    instruction: str | None = None,
    **options: Unpack[ModelOptions],
) -> Udf:
    """Returns a UDF from a string column to its vectors: ``array<float>``, null without a text.

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
    check_model_type(model)
    check_role_type(role)
    check_instruction_type(instruction)
    if not isinstance(role, str) or not isinstance(instruction, str | None):
        raise OptionError(
            "A UDF has one role and one instruction for all rows; to take them from columns, use "
            "embed."
        )
    plan = plan_model(model_spec(model, options), spark=SparkSession.getActiveSession())
    if plan.recipe.long_text == "split":
        raise OptionError("A UDF returns one vector per row; for long_text='split', use embed.")
    request, _ = _request(plan, 1, role, instruction)
    return vector_udf(request)


def plan_model(
    spec: ModelSpec,
    *,
    spark: SparkSession | None = None,
    required: bool = False,
    stored: Precision | None = None,
) -> Plan:
    """Returns the model as this driver resolves it; see ``make_plan``.

    Args:
        spec: The model as the user described it.
        spark: The session that runs it, whose tasks may have GPUs.
        required: Whether the files must be on this machine.
        stored: The precision of the table's vectors, which ``auto`` then means.
    """
    auto = stored or default_precision(spark, spec)
    return make_plan(spec, localized(spec), required=required, auto=auto)


def plan_for_table(plan: Plan, stored: Weights) -> Plan:
    """Returns the plan for a table whose fingerprint has this identity of weights.

    See ``with_stored_identity``.
    """
    return with_stored_identity(plan, localized(plan.spec), stored)


def embed_plan(
    df: DataFrame,
    plan: Plan,
    texts: TextColumns,
    **options: Unpack[RequestOptions],
) -> DataFrame:
    """Returns the same DataFrame as ``embed``, for a model that is already resolved.

    Args:
        df: The table.
        plan: The model.
        texts: The text columns.
        **options: See ``Request``; with ``figures`` the columns of ``figure_names`` are added at
            the end.

    Raises:
        ColumnError: If a text column is missing or does not hold strings, or an added name is
            taken.
        OptionError: If the role, the instruction or their combination is wrong.
    """
    request, arguments = udf_call(df, plan, texts)
    request = replace(request, **options)
    names = result_names(plan, texts)
    check_free(df, [name for columns in names for name in columns.values()])
    if request.texts > 1 and plan.recipe.long_text == "split":
        raise OptionError(
            "long_text='split' takes one text column; make one with join, or embed one column at a "
            "time."
        )
    result = df.select("*", result_udf(request)(*arguments).alias(_STRUCT))
    if plan.recipe.long_text == "split":
        result = result.select("*", F.explode(F.col(_STRUCT)["t0"]).alias(_WINDOW)).drop(_STRUCT)
        structs = [F.col(_WINDOW)]
    else:
        structs = [F.col(_STRUCT)[f"t{number}"] for number in range(request.texts)]
    facts = provenance(plan) if plan.weights is not None else {}
    metadata = {f"e5spark.{key}": value for key, value in facts.items()}
    added = [
        struct[field].alias(name, metadata=metadata if field == "embedding" else {})
        for group in ([names, figure_names(texts)] if request.figures else [names])
        for struct, columns in zip(structs, group, strict=True)
        for field, name in columns.items()
    ]
    return result.select("*", *added).drop(_STRUCT, _WINDOW)


def udf_call(df: DataFrame, plan: Plan, texts: TextColumns) -> tuple[Request, list[Column]]:
    """Returns the UDF's request and its arguments: the texts, then role and instruction by row.

    Raises:
        ColumnError: If a text column is missing or does not hold strings.
        OptionError: If the role, the instruction or their combination is wrong.
    """
    columns = [text_column(df, name) for name in texts.names]
    # As bytes, because Spark's strings can hold invalid UTF-8, which would kill the task.
    arguments = [F.col(quoted(name)).cast("binary") for name in columns]
    if texts.join is not None:
        arguments = [_join(columns, texts.join).cast("binary")]
    request, by_row = _request(plan, len(arguments), texts.role, texts.instruction)
    return request, [*arguments, *by_row]


def _join(columns: Sequence[str], separator: str) -> Column:
    """The columns as one text; null only where all of them are."""
    parts = [F.col(quoted(name)) for name in columns]
    return F.when(F.coalesce(*parts).isNotNull(), F.concat_ws(separator, *parts))


def _request(
    plan: Plan, texts: int, role: str | Column, instruction: str | Column | None
) -> tuple[Request, list[Column]]:
    """The request, and the columns that follow the texts: role and instruction by row."""
    fixed_role = role if isinstance(role, str) else None
    fixed_instruction = instruction if isinstance(instruction, str) else None
    by_row = [value for value in (role, instruction) if isinstance(value, Column)]
    if fixed_role is not None and not by_row:
        prompts.prefix(
            plan.recipe.prompts, fixed_role, fixed_instruction
        )  # a wrong role fails here
    elif fixed_role is not None:
        prompts.check_role(fixed_role)
    request = Request(
        plan=plan,
        texts=texts,
        role=fixed_role,
        instruction=fixed_instruction,
        has_instructions=isinstance(instruction, Column),
    )
    return request, [column.cast("string") for column in by_row]
