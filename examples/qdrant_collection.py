"""Loads an export with --uuid into Qdrant: python examples/qdrant_collection.py EXPORT URL."""

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pyarrow.dataset import dataset
from qdrant_client import QdrantClient, models

FIRST = "Load the export that this one starts from, or export everything."


def load(export: str, client: QdrantClient, collection: str = "passages") -> int:
    """Brings a collection up to date and returns its points."""
    record = json.loads(Path(export, "export.json").read_text("utf-8"))
    assert record["vector"]["type"] == "float32", record["vector"]
    dim = record["vector"]["dim"]
    if record["since"] is None:
        client.delete_collection(collection)
        shape = models.VectorParams(size=dim, distance=models.Distance.COSINE)
        client.create_collection(collection, vectors_config=shape)
    else:
        names = (record["since"], record["export"], f"loading {record['export']}")
        assert client.get_collection(collection).config.metadata["export"] in names, FIRST
    client.update_collection(collection, metadata={"export": f"loading {record['export']}"})
    for batch in dataset(f"{export}/deleted").to_batches(batch_size=1000):
        if len(batch):
            client.delete(collection, points_selector=batch["id"].to_pylist())
    for batch in dataset(f"{export}/vectors").to_batches(batch_size=1000):
        vectors = batch["vector"].flatten().to_numpy().reshape(len(batch), dim)
        payload = batch.drop_columns(["id", "vector"]).to_pylist()
        ids = batch["id"].to_pylist()
        client.upload_collection(collection, vectors, payload, ids, wait=True)
    count = client.count(collection, exact=True).count
    assert count == record["counts"]["ok"], count
    client.update_collection(collection, metadata={"export": record["export"]})
    return int(count)


def search(
    client: QdrantClient, query: npt.NDArray[np.float32], k: int, collection: str = "passages"
) -> list[str]:
    """Returns the ids of the nearest points."""
    found = client.query_points(collection, query=query.tolist(), limit=k)
    return [str(point.id) for point in found.points]


if __name__ == "__main__":
    print(load(sys.argv[1], QdrantClient(url=sys.argv[2])), "points")
