"""Loads an export into a DuckDB table: python examples/duckdb_table.py EXPORT passages.duckdb."""

import json
import sys
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt

FIRST = "Load the export that this one starts from, or export everything."


def load(export: str, database: str) -> int:
    """Brings the table ``passages`` up to date and returns its rows."""
    record = json.loads(Path(export, "export.json").read_text("utf-8"))
    assert record["vector"]["type"] == "float32", record["vector"]
    vector = f"FLOAT[{record['vector']['dim']}]"  # an array: a list has no cosine similarity
    with duckdb.connect(database) as db:
        rows = db.read_parquet(f"{export}/vectors/*.parquet")  # noqa: F841  # SQL sees variables
        gone = db.read_parquet(f"{export}/deleted/*.parquet")  # noqa: F841
        db.begin()
        if record["since"] is None:
            db.execute("CREATE OR REPLACE TABLE passages AS FROM rows LIMIT 0")
            db.execute(f"ALTER TABLE passages ALTER vector TYPE {vector}")
        else:
            sql = "SELECT comment FROM duckdb_tables() WHERE table_name = 'passages'"
            assert db.sql(sql).fetchall()[0][0] in (record["since"], record["export"]), FIRST
        db.execute(
            "DELETE FROM passages WHERE id IN (SELECT id FROM gone UNION SELECT id FROM rows)"
        )
        db.execute("INSERT INTO passages BY NAME FROM rows")
        count = db.table("passages").count("*").fetchall()[0][0]
        assert count == record["counts"]["ok"], count
        db.execute(f"COMMENT ON TABLE passages IS '{record['export']}'")
        db.commit()
    return int(count)


def search(database: str, query: npt.NDArray[np.float32], k: int) -> list[str]:
    """Returns the ids of the nearest rows; the extension vss adds an index to the same query."""
    by_score = f"array_cosine_similarity(vector, $query::FLOAT[{len(query)}]) DESC"
    with duckdb.connect(database, read_only=True) as db:
        sql = f"SELECT id FROM passages ORDER BY {by_score}, id LIMIT $k"
        return [row[0] for row in db.execute(sql, {"query": query.tolist(), "k": k}).fetchall()]


if __name__ == "__main__":
    print(load(*sys.argv[1:]), "rows")
