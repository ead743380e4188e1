"""Delta Lake: the jars and settings that a Spark session needs for it."""

from pyspark import __version__ as spark_version

from e5spark.errors import InputError

# One build for each minor release of Spark. The name without a suffix is for the newest 4.x only.
_COORDINATES = {
    "3.5": "io.delta:delta-spark_2.12:3.3.2",
    "4.0": "io.delta:delta-spark_4.0_2.13:4.4.0",
    "4.1": "io.delta:delta-spark_4.1_2.13:4.4.0",
    "4.2": "io.delta:delta-spark_4.2_2.13:4.4.0",
}
_SETTINGS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
# On one machine. Delta reads its log in 50 tasks by default, which run one after the other where
# one worker has all cores: the first look at a table of three rows takes 7 s in them.
ONE_MACHINE = {"spark.databricks.delta.snapshotPartitions": "2"}


def session_settings() -> dict[str, str]:
    """Returns the settings of a session that reads and writes Delta with the running PySpark.

    Raises:
        InputError: If no Delta release is built for this Spark.
    """
    minor = ".".join(spark_version.split(".")[:2])
    if minor not in _COORDINATES:
        raise InputError(
            f"e5spark knows no Delta release for Spark {spark_version}, only for "
            f"{', '.join(_COORDINATES)}. Use one of these, or an input and output without Delta."
        )
    return {"spark.jars.packages": _COORDINATES[minor], **_SETTINGS}


def submit_flags() -> str:
    """Returns the options of spark-submit that give a session Delta."""
    settings = session_settings()
    packages = settings.pop("spark.jars.packages")
    confs = [f"--conf {key}={value}" for key, value in settings.items()]
    return " ".join([f"--packages {packages}", *confs])
