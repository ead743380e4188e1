"""A sample of the fuzzers' cases, and what their failures became; ``make fuzz`` runs them all."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from e5spark.encoder.tokenizer import Tokenizer
from e5spark.errors import ConfigError, ConflictError, E5SparkError, ModelError, from_text
from e5spark.job import job_file
from e5spark.model import prepared
from e5spark.model.fingerprint import Weights
from e5spark.model.onnx import source
from e5spark.model.output_type import load_calibration
from e5spark.model.resolve import resolve
from e5spark.model.spec import model_spec
from e5spark.tables.ledger.documents import dumped
from e5spark.tables.ledger.ledger import Ledger
from e5spark.tables.ledger.owner import this_process
from e5spark.tables.ledger.records import Record
from e5spark.tables.storage.local import LocalStorage
from tests import checkpoints
from tests.fuzz import child, jobs, models, states
from tests.test_commit import FakeLock

OPTIONS: dict[str, Any] = models.OPTIONS
NESTED = b"[" * 100_000


def failures(kind: ModuleType, corpus: Any, directory: Path, cases: int) -> dict[int, str]:
    """What is wrong with the first cases of a fuzzer."""
    problems = {}
    for number in range(cases):
        case = directory / "case"
        case.mkdir()
        name = kind.__name__.rpartition(".")[2]
        how, problem = child.outcome(kind, corpus, case, child.generator(name, 0, number))
        kind.cleanup(case)
        if how == "failed":
            problems[number] = problem
    return problems


def test_a_mutated_job_file_is_refused_or_has_the_values_of_the_file(tmp_path: Path) -> None:
    assert failures(jobs, jobs.corpus(tmp_path), tmp_path, 100) == {}


def test_after_a_mutation_of_the_state_rows_are_right_or_stay_as_they_were(tmp_path: Path) -> None:
    assert failures(states, None, tmp_path, 60) == {}


def test_a_mutated_checkpoint_is_refused_or_has_the_vectors_of_its_files(tmp_path: Path) -> None:
    seeds = models.checkpoint_seeds(tmp_path)
    assert failures(models, seeds, tmp_path, 12) == {}


def test_a_failing_case_is_found() -> None:
    def case(corpus: None, directory: Path, rng: Random, notes: list[str]) -> str:
        notes.append("a note")
        raise KeyError("missing")

    how, problem = child.outcome(
        type("kind", (), {"case": staticmethod(case)}), None, Path(), Random(0)
    )
    assert how == "failed"
    assert "KeyError: 'missing'" in problem
    assert "a note" in problem


# Job files.


@pytest.mark.parametrize(
    "text",
    [
        f"[run]\n{'.'.join('a' * 1500)} = 1",
        f"[input]\nselect = {'[' * 5000}{']' * 5000}",
        f"[model]\ndim = {'9' * 5000}",
        "[input]\npath = 'a'\n[input]\npath = 'b'",
    ],
    ids=["dotted keys", "lists", "digits", "a section twice"],
)
def test_a_job_file_that_toml_cannot_hold_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"job\.toml"):
        job_file.load(tmp_path / "job.toml")


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000])
def test_an_override_that_is_no_value_of_toml_is_a_string(tmp_path: Path, value: str) -> None:
    (tmp_path / "job.toml").write_text("[embed]\ntext = 'a'\n[model]\nname = 'a'")
    with pytest.raises(ConfigError, match=r"model\.dim is") as caught:
        job_file.load(tmp_path / "job.toml", [f"model.dim={value}"])
    assert len(str(caught.value)) < 3000


def test_a_table_s_name_is_no_statement(tmp_path: Path) -> None:
    text = "[embed]\ntext = 'a'\nrole = 'query'\n[model]\nname = 'a'\n[input]\npath = 'a'\n"
    (tmp_path / "job.toml").write_text(f"{text}[output]\ntable = 'docs; DROP TABLE docs'")
    with pytest.raises(ConfigError, match=r"output\.table is 'docs; DROP TABLE docs'; it must be"):
        job_file.load(tmp_path / "job.toml")


# Models.


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose files nobody changes."""
    small = {"layers": 1, "hidden": 16, "heads": 2, "ffn": 24}
    return checkpoints.bert_wordpiece(tmp_path_factory.mktemp("seed") / "model", **small)


