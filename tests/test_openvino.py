"""The OpenVINO engine equals the torch engine, and a prepared model needs no other files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from e5spark.encoder import Encoder
from e5spark.encoder.batching import micro_batches
from e5spark.encoder.engines.preparation import prepared_directory
from e5spark.encoder.loading import decide_engine
from e5spark.errors import ModelError, OptionError
from e5spark.model import prepared
from e5spark.model.checkpoint import Files
from tests.oracle import FP32_TOLERANCE, INVARIANCE_TOLERANCE, assert_close
from tests.texts import all_texts, mixed_texts

SHAPES = ["bert_wordpiece", "xlmr_unigram", "bert_unigram"]
TEXTS = ["", "a", *all_texts()[:20], *mixed_texts(30, longest=700)]
# Special tokens spelt out in a text; XLM-R gives one of them no position.
SPELT = ["a <pad> b", "<pad><pad>", "[PAD] x </s> [SEP] <s> y <pad>"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("shape", SHAPES)
def test_openvino_gives_the_vectors_of_torch(encoders, shape, pooling):
    texts = [*TEXTS, *SPELT, *all_texts()]
    vectors = {
        engine: encoders(shape, engine=engine, pooling=pooling).encode(texts, role="query")
        for engine in ("torch", "openvino")
    }
    assert_close(vectors["openvino"], vectors["torch"], FP32_TOLERANCE)


@settings(max_examples=20, deadline=None)
@given(
    picked=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12),
    token_budget=st.integers(1, 4000),
)
def test_company_does_not_change_a_vector(encoders, picked, token_budget):
    encoder = encoders("bert_wordpiece", engine="openvino", token_budget=token_budget)
    together = encoder.encode(picked, role="passage")
    alone = np.concatenate([encoder.encode([text], role="passage") for text in picked])
    assert_close(together, alone, INVARIANCE_TOLERANCE)


def test_more_batches_than_streams_come_back_in_order(encoders):
    encoder = encoders("bert_wordpiece", engine="openvino")
    tokens = encoder.tokenize(TEXTS, ["query: "] * len(TEXTS)).tokens
    batches = micro_batches(tokens.lengths, 64)
    assert len(batches) > 10
    engine = encoder._loaded.engine
    together = list(engine.run(map(tokens.batch, batches), "mean"))
    for rows, actual in zip(batches, together, strict=True):
        (alone,) = engine.run([tokens.batch(rows)], "mean")
        assert_close(actual, alone, INVARIANCE_TOLERANCE)


def test_a_token_beyond_the_table_costs_only_its_own_row(
    encoders, model, poison, tmp_path, monkeypatch
):
    """A check of the tokenizer.json refuses such a model, but other vocabularies are not read."""
    directory = shutil.copytree(model, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([poison])
    tokenizer.save_pretrained(directory)
    monkeypatch.setattr("e5spark.model.resolve.check_tokenizer", lambda *_: None)
    encoder = Encoder.load(str(directory), engine="openvino", threads=2)
    texts = [*TEXTS[:7], f"a {poison}", *TEXTS[7:]]
    actual = encoder.encode_rows(texts, ["query: "] * len(texts))
    assert list(actual.errors) == [7]
    assert "is out of range" in actual.errors[7]
    expected = encoders("bert_wordpiece").encode(TEXTS, role="query")
    assert_close(np.delete(actual.vectors, 7, axis=0), expected, FP32_TOLERANCE)


def test_openvino_is_chosen_on_cpus_for_what_it_runs(model):
    files = Files(model=Path(model), tokenizer=Path(model))
    assert decide_engine(files, engine="auto", device="cpu") == "openvino"
    assert decide_engine(files, engine="auto", device="cuda:0") == "torch"
    assert decide_engine(files, engine="torch", device="cpu") == "torch"


def test_openvino_on_a_gpu_is_refused(model):
    with pytest.raises(
        OptionError, match="device is 'cuda:0', but the openvino engine runs on cpu only"
    ):
        Encoder.load(model, engine="openvino", device="cuda:0")


def test_an_engine_that_is_not_installed_is_named(model, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install 'e5spark\[openvino\]'"):
        Encoder.load(model, engine="openvino")


# Prepared models


@pytest.fixture
def prepared_model(model):
    return prepared_directory(Files(model=Path(model), tokenizer=Path(model)))


def test_a_checkpoint_is_prepared_once_on_a_machine(new_model):
    files = Files(model=Path(new_model), tokenizer=Path(new_model))
    first = prepared_directory(files)
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert prepared_directory(files) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times


def test_processes_that_want_a_model_at_once_prepare_it_once(new_model):
    code = (
        "import sys; from pathlib import Path; from e5spark.model.checkpoint import Files\n"
        "from e5spark.encoder.engines.preparation import prepared_directory\n"
        "path = Path(sys.argv[1]); print(prepared_directory(Files(model=path, tokenizer=path)))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, new_model], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    actual = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    (directory,) = actual
    prepared.check(Path(directory), prepared.read(Path(directory)))
    assert not [path for path in Path(directory).parent.iterdir() if path.name[0] == "."]


def test_a_prepared_model_is_a_model(prepared_model, encoders):
    encoder = Encoder.load(str(prepared_model))
    actual = encoder.encode(TEXTS, role="query")
    assert_close(actual, encoders("bert_wordpiece").encode(TEXTS, role="query"), FP32_TOLERANCE)


def test_a_prepared_model_needs_neither_torch_nor_transformers(prepared_model):
    """In an interpreter in which importing them fails."""
    code = """
