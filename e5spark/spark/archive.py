"""Models that Spark ships in archives, which a spec names ``archive:name``."""

from dataclasses import replace
from pathlib import Path

from pyspark import TaskContext

from e5spark.errors import ModelError
from e5spark.model.checkpoint import ARCHIVE
from e5spark.model.spec import ModelSpec


def localized(spec: ModelSpec) -> ModelSpec:
    """Returns the spec with the directory on this machine in place of each ``archive:name``.

    Raises:
        ModelError: If Spark has not unpacked such an archive on this machine.
    """
    tokenizer = None if spec.tokenizer is None else _unpacked(spec.tokenizer)
    return replace(spec, model=_unpacked(spec.model), tokenizer=tokenizer)


def _unpacked(model: str) -> str:
    if not model.startswith(ARCHIVE):
        return model
    name = model.removeprefix(ARCHIVE)
    # YARN and Kubernetes unpack into the working directory, local mode into SparkFiles only.
    paths = [Path(name).absolute(), *_spark_files(name)]
    for path in paths:
        if path.is_dir():
            return str(path)
    raise ModelError(
        f"There is no archive {name!r} on this machine (searched: {', '.join(map(str, paths))}); "
        f"ship it: spark-submit --archives model.tar.gz#{name}."
    )


def _spark_files(name: str) -> list[Path]:
    from pyspark import SparkContext, SparkFiles

    # Without a SparkContext, as in a Connect client, there are no files either.
    on_worker = TaskContext.get() is not None
    if not on_worker and SparkContext._active_spark_context is None:
        return []
    return [Path(SparkFiles.get(name))]