@pytest.fixture
def model(seed: Path, tmp_path: Path) -> Path:
    """A checkpoint of hard links: a file is replaced, and never written over."""
    (tmp_path / "model").mkdir()
    for path in seed.iterdir():
        os.link(path, tmp_path / "model" / path.name)
    return tmp_path / "model"


def write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def refusal(model: Path) -> str:
    """Why a model is refused."""
    with pytest.raises(ModelError) as caught:
        resolve(model_spec(str(model), OPTIONS))
    return str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_json_nested_too_deeply_is_refused(model: Path, name: str) -> None:
    write(model / name, NESTED)
    assert name in refusal(model)


def test_a_header_nested_too_deeply_is_refused(model: Path) -> None:
    write(model / "model.safetensors", struct.pack("<Q", len(NESTED)) + NESTED)
    assert "not a complete safetensors file" in refusal(model)


def test_a_header_that_claims_100_gigabytes_is_not_read(model: Path) -> None:
    write(model / "model.safetensors", struct.pack("<Q", 10**11) + b"{}")
    assert "no complete header" in refusal(model)


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/x.safetensors", "model.bin"])
def test_an_index_names_safetensors_of_its_directory_only(model: Path, shard: str) -> None:
    index = {"weight_map": {"embeddings.word_embeddings.weight": shard}}
    write(model / "model.safetensors.index.json", json.dumps(index).encode())
    assert f"has weights in {shard!r}" in refusal(model)


@pytest.mark.parametrize("folder", ["../1_Pooling", "/1_Pooling", "a\\..\\..\\b"])
def test_a_module_lies_in_the_directory_of_its_model(model: Path, folder: str) -> None:
    write(model / "modules.json", json.dumps([{"type": "x.Pooling", "path": folder}]).encode())
    assert "outside of its directory" in refusal(model)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="/proc is Linux's")
def test_a_file_that_cannot_be_read_is_named(model: Path) -> None:
    for name in ("tokenizer_config.json", "model.safetensors"):
        (model / name).unlink()
        (model / name).symlink_to("/proc/self/mem")
        assert "cannot be read" in refusal(model) or "not a complete" in refusal(model)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("post_processor", {"type": "BertProcessing", "sep": ["x", -100], "cls": ["x", 1]}),
        ("pre_tokenizer", {"type": "no such"}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    ],
)
def test_a_tokenizer_that_its_library_cannot_read_is_refused(
    model: Path, part: str, value: object, capfd: pytest.CaptureFixture[str]
) -> None:
    """For the last one the library panics, which is no Exception."""
    content = {**json.loads((model / "tokenizer.json").read_text()), part: value}
    write(model / "tokenizer.json", json.dumps(content).encode())
    with pytest.raises(ModelError, match="has no tokenizer that can be read"):
        Tokenizer.read(model / "tokenizer.json", pad_id=0)


def test_a_vocabulary_without_its_unknown_token_is_refused_before_a_text_needs_it(
    model: Path,
) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["unk_token"] = "[NONE]"
    write(model / "tokenizer.json", json.dumps(content).encode())
    with pytest.raises(ModelError, match="has no tokenizer that can be read"):
        Tokenizer.read(model / "tokenizer.json", pad_id=0)


MANIFEST = prepared.Manifest(
    kind="float",
    source=Weights(weights="w", tokenizer="t"),
    pad_id=0,
    pad_position=None,
    files=dict.fromkeys(
        ("config.json", "model.xml", "model.bin", "embeddings.npy", "tokenizer.json"), "0" * 64
    ),
)


