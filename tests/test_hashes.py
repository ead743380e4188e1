"""The content hash, which others can compute, and the hash of kept columns."""

import hashlib
from itertools import product

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from e5spark.job.hashes import content_hash, kept_hash
from tests.frames import from_arrow, to_arrow

PARTS = (None, b"", b"-", b"a", b"1:a", b"ab", b"\xff\xfe", "Ж図".encode())


def test_a_content_hash_is_the_sha256_of_netstrings_of_the_raw_bytes(spark: SparkSession) -> None:
    lists = list(product(PARTS, repeat=2))
    columns = [pa.array([parts[number] for parts in lists], pa.binary()) for number in range(2)]
    table = pa.table(columns, names=["a", "b"])
    # A string of these bytes, valid UTF-8 or not.
    df = from_arrow(spark, table).select(F.col("a").cast("string"), F.col("b").cast("string"))
    hashes = to_arrow(df.select(content_hash([F.col("a"), F.col("b")]).alias("hash")))["hash"]
    expected = [hashlib.sha256(b"".join(map(netstring, parts))).digest() for parts in lists]
    assert hashes.to_pylist() == expected
    assert len(set(expected)) == len(lists)


def netstring(part: bytes | None) -> bytes:
    return b"-" if part is None else b"%d:%b" % (len(part), part)


ROW = {
    "left": "1",
    "right": "null",
    "text": "'a'",
    "at": "timestamp '2024-01-01 00:00:00.000001'",
    "list": "array('a', null)",
    "map": "map(1, 'x')",
    "struct": "named_struct('at', timestamp '2024-01-01 00:00:00.000001', 'n', 1)",
}
# Values that xxhash64 alone, casts to strings, or JSON by default would not tell apart.
CHANGES: list[dict[str, str]] = [
    {},
    {"left": "null", "right": "1"},
    {"text": "'A'"},
    {"text": "null"},
    {"at": "timestamp '2024-01-01 00:00:00.000002'"},
    {"list": "array(null, 'a')"},
    {"list": "array('a')"},
    {"list": "array('a, null')"},
    {"map": "map(1, null)"},
    {"map": "map(2, 'x')"},
    {"struct": "named_struct('at', timestamp '2024-01-01 00:00:00.000002', 'n', 1)"},
    {"struct": "named_struct('at', timestamp '2024-01-01 00:00:00.000001', 'n', null)"},
    {"struct": "null"},
]


def test_the_hash_of_kept_columns_tells_all_values_apart(spark: SparkSession) -> None:
    rows = [f"({', '.join({**ROW, **change}.values())})" for change in (*CHANGES, *CHANGES)]
    df = spark.sql(f"SELECT * FROM VALUES {', '.join(rows)} AS t ({', '.join(ROW)})")
    hashes = to_arrow(df.select(kept_hash(df, list(ROW)).alias("hash")))["hash"].to_pylist()
    half = len(CHANGES)
    assert hashes[:half] == hashes[half:]
    assert None not in hashes
    assert len(set(hashes)) == half
