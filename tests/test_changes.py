"""The content hash, which others can compute; and the progress of a run."""

import hashlib
from itertools import product

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from e5spark.job.diff import content_hash
from e5spark.job.progress import Progress
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


def test_each_chunk_logs_the_progress_of_the_run(caplog) -> None:
    caplog.set_level("INFO", logger="e5spark")
    progress = Progress(rows=300, chunks=2)
    progress.chunk(rows=100, tokens=1000)
    progress.chunk(rows=200, tokens=5000)
    first, last = (record.message for record in caplog.records)
    assert first.startswith("chunk 1 of 2: 100 of 300 rows (33%), ")
    assert " texts/s, " in first
    assert " tokens/s, " in first
    assert last.startswith("chunk 2 of 2: 300 of 300 rows (100%), ")
    assert last.endswith(" 0:00:00 left")


def test_on_a_terminal_the_bar_ends_its_line_with_the_last_chunk(monkeypatch, capsys) -> None:
    progress = Progress(rows=2, chunks=2)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress.chunk(rows=1, tokens=5)
    half = capsys.readouterr().err
    progress.chunk(rows=1, tokens=5)
    whole = capsys.readouterr().err
    assert half.startswith("\r")
    assert half.count("█") == half.count("░") == 15
    assert not half.endswith("\n")
    assert whole.count("█") == 30
    assert whole.endswith("\n")