@pytest.mark.parametrize(
    "change",
    [
        {"pad_id": "0"},
        {"pad_id": -1},
        {"pad_position": {}},
        {"settings": []},
        {"settings": {"NUM_STREAMS": 1}},
        {"files": {**MANIFEST.files, "../model.bin": "0"}},
        {"files": {**MANIFEST.files, "/etc/passwd": "0"}},
        {"needs_vnni": "no"},
        {"source": {"weights": 1, "tokenizer": "t"}},
        {"engine": None},
    ],
    ids=str,
)
def test_a_manifest_with_a_value_that_cannot_be_used_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    document = asdict(MANIFEST)
    (tmp_path / prepared.MANIFEST).write_text(json.dumps(document))
    assert prepared.read(tmp_path) == MANIFEST
    (tmp_path / prepared.MANIFEST).write_text(json.dumps({**document, **change}))
    with pytest.raises(ModelError, match="is not a manifest of a prepared model"):
        prepared.read(tmp_path)


def test_a_prepared_model_has_a_hash_of_each_file_that_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no hash of config\.json"):
        prepared.check(tmp_path, replace(MANIFEST, files={}))


def test_a_prompt_that_is_no_string_is_refused(model: Path) -> None:
    prompts = {"prompts": {"query": "query: ", "passage": 2}}
    write(model / "config_sentence_transformers.json", json.dumps(prompts).encode())
    assert "has a prompt that is no string" in refusal(model)


@pytest.mark.parametrize("change", [{"is_decoder": True}, {"position_embedding_type": "relative"}])
def test_an_onnx_model_s_config_adds_nothing_to_its_graph(
    model: Path, change: dict[str, Any]
) -> None:
    values = json.loads((model / "config.json").read_text())
    assert source.checkpoint_config(model, {"model_type": "bert"}, "x.onnx").values["vocab_size"]
    write(model / "config.json", json.dumps({**values, **change}).encode())
    with pytest.raises(ModelError, match=next(iter(change))):
        source.checkpoint_config(model, {"model_type": "bert"}, "x.onnx")


def test_ranges_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_bytes(NESTED)
    with pytest.raises(E5SparkError, match="cannot be read"):
        load_calibration(str(tmp_path / "ranges.json"))


# State.

RECORD = Record(name="00001-00001", kind="deferred", files=("a.parquet",), rows=5)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(LocalStorage(str(tmp_path), tmp_path), FakeLock(2))


def test_a_record_under_another_name_is_a_conflict(ledger: Ledger) -> None:
    ledger.storage.put("_e5spark/commits/00001-00007.json", dumped(asdict(RECORD)))
    with pytest.raises(ConflictError, match="was renamed or copied"):
        ledger.pending("deferred")


def test_a_replacement_without_a_record_that_it_includes_loses_no_row(ledger: Ledger) -> None:
    replacement = Record(name="00001-00002", kind="replace", includes=(RECORD.name,))
    with pytest.raises(ConflictError, match="has lost 00001-00001"):
        ledger.included(replacement)
    ledger.storage.put(f"_e5spark/done/{RECORD.name}.json", dumped(asdict(RECORD)))
    assert ledger.included(replacement) == []


def test_a_record_that_has_lost_its_files_is_a_conflict(ledger: Ledger) -> None:
    assert ledger.whole(RECORD) == RECORD
    with pytest.raises(ConflictError, match="it has 5 rows and no files"):
        ledger.whole(replace(RECORD, files=()))


@pytest.mark.parametrize(
    "change", [{"ttl": float("nan")}, {"ttl": -1.0}, {"ttl": 1e300}, {"pid": 0}, {"pid": 1 << 40}]
)
def test_the_owner_of_a_lock_is_a_process_and_waits_no_longer_than_an_hour(
    change: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(this_process(60.0), **change)


# Messages.


@pytest.mark.parametrize("wrap", [str, lambda error: str(pickle.loads(pickle.dumps(error)))])
def test_a_message_has_no_secret_and_a_length_to_read(wrap: Callable[[Exception], str]) -> None:
    error = ConfigError(f"Found s3a://A:SECRET@b/x and {'y' * 10_000}. Take it out.")
    message = wrap(error)
    assert "SECRET" not in message
    assert message.startswith("Found s3a://b/x")
    assert message.endswith("Take it out.")
    assert len(message) < 3000
    again = from_text(f"e5spark.errors.ConfigError: {message}")
    assert str(again) == message
