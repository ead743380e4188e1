"""Writes the golden files of this release: python -m tests.golden.write [DIRECTORY].

Every later release must read them. Run it once for each release that changes a format, into a new
directory tests/golden/<release>; files that are committed are never written again.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from e5spark import __version__
from e5spark.encoder.prepare import prepare
from e5spark.model.spec import model_spec
from tests.checkpoints import sentence_transformers_layout
from tests.delta_driver import Driver, run_job, start_classic

GOLDEN = Path(__file__).parent
# Tables name their model by its absolute path: one that says nothing of the machine.
WORKPLACE = Path("/tmp/e5spark-golden")
PROMPTS = {"query": "query: ", "passage": "passage: "}
TEXTS: tuple[str | None, ...] = (
    "Rain fell on the harbour all night.",
    "The library opens at nine.",
    "A tide table for the river mouth.",
    "Bread is baked before sunrise.",
    "The stone bridge was closed in winter.",
    "Two hills stand behind the village.",
    None,
    "",
)
# What a claim of the lock says of the machine that writes the files, and after how many seconds
# another machine may take over from a run that was killed.
MACHINE = {"host": "golden", "machine": "golden", "pid": 1, "process_started": None, "ttl": 1.0}


def main(to: Path) -> None:
    """Writes a model, its prepared form, a calibration, two tables and an interrupted one."""
    assert not to.exists(), f"{to} exists; golden files are never written again."
    shutil.rmtree(WORKPLACE, ignore_errors=True)
    WORKPLACE.mkdir()
    model = tiny_model(WORKPLACE / "model")
    prepare(model_spec(str(model), {}), WORKPLACE / "prepared")
    write_documents(WORKPLACE / "docs.jsonl", TEXTS)
    report = write_tables(WORKPLACE)
    counts = {name: report[name] for name in ("fingerprint", "rows", "embedded")}
    expected = {"release": __version__, **counts}
    (WORKPLACE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")
    forget_the_machine(WORKPLACE)
    shutil.move(WORKPLACE, to)


def tiny_model(directory: Path) -> Path:
    """Returns the directory of a random BERT of one layer, about 30 KB with its tokenizer."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789:."
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(directory)
    return sentence_transformers_layout(directory, max_tokens=64, prompts=PROMPTS)


def write_documents(path: Path, texts: tuple[str | None, ...]) -> None:
    """Writes rows of id and body as JSON lines."""
    lines = [json.dumps({"id": number, "body": text}) for number, text in enumerate(texts)]
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def job(directory: Path, output: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Returns the job that writes, and later updates, a golden table."""
    return {
        "input": {"path": str(directory / "docs.jsonl"), "format": "jsonl", "id": "id"},
        "embed": {"text": "body", "role": "passage"},
        "model": {"name": str(directory / "model"), "engine": "torch", "precision": "fp32"},
        "output": {"path": str(output), "format": kind},
        "run": {"chunk_rows": 4, "partitions": 1, "concurrent_chunks": 1},
    }


def job_file(path: Path, sections: dict[str, dict[str, Any]]) -> Path:
    """Writes a job file."""
    lines: list[str] = []
    for name, values in sections.items():
        # Strings, numbers, booleans and lists look the same in JSON and in TOML.
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path.write_text("\n".join([*lines, ""]), "utf-8")
    return path


def write_tables(directory: Path) -> dict[str, Any]:
    """Writes the tables and the ranges of their vectors; returns the Parquet run's report."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {
            name: str(job_file(Path(scratch) / f"{name}.toml", job(directory, output, kind)))
            for name, output, kind in (
                ("parquet", directory / "parquet", "parquet"),
                ("delta", directory / "delta", "delta"),
                ("interrupted", directory / "interrupted", "parquet"),
                ("calibrate", Path(scratch) / "out", "parquet"),
            )
        }
        driver = Driver(start_classic, scratch)
        try:
            written = driver.job(files["parquet"])
            assert written.code == 0, written.log
            assert driver.job(files["delta"]).code == 0
            to = str(directory / "calibration.json")
            ranges = driver(run_job, ["calibrate", files["calibrate"], "--to", to], "")
            assert ranges.code == 0, ranges.log
            driver.killed(files["interrupted"], at="recorded:2")
        finally:
            driver.close()
    return dict(written.document)


def forget_the_machine(directory: Path) -> None:
    """Removes Hadoop's checksum files, and the names of host and process from the locks."""
    for checksum in directory.rglob(".*.crc"):
        checksum.unlink()
    for claim in directory.rglob("_e5spark/lock/*.json"):
        owner = json.loads(claim.read_text("utf-8"))
        assert owner.keys() >= MACHINE.keys()
        claim.write_text(json.dumps(owner | MACHINE), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else GOLDEN / __version__)
