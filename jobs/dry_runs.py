"""python jobs/dry_runs.py --model MODEL [--rows N ...] [--case CASE ...] [--precision P ...] ...

How far a dry run is from the run that follows it. Each round has, one after the other and each in a
process of its own: ``e5spark embed --dry-run``, and ``e5spark embed``. Compared are the seconds of
the report, the tokens, and the bytes of the files.

Cases: ``first`` (a new table), ``changed`` (a table of which one row in ten has changed and one in
twenty is new), ``uneven`` (a new table of texts that are one to thirty passages long). The last
line is a JSON document.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CORPUS = Path("jobs/demo_corpus/passages.jsonl")
CASES = ("first", "changed", "uneven")
_JOB = """
[input]
path = "set by --set"
id = "id"
[embed]
text = "text"
role = "passage"
[model]
name = {model}
precision = {precision}
[output]
path = {output}
"""


def main() -> int:
    """Measures, prints a table, and prints the figures as a JSON document in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a checkpoint: its name, directory or jar")
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 2000], help="sizes")
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=CASES, help="cases")
    parser.add_argument("--precision", nargs="+", default=["auto"], help="precisions")
    parser.add_argument("--rounds", type=int, default=1, help="rounds (1)")
    parser.add_argument("--work", help="the parent of the directory for the tables")
    options = parser.parse_args()
    figures = []
    print(
        "| precision | case | rows | to embed | predicted, s | real, s | ratio | tokens | bytes |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for number in range(options.rounds):
        for precision in options.precision:
            for rows in options.rows:
                for case in options.case:
                    with tempfile.TemporaryDirectory(dir=options.work) as work:
                        figure = _compare(Path(work), options.model, precision, case, rows, number)
                    figures.append(figure)
                    print(_line(figure), flush=True)
    print(json.dumps({**vars(options), "load": os.getloadavg()[2], "figures": figures}))
    return 0


def _compare(
    work: Path, model: str, precision: str, case: str, rows: int, seed: int
) -> dict[str, Any]:
    """Returns what a dry run predicts and what the run then takes."""
    job, output = work / "job.toml", work / "vectors"
    values = {"model": model, "precision": precision, "output": str(output)}
    job.write_text(_JOB.format(**{name: json.dumps(value) for name, value in values.items()}))
    texts = _texts(rows, uneven=case == "uneven", seed=seed)
    table = work / "input"
    if case == "changed":
        _write(texts, work / "before")
        _embed(job, work / "before")
        texts = [f"{text} Again." if row % 10 == 0 else text for row, text in enumerate(texts)]
        texts += _texts(rows // 20, uneven=False, seed=seed + 1000)
    _write(texts, table)
    before = _bytes(output)
    predicted = _embed(job, table, "--dry-run")
    real = _embed(job, table)
    return {
        "precision": precision,
        "case": case,
        "rows": len(texts),
        "to_embed": predicted["to_embed"],
        "counts_agree": predicted["to_embed"] == real["embedded"],
        "predicted_seconds": predicted["seconds"],
        "predicted_by_step": predicted["seconds_by_step"],
        "seconds": real["seconds"],
        "ratio": round(predicted["seconds"] / real["seconds"], 3),
        "tokens_ratio": round(predicted["tokens"]["value"] / max(1, real["tokens"]), 4),
        "tokens_in_interval": predicted["tokens"]["low"]
        <= real["tokens"]
        <= predicted["tokens"]["high"],
        "sampled_rows": predicted["sampled_rows"],
        "bytes_ratio": (
            None if before else round(predicted["output_bytes"] / max(1, _bytes(output)), 3)
        ),
    }


def _texts(rows: int, *, uneven: bool, seed: int) -> list[str]:
    passages = [json.loads(line)["text"] for line in CORPUS.read_text("utf-8").splitlines()]
    random = np.random.default_rng(seed)
    sizes = np.minimum(30, random.geometric(0.2, rows)) if uneven else np.ones(rows, int)
    return [
        " ".join(passages[number] for number in random.integers(0, len(passages), size))
        + f" ({seed}-{row})"
        for row, size in enumerate(sizes)
    ]


def _write(texts: Sequence[str], directory: Path) -> None:
    directory.mkdir()
    ids = [f"row-{row}" for row in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": texts}), directory / "part-0.parquet")


def _bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.parquet"))


def _embed(job: Path, table: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "e5spark", "embed", str(job), f"--set=input.path={table}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-3000:]}")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def _line(figure: dict[str, Any]) -> str:
    bytes_ratio = "" if figure["bytes_ratio"] is None else f"{figure['bytes_ratio']:.2f}"
    return (
        f"| {figure['precision']} | {figure['case']} | {figure['rows']:,} | "
        f"{figure['to_embed']:,} | {figure['predicted_seconds']:.1f} | {figure['seconds']:.1f} | "
        f"{figure['ratio']:.2f} | {figure['tokens_ratio']:.3f} | {bytes_ratio} |"
    )


if __name__ == "__main__":
    sys.exit(main())
