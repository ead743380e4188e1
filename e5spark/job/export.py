"""What a table hands over to an index: the rows that have a vector, with ids that suit the index.

Each row is ``id``, ``vector`` and the columns that the user names. Between ``id`` and ``vector``
come ``source_id``, the table's own id, where the exported id is another one, and ``window``, where
long texts are split.
"""

import uuid
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from e5spark.errors import ColumnError, ConfigError, ConflictError, TransientError
from e5spark.job.config import JobConfig
from e5spark.job.export_ids import NAMESPACE, Ids, exported_id
from e5spark.job.hashes import kept_hash
from e5spark.job.run import open_output
from e5spark.job.status import status_columns
from e5spark.model.output_type import vector_bytes
from e5spark.names import RESERVED, listed, quoted
from e5spark.search.packing import decoded
from e5spark.spark.columns import resolve_column
from e5spark.tables.ledger.holder import last_holder
from e5spark.tables.ledger.layout import COMMITS, record_files
from e5spark.tables.ledger.manifest import Manifest, read_manifest
from e5spark.tables.sinks.delta_table import DeltaTable, delta_name
from e5spark.tables.sinks.protocol import Sink
from e5spark.tables.sources import batch
from e5spark.tables.storage.open import open_storage
from e5spark.tables.storage.protocol import Storage

ID, SOURCE_ID, WINDOW, VECTOR = "id", "source_id", "window", "vector"
VERSION, STATUS = f"{RESERVED}_version", f"{RESERVED}_status"
_NAMES = (ID, SOURCE_ID, WINDOW, VECTOR)
_FLOATS = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an index wants.

    Attributes:
        vector: The column of vectors; None if the job writes one.
        columns: Further columns of the table.
        ids: ``table``: the ids of the table; ``uuid``: UUIDs (version 5) that are made of them;
            ``int64``: whole numbers that are made of them, never negative.
        namespace: The UUID that tells the ids of one table from the ids of another.
    """

    vector: str | None = None
    columns: tuple[str, ...] = ()
    ids: Ids = "table"
    namespace: str = NAMESPACE

    def __post_init__(self) -> None:
        """Raises ConfigError if the namespace is no UUID."""
        try:
            _ = uuid.UUID(self.namespace)
        except ValueError as error:
            raise ConfigError(
                f"The namespace {self.namespace!r} is not a UUID such as {NAMESPACE!r}."
            ) from error


@dataclass(frozen=True, kw_only=True)
class Export:
    """A table as it is exported; nothing but schemas has been read.

    Attributes:
        table: All rows of the table: the columns of the export, ``STATUS``, and ``VERSION``, which
            differs if anything that is exported differs. The vector is as it is stored.
        sink: The table.
        storage: Its directory.
        manifest: What its vectors are.
        source_id: The table's column of ids.
        vector: The table's column of vectors.
        id_type: Spark's type of the exported id.
        run: The number of the table's last run.
    """

    table: DataFrame
    sink: Sink
    storage: Storage
    manifest: Manifest
    source_id: str
    vector: str
    id_type: str
    run: int

    @property
    def output_type(self) -> str:
        """Returns how the exported vectors are stored; float16 is exported as float32."""
        stored = str(self.manifest.parts["output_type"])
        return "float32" if stored in _FLOATS else stored

    @property
    def is_sound(self) -> Column:
        """Returns whether a row's stored vector is there and has the dim of the table."""
        output_type, dim = str(self.manifest.parts["output_type"]), self.manifest.dim
        is_list = isinstance(self.table.schema[VECTOR].dataType, T.ArrayType)
        size = F.size(VECTOR) if is_list else F.octet_length(VECTOR)
        needed = dim if is_list else vector_bytes(dim, output_type)  # type: ignore[arg-type]
        return F.coalesce(size == needed, F.lit(False))

    def finished(self, rows: DataFrame) -> DataFrame:
        """Returns rows of ``table`` in the columns of the export, their vectors decoded."""
        rows = rows.drop(STATUS, VERSION)
        if self.manifest.parts["output_type"] != "float16":
            return rows
        fields = [
            T.StructField(VECTOR, T.ArrayType(T.FloatType(), False)) if f.name == VECTOR else f
            for f in rows.schema
        ]
        return rows.mapInArrow(decoded, T.StructType(fields))

    def check_settled(self) -> None:
        """Checks that no run has begun since the table was opened; only Parquet needs it.

        Raises:
            TransientError: If one has.
        """
        if self.sink.kind == "parquet" and settled(self.storage, self.sink.name) != self.run:
            raise TransientError(
                f"Another run has changed {self.sink.name} while it was exported. Start the same "
                "command again."
            )