import sys
for name in ("torch", "transformers", "safetensors", "nncf", "sentence_transformers", "pyspark"):
    sys.modules[name] = None
from e5spark.encoder import Encoder
vectors = Encoder.load(sys.argv[1]).encode(["one", "two three"], role="query")
print(vectors.shape)
"""
    completed = subprocess.run(
        [sys.executable, "-c", code, str(prepared_model)], capture_output=True, text=True
    )
    assert completed.stdout.strip() == "(2, 32)", completed.stderr


def test_a_prepared_model_has_the_fingerprint_of_its_checkpoint(model, prepared_model):
    from e5spark.model.resolve import make_plan
    from e5spark.model.spec import model_spec

    plans = [
        make_plan(spec, spec) for spec in map(model_spec, [model, str(prepared_model)], [{}] * 2)
    ]
    assert plans[0].fingerprint == plans[1].fingerprint


@pytest.mark.parametrize("name", ["model.bin", "embeddings.npy", "tokenizer.json", "config.json"])
def test_an_altered_file_of_a_prepared_model_is_refused(prepared_model, tmp_path, name):
    directory = Path(shutil.copytree(prepared_model, tmp_path / "prepared"))
    content = bytearray((directory / name).read_bytes())
    content[-2] ^= 1
    (directory / name).write_bytes(bytes(content))
    with pytest.raises(ModelError, match=name):
        Encoder.load(str(directory))


def test_a_prepared_model_of_another_format_is_refused(prepared_model, tmp_path):
    directory = Path(shutil.copytree(prepared_model, tmp_path / "prepared"))
    manifest = json.loads((directory / prepared.MANIFEST).read_text())
    (directory / prepared.MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ModelError, match="format 99; this e5spark reads formats up to 2"):
        Encoder.load(str(directory))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "torch"}, "is a prepared model, which the openvino engine runs"),
        ({"precision": "int8"}, "is not quantised. Prepare it once: e5spark prepare"),
    ],
)
def test_what_a_prepared_model_cannot_do_is_refused(prepared_model, options, message):
    with pytest.raises((ModelError, OptionError), match=message):
        Encoder.load(str(prepared_model), **options)


def test_a_cut_off_preparation_leaves_nothing(model, tmp_path, monkeypatch):
    from e5spark.encoder.engines import export

    def fail(*_, **__):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(export.openvino, "save_model", fail)
    with pytest.raises(RuntimeError):
        export.export(Files(model=Path(model), tokenizer=Path(model)), tmp_path / "prepared")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no smaps on this system")
def test_files_of_a_prepared_model_take_no_memory_between_windows(new_model):
    directory = prepared_directory(Files(model=Path(new_model), tokenizer=Path(new_model)))
    encoder = Encoder.load(new_model, engine="openvino", threads=2)
    first = encoder.encode(TEXTS, role="passage")
    for name in (prepared.EMBEDDINGS, prepared.WEIGHTS):
        assert set(resident(directory / name)) == {0}
    assert_close(encoder.encode(TEXTS, role="passage"), first, INVARIANCE_TOLERANCE)


def resident(path):
    """The resident kilobytes of each mapping of a file in this process."""
    lines = iter(Path("/proc/self/smaps").read_text("utf-8").splitlines())
    mapped = (line for line in lines if line.endswith(str(path)))
    sizes = (next(line for line in lines if line.startswith("Rss:")) for _ in mapped)
    return [int(size.split()[1]) for size in sizes]
