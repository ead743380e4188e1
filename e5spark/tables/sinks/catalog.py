"""Catalog tables: where they are, and which of them e5spark created."""

from collections.abc import Mapping

from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, DataType, MapType, StructType

from e5spark.names import quoted
from e5spark.tables.spark_errors import EXISTS, condition, spark_errors

FINGERPRINT = "e5spark.fingerprint"


def location(spark: SparkSession, name: str) -> str:
    """Returns the directory of a catalog table; empty if there is no such table."""
    if not spark.catalog.tableExists(name):
        return ""
    rows = iter(spark.sql(f"DESCRIBE TABLE EXTENDED {name}").collect())
    # The columns come first, and one of them may be called Location.
    next((row for row in rows if row["col_name"] == "# Detailed Table Information"), None)
    return next((str(row["data_type"]) for row in rows if row["col_name"] == "Location"), "")


def is_from_e5spark(spark: SparkSession, name: str) -> bool:
    """Returns whether e5spark created a catalog table that exists."""
    rows = spark.sql(f"SHOW TBLPROPERTIES {name}").collect()
    return any(row["key"] == FINGERPRINT for row in rows)


def create(
    spark: SparkSession,
    name: str,
    schema: StructType,
    provider: str,
    provenance: Mapping[str, str],
) -> None:
    """Creates a catalog table without rows, unless another run has just created it.

    Raises:
        InputError: If the catalog refuses it.
    """
    writer = spark.createDataFrame([], schema).limit(0).writeTo(name).using(provider)
    for key, value in provenance.items():
        writer = writer.tableProperty(key, value)
    with spark_errors(f"The output table {name} cannot be created"):
        try:
            writer.create()
        except Exception as error:  # py4j has errors that PySpark does not wrap
            if condition(error) not in EXISTS:
                raise


def sql_type(kind: DataType) -> str:
    """Returns a type in SQL, with the names of nested fields quoted."""
    if isinstance(kind, StructType):
        fields = (f"{quoted(field.name)}: {sql_type(field.dataType)}" for field in kind)
        return f"struct<{', '.join(fields)}>"
    if isinstance(kind, ArrayType):
        return f"array<{sql_type(kind.elementType)}>"
    if isinstance(kind, MapType):
        return f"map<{sql_type(kind.keyType)}, {sql_type(kind.valueType)}>"
    return kind.simpleString()


def add_columns(spark: SparkSession, name: str, schema: StructType) -> None:
    """Adds the columns of a schema that a catalog table lacks.

    Raises:
        InputError: If the catalog refuses it.
    """
    with spark_errors(f"The output table {name} cannot be changed"):
        present = {column.lower() for column in spark.table(name).columns}
        added = [
            f"{quoted(field.name)} {sql_type(field.dataType)}"
            for field in schema
            if field.name.lower() not in present
        ]
        if added:
            spark.sql(f"ALTER TABLE {name} ADD COLUMNS ({', '.join(added)})").collect()
