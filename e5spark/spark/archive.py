"""Models that Spark ships: where it has unpacked what a spec calls ``archive:name``."""

from dataclasses import replace
from pathlib import Path

from pyspark import TaskContext

from e5spark.errors import ModelError
from e5spark.model.checkpoint import ARCHIVE
from e5spark.model.spec import ModelSpec


def localized(spec: ModelSpec) -> ModelSpec:
    """Returns the spec with each ``archive:name`` replaced by where Spark unpacked it here.

    Raises:
        ModelError: If Spark unpacked no such archive.
    """
    tokenizer = None if spec.tokenizer is None else _unpacked(spec.tokenizer)
    return replace(spec, model=_unpacked(spec.model), tokenizer=tokenizer)


def _unpacked(model: str) -> str:
    if not model.startswith(ARCHIVE):
        return model
    name = model.removeprefix(ARCHIVE)
    # YARN and Kubernetes unpack into the working directory, local mode only where SparkFiles says.
    places = [Path(name).absolute(), *_spark_files(name)]
    for place in places:
        if place.is_dir():
            return str(place)
    raise ModelError(
        f"There is no archive {name!r} here (looked at {', '.join(map(str, places))}); ship it: "
        f"spark-submit --archives model.tar.gz#{name}."
    )


def _spark_files(name: str) -> list[Path]:
    from pyspark import SparkContext, SparkFiles

    # Without a context, as in a Connect client, there are no files either.
    on_worker = TaskContext.get() is not None
    if not on_worker and SparkContext._active_spark_context is None:
        return []
    return [Path(SparkFiles.get(name))]
