"""``E5Embedder``: ``embed`` as a stage of a Spark ML pipeline."""

import json
from typing import Any, Self, Unpack

from pyspark.ml import Transformer
from pyspark.ml.functions import array_to_vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasHandleInvalid, HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from e5spark.errors import OptionError
from e5spark.model.prompts import check_role
from e5spark.model.resolve import Plan
from e5spark.model.spec import ModelOptions, model_spec
from e5spark.names import RESERVED
from e5spark.spark.columns import TextColumns, check_free, check_reserved
from e5spark.spark.embedding import embed_plan, plan_model

_HANDLE_INVALID = ("error", "skip", "keep")
_PREFIX = f"{RESERVED}_"


def _role(value: object) -> str:
    role = TypeConverters.toString(value)
    check_role(role)
    return role


def _handle_invalid(value: object) -> str:
    if value not in _HANDLE_INVALID:
        raise OptionError(
            f"handleInvalid is {value!r}; it must be one of {', '.join(_HANDLE_INVALID)}."
        )
    return str(value)


def _options(value: object) -> dict[str, Any]:
    """A copy of the options, which can be saved as JSON."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no dict")  # Params says which param it is
    options = json.loads(json.dumps(value))
    spec = model_spec("any", options)
    if spec.long_text == "split":
        raise OptionError(
            "E5Embedder returns one vector per row; for long_text='split', use embed."
        )
    return dict(options)


class E5Embedder(
    Transformer,
    HasInputCol,
    HasOutputCol,
    HasHandleInvalid,
    DefaultParamsReadable["E5Embedder"],
    DefaultParamsWritable,
):
    """Adds the vector of a text column, as a stage of a Spark ML pipeline.

    ``transform`` calls ``embed`` and adds the vector alone, in ``outputCol``: a dense vector, which
    any stage takes. The column's metadata has its size, as Spark ML writes it, and the fingerprint
    of the vectors. Nothing runs before an action. The model runs as often as the result is read,
    and estimators read it several times: fit them on a cached or written result.

    ``save`` and ``load`` keep the params, alone or in a pipeline: the model's name or directory,
    and not its weights.

    Args:
        inputCol: The name of the string column to embed. Its texts come without prompts.
        outputCol: The name of the column to add.
        model: A checkpoint's name on the hub or a directory; see ``e5spark.model.spec.ModelSpec``.
        role: ``query`` or ``passage``.
        instruction: The task of a query, for instruct checkpoints only.
        asVector: Whether ``outputCol`` has Spark ML's dense vectors, of doubles (the default), or
            arrays and bytes as ``embed`` returns them for each ``output_type``.
        handleInvalid: How to handle a row whose text is null, empty or cannot be embedded:
            ``error`` (the default) ends the query, ``skip`` drops the row, ``keep`` gives it null
            for a vector.
        **options: The other keywords of ``e5spark.model.spec.ModelSpec``, which together are the
            param ``options``.

    Raises:
        OptionError: If a param is wrong; at construction, and in ``transform`` if one is missing or
            does not suit the checkpoint.
    """

    # What a saved pipeline names: a public module, whatever becomes of this file.
    __module__ = "e5spark.spark"

    model: "Param[str]" = Param(
        Params._dummy(),
        "model",
        "a checkpoint's name on the hub or a directory",
        TypeConverters.toString,
    )
    role: "Param[str]" = Param(Params._dummy(), "role", "query or passage", _role)
    instruction: "Param[str]" = Param(
        Params._dummy(),
        "instruction",
        "the task of a query, for instruct checkpoints only",
        TypeConverters.toString,
    )
    asVector: "Param[bool]" = Param(
        Params._dummy(),
        "asVector",
        "whether outputCol has dense vectors, or arrays and bytes as embed returns them",
        TypeConverters.toBoolean,
    )
    handleInvalid: "Param[str]" = Param(
        Params._dummy(),
        "handleInvalid",
        "how to handle a row whose text has no vector: error ends the query, skip drops the row, "
        "keep gives it null",
        _handle_invalid,
    )
    options: "Param[dict[str, Any]]" = Param(
        Params._dummy(),
        "options",
        "the other keywords of e5spark.model.spec.ModelSpec",
        _options,
    )

    def __init__(
        self,
        *,
        inputCol: str | None = None,
        outputCol: str | None = None,
        model: str | None = None,
        role: str | None = None,
        instruction: str | None = None,
        asVector: bool | None = None,
        handleInvalid: str | None = None,
        **options: Unpack[ModelOptions],
    ) -> None:
        super().__init__()
        self._setDefault(asVector=True, handleInvalid="error", options={})
        params = {
            "inputCol": inputCol,
            "outputCol": outputCol,
            "model": model,
            "role": role,
            "instruction": instruction,
            "asVector": asVector,
            "handleInvalid": handleInvalid,
            "options": options or None,
        }
        self._set(**{name: value for name, value in params.items() if value is not None})
        self._check_output()

    def setInputCol(self, value: str) -> Self:
        """Sets the name of the string column to embed."""
        return self._set(inputCol=value)

    def setOutputCol(self, value: str) -> Self:
        """Sets the name of the column to add."""
        return self._set(outputCol=value)

    def setModel(self, value: str) -> Self:
        """Sets the checkpoint: a name on the hub or a directory."""
        return self._set(model=value)

    def getModel(self) -> str:
        """Returns the checkpoint."""
        return self.getOrDefault(self.model)

    def setRole(self, value: str) -> Self:
        """Sets the role: ``query`` or ``passage``."""
        return self._set(role=value)

    def getRole(self) -> str:
        """Returns the role."""
        return self.getOrDefault(self.role)

    def setInstruction(self, value: str) -> Self:
        """Sets the task of a query."""
        return self._set(instruction=value)

    def getInstruction(self) -> str:
        """Returns the task of a query."""
        return self.getOrDefault(self.instruction)

    def setAsVector(self, value: bool) -> Self:
        """Sets whether ``outputCol`` has dense vectors."""
        return self._set(asVector=value)

    def getAsVector(self) -> bool:
        """Returns whether ``outputCol`` has dense vectors."""
        return self.getOrDefault(self.asVector)

    def setHandleInvalid(self, value: str) -> Self:
        """Sets how to handle a row whose text has no vector: ``error``, ``skip`` or ``keep``."""
        return self._set(handleInvalid=value)

    def setOptions(self, **options: Unpack[ModelOptions]) -> Self:
        """Sets the other keywords of ``ModelSpec``, in place of those that were set before."""
        return self._set(options=options)

    def getOptions(self) -> dict[str, Any]:
        """Returns the other keywords of ``ModelSpec``."""
        return self.getOrDefault(self.options)

    def transformSchema(self, schema: StructType) -> StructType:
        """Returns the columns that ``transform`` returns for a table with these columns.

        Raises:
            ColumnError: If ``inputCol`` is missing or does not hold strings, or ``outputCol`` is
                taken.
            ModelError: If the checkpoint is unknown, absent or incomplete.
            OptionError: If a param is missing or wrong.
        """
        return self.transform(SparkSession.active().createDataFrame([], schema)).schema

    def _transform(self, dataset: DataFrame) -> DataFrame:
        check_reserved(dataset)
        name = self.getOutputCol()
        check_free(dataset, [name], remedy="give outputCol another name")
        plan, texts = self._plan(dataset.sparkSession)
        rows = embed_plan(dataset, plan, texts)
        added = rows.columns[len(dataset.columns) :]
        vector, status = F.col(f"{_PREFIX}embedding"), F.col(f"{_PREFIX}status")
        metadata = rows.schema[f"{_PREFIX}embedding"].metadata
        if self.getAsVector():
            vector = array_to_vector(vector)
            # Otherwise stages that need the size read a row, and the model runs for that too.
            metadata = {**metadata, "ml_attr": {"num_attrs": plan.recipe.dim}}
        vector = F.when(status == "ok", vector)
        if self.getHandleInvalid() == "skip":
            rows = rows.where(status == "ok")
        elif self.getHandleInvalid() == "error":
            vector = vector.otherwise(F.raise_error(_message(self.getInputCol(), status)))
        return rows.select("*", vector.alias(name, metadata=metadata)).drop(*added)

    def _plan(self, spark: SparkSession) -> tuple[Plan, TextColumns]:
        for name in ("inputCol", "model", "role"):
            if not self.isDefined(name):
                raise OptionError(
                    f"E5Embedder has no {name}; set it, as in E5Embedder({name}=...)."
                )
        self._check_output()
        _handle_invalid(self.getHandleInvalid())  # copies with other params have not checked them
        texts = TextColumns(
            text=self.getInputCol(),
            role=self.getRole(),
            instruction=self.getInstruction() if self.isDefined("instruction") else None,
            column_prefix=_PREFIX,
        )
        return plan_model(
            model_spec(self.getModel(), _options(self.getOptions())), spark=spark
        ), texts

    def _check_output(self) -> None:
        output_type = self.getOptions().get("output_type", "float32")
        if self.getAsVector() and output_type != "float32":
            raise OptionError(
                f"output_type is {output_type!r}, and dense vectors have doubles. Leave "
                "output_type out, or set asVector=False."
            )


def _message(column: str, status: Column) -> Column:
    return F.concat(
        F.lit(f"A text of the column {column!r} has no vector; its status is "),
        status,
        F.lit(". Set handleInvalid to 'skip' or 'keep', or embed the table with embed to see why."),
    )
