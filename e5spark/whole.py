"""A new table in one write: nothing is kept of it, so it can be neither resumed nor updated."""

from pyspark.sql import Observation, SparkSession
from pyspark.sql import functions as F

from e5spark import account
from e5spark.config import JobConfig
from e5spark.intake import Intake, embedded
from e5spark.plan import Plan
from e5spark.spark.embed import result_names
from e5spark.tables import sink


def check_output(spark: SparkSession, config: JobConfig) -> None:
    """Raises unless nothing is there.

    Raises:
        ConflictError: If something is.
        InputError: If it lies inside the input.
    """
    if config.output.table:
        sink.check_table_free(spark, config.output.table)
        return
    if config.input.path:
        sink.check_apart(config.input.path, config.output.path)
    sink.check_path_free(spark, config.output.path)


def write(config: JobConfig, plan: Plan, intake: Intake) -> dict[str, int]:
    """Embeds all rows and writes them; returns what was counted. Raises what ``sink`` does."""
    before, after = Observation("e5spark_in"), Observation("e5spark_out")
    names = result_names(plan, intake.texts)
    rows = intake.rows.observe(before, F.count(F.lit(1)).alias("rows_in"))
    if config.run.partitions:
        rows = rows.repartition(config.run.partitions)
    vectors = embedded(rows, plan, intake).observe(after, *account.counts(plan, names))
    output = config.output
    if output.table:
        sink.write_table(vectors, output.table, format=output.format, options=output.options)
    else:
        sink.write_path(vectors, output.path, format=output.format, options=output.options)
    found = {name: int(value or 0) for name, value in {**before.get, **after.get}.items()}
    account.check_chunk(found, rows=found["rows_in"], texts=len(names), staged=found["rows"])
    return {**found, "skipped": 0, "deleted": 0, "recovered": 0}