def rows(spark: SparkSession, config: JobConfig, options: ExportOptions | None = None) -> DataFrame:
    """Returns the rows of a job's output that an index takes: ``id``, ``vector`` and columns.

    A row is there if its status is ``ok``, so its vector is never null and always has the same
    number of components. A Delta table is read in the version that it has now. A Parquet table
    must not change before the last action on the result.

    Args:
        spark: The session.
        config: The job.
        options: What the index wants.

    Raises:
        ColumnError: If a column that is named is missing, or its name is taken.
        ConfigError: If the job has no ids, or writes several vectors and none is named.
        ConflictError: If e5spark has not written the table, or a run that was killed has left rows.
        TransientError: If a run is writing to the table.
    """
    export = open_export(spark, config, options or ExportOptions())
    return export.finished(export.table.where(F.col(STATUS) == "ok"))


def open_export(spark: SparkSession, config: JobConfig, options: ExportOptions) -> Export:
    """Returns the output of a job as it is exported; see ``rows``."""
    sink, _ = open_output(spark, config)
    storage = open_storage(spark, sink.location) if sink.location else None
    manifest = read_manifest(storage) if storage is not None else None
    if storage is None or manifest is None:
        raise ConflictError(
            f"{sink.name} is not a table that e5spark has written; run e5spark embed first."
        )
    if manifest.id is None:
        raise ConfigError(
            "The table has no ids, so an index could not say which row a result is. Set input.id "
            "or input.hash_id, and embed into a new output."
        )
    schema = T.StructType.fromJson(dict(manifest.schema))
    run, table = 0, None
    if sink.kind == "parquet":
        run, table = settled(storage, sink.name), sink.rows(schema)
    else:
        holder = last_holder(storage)
        run = holder.epoch if holder else 0
        table = _pinned(spark, sink)
    vector, status = _vector(schema, options.vector)
    id = resolve_column(table, manifest.id)
    windows = manifest.parts["recipe"]["long_text"] == "split"
    prefix = vector.removesuffix("embedding")
    key = exported_id(
        id,
        window=f"{prefix}{WINDOW}" if windows else None,
        ids=options.ids,
        namespace=options.namespace,
    )
    columns = {ID: key}
    if windows or options.ids != "table":
        columns[SOURCE_ID] = F.col(quoted(id.name))
    if windows:
        columns[WINDOW] = F.col(quoted(f"{prefix}{WINDOW}"))
    columns[VECTOR] = F.col(quoted(vector))
    named = _named(table, options.columns)
    # Of one job, so of one fingerprint: a vector is a function of what the content hash covers.
    hash = resolve_column(table, f"{config.embed.column_prefix}content_hash").name
    selected = table.select(
        *(column.alias(name) for name, column in columns.items()),
        *(F.col(quoted(name)) for name in named),
        F.col(quoted(status)).alias(STATUS),
        kept_hash(table, [hash, *named]).alias(VERSION),
    )
    return Export(
        table=selected,
        sink=sink,
        storage=storage,
        manifest=manifest,
        source_id=id.name,
        vector=vector,
        id_type=selected.schema[ID].dataType.simpleString(),
        run=run,
    )


def settled(storage: Storage, name: str) -> int:
    """Returns the number of a table's last run, once it is certain that no run is writing.

    Args:
        storage: The table's directory.
        name: The table, as the user names it.

    Raises:
        TransientError: If a run may be writing: readers may see old and new rows together.
        ConflictError: If a run that was killed has left rows that are recorded and not visible.
    """
    holder = last_holder(storage)
    if holder is not None and not holder.is_released and holder.is_alive is not False:
        raise TransientError(
            f"{name} may be changing. {holder.sentence} Export it when the run has ended; if the "
            "run was lost, finish it with e5spark embed, or see e5spark status."
        )
    if record_files(storage, COMMITS):
        raise ConflictError(
            f"A run of {name} has ended before its rows were visible. Start e5spark embed with the "
            "same job file, which finishes them, then export."
        )
    return holder.epoch if holder else 0


def _pinned(spark: SparkSession, sink: Sink) -> DataFrame:
    """Returns the rows of a Delta table in its current version, whatever is written meanwhile."""
    version = DeltaTable(spark, delta_name(sink.location)).version()
    options = {"versionAsOf": str(version)}
    return batch.read_path(spark, sink.location, format="delta", options=options)


def _vector(schema: T.StructType, name: str | None) -> tuple[str, str]:
    """Returns the column of vectors that is exported, and its column of statuses."""
    vectors = status_columns(schema)
    if name is None and len(vectors) > 1:
        raise ConfigError(
            f"The job writes {len(vectors)} vectors for each row; choose one with --vector: "
            f"{listed(list(vectors))}."
        )
    if name is not None and name not in vectors:
        raise ConfigError(f"The table has no vectors {name!r}; it has {listed(list(vectors))}.")
    vector = next(iter(vectors)) if name is None else name
    return vector, vectors[vector]


def _named(table: DataFrame, columns: tuple[str, ...]) -> list[str]:
    names = [resolve_column(table, name).name for name in columns]
    lowered = [name.lower() for name in names]
    taken = [name for name in names if name.lower() in _NAMES or lowered.count(name.lower()) > 1]
    if taken:
        raise ColumnError(
            f"The columns {listed(taken)} cannot be exported under their names: an export has "
            f"{listed(_NAMES)} of its own, and each other column once. {SOURCE_ID!r} is the "
            "table's id where 'id' is not."
        )
    return names
