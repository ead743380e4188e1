"""The content hash, which others can compute."""

import hashlib
from itertools import product

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from e5spark.job.diff import content_hash
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
