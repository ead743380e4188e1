"""Loads an export into PostgreSQL: python examples/pgvector_table.py EXPORT postgresql://..."""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from adbc_driver_postgresql import dbapi
from pyarrow.dataset import dataset

FIRST = "Load the export that this one starts from, or export everything."


def load(export: str, url: str) -> int:
    """Brings the table ``passages`` up to date, in one transaction, and returns its rows."""
    record = json.loads(Path(export, "export.json").read_text("utf-8"))
    assert record["vector"]["type"] == "float32", record["vector"]
    vector = f"vector({record['vector']['dim']})"
    with dbapi.connect(url) as db, db.cursor() as cursor:
        for name in ("vectors", "deleted"):  # COPY, from Arrow: a vector arrives as real[]
            batches = dataset(f"{export}/{name}").scanner().to_reader()
            cursor.adbc_ingest(f"e5spark_{name}", batches, mode="create", temporary=True)
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
        if record["since"] is None:
            cursor.execute("DROP TABLE IF EXISTS passages")
            cursor.execute("CREATE TABLE passages AS SELECT * FROM e5spark_vectors LIMIT 0")
            cursor.execute(
                f"ALTER TABLE passages ALTER vector TYPE {vector} USING vector::{vector}"
            )
            cursor.execute("ALTER TABLE passages ADD PRIMARY KEY (id)")
        else:
            cursor.execute("SELECT obj_description('passages'::regclass)")
            assert cursor.fetchone()[0] in (record["since"], record["export"]), FIRST
        ids = "SELECT id FROM e5spark_deleted UNION SELECT id FROM e5spark_vectors"
        cursor.execute(f"DELETE FROM passages WHERE id IN ({ids})")
        cursor.execute("INSERT INTO passages SELECT * FROM e5spark_vectors")
        cursor.execute("SELECT count(*) FROM passages")
        (count,) = cursor.fetchone()
        assert count == record["counts"]["ok"], count
        cursor.execute(f"COMMENT ON TABLE passages IS '{record['export']}'")
        db.commit()
    return int(count)


def search(url: str, query: npt.NDArray[np.float32], k: int) -> list[str]:
    """Returns the ids of the nearest rows; exact, until CREATE INDEX ... USING hnsw."""
    with dbapi.connect(url) as db, db.cursor() as cursor:
        nearest = "SELECT id FROM passages ORDER BY vector <=> $1::vector, id LIMIT $2"
        cursor.execute(nearest, (str(query.tolist()), k))
        return [row[0] for row in cursor.fetchall()]


if __name__ == "__main__":
    print(load(*sys.argv[1:]), "rows")
