"""Loads an export into a LanceDB table: python examples/lancedb_table.py EXPORT vectors.lance."""

import json
import sys
from pathlib import Path

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow.dataset import dataset

FIRST = "Load the export that this one starts from, or export everything."


def load(export: str, database: str) -> int:
    """Brings the table ``passages`` up to date and returns its rows."""
    record = json.loads(Path(export, "export.json").read_text("utf-8"))
    assert record["vector"]["type"] == "float32", record["vector"]
    rows = dataset(f"{export}/vectors")
    vector = pa.list_(pa.float32(), record["vector"]["dim"])  # LanceDB searches lists of fixed size
    position = rows.schema.get_field_index("vector")
    schema = rows.schema.remove_metadata().set(position, pa.field("vector", vector))
    batches = (pa.table(batch).cast(schema).combine_chunks() for batch in rows.to_batches())
    reader = pa.RecordBatchReader.from_batches(
        schema, (batch for table in batches for batch in table.to_batches())
    )
    db = lancedb.connect(database)
    if record["since"] is None:
        db.drop_table("passages", ignore_missing=True)
        table = db.create_table("passages", reader)
    else:
        table = db.open_table("passages")
        names = (record["since"], record["export"], f"loading-{record['export']}")
        assert {*names} & {*table.tags.list()}, FIRST
        tag(table, f"loading-{record['export']}")
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(reader)
        for ids in dataset(f"{export}/deleted").to_batches(batch_size=1000):
            if len(ids):
                table.delete(f"id IN ({', '.join(map(sql, ids['id'].to_pylist()))})")
    count = table.count_rows()
    assert count == record["counts"]["ok"], count
    tag(table, record["export"])
    return int(count)


def tag(table: lancedb.table.Table, name: str) -> None:
    """Keeps a name with the table, and no other."""
    if name not in table.tags.list():
        table.tags.create(name, table.version)
    for other in {*table.tags.list()} - {name}:
        table.tags.delete(other)


def sql(id: str | int) -> str:
    """Returns an id as a literal of SQL."""
    return str(id) if isinstance(id, int) else "'" + id.replace("'", "''") + "'"


def search(database: str, query: npt.NDArray[np.float32], k: int) -> list[str]:
    """Returns the ids of the nearest rows; exact, until ``table.create_index`` adds an index."""
    table = lancedb.connect(database).open_table("passages")
    found = table.search(query).distance_type("dot").limit(k).select(["id", "_distance"])
    return found.to_arrow()["id"].to_pylist()


if __name__ == "__main__":
    print(load(*sys.argv[1:]), "rows")
