"""Model directories: a mutated one is refused, or has the vectors of what its files say.

The vectors of a checkpoint are right if transformers, which reads the same files in its own way,
gives them too. A prepared model is right if it has the vectors that it was prepared with, because
its manifest has the hash of each file. An ONNX model is right if ONNX Runtime gives them.
"""

import json
import os
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import transformers

from e5spark.encoder import Encoder
from e5spark.encoder.prepare import prepare
from e5spark.model.resolve import resolve
from e5spark.model.spec import model_spec
from tests import checkpoints, onnx_models
from tests.fuzz.mutate import dump, mutate_bytes, mutate_directory, mutate_json, mutate_value, near

TEXTS = ("The ferry leaves at 7:45.", "a", "Größe <pad> 東京 🙂 " * 30)
PROMPTS = {"query": "query: ", "passage": "passage: "}
OPTIONS: dict[str, Any] = {"pooling": "mean", "normalize": True, "prompts": PROMPTS}


@dataclass(frozen=True)
class Seed:
    """A model that is right.

    Attributes:
        name: Its kind.
        path: Its directory or jar.
        engine: What runs it.
        options: The options that it needs.
        vectors: Of TEXTS.
    """

    name: str
    path: Path
    engine: str
    options: dict[str, Any]
    vectors: Any


def checkpoint_seeds(directory: Path) -> list[Seed]:
    """One small checkpoint, for a sample of the cases."""
    bert = checkpoints.bert_wordpiece(directory / "bert", layers=1, hidden=16, heads=2, ffn=24)
    return [Seed("bert", bert, "torch", OPTIONS, _encode(bert, "torch", OPTIONS))]


def corpus(directory: Path) -> list[Seed]:
    """Models of each kind, which are made in some seconds."""
    os.environ["E5SPARK_CACHE"] = str(directory / "cache")
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    small = {"layers": 1, "hidden": 16, "heads": 2, "ffn": 24}
    bert = checkpoints.bert_wordpiece(directory / "bert", **small)
    layout = checkpoints.sentence_transformers_layout(
        _copy(bert, directory / "layout"), prompts=PROMPTS
    )
    xlmr = checkpoints.xlmr_unigram(directory / "xlmr", **small)
    shards = _shards(_copy(bert, directory / "shards"))
    for checkpoint, name in ((layout, "prepared"), (xlmr, "prepared-xlmr")):
        options = {} if checkpoint is layout else OPTIONS
        prepare(model_spec(str(checkpoint), options), directory / name)
    graph = onnx_models.export(bert, directory / "model.onnx")
    files = {"model.onnx": graph, "tokenizer.json": bert / "tokenizer.json"}
    onnx = onnx_models.directory(directory / "onnx", {**files, "config.json": bert / "config.json"})
    members = {"model.onnx": graph, "bert-tokenizer.json": bert / "tokenizer.json"}
    (directory / "jar").mkdir()
    onnx_models.jar(directory / "jar" / "model.jar", members)
    seeds = []
    for name, path, engine in (
        ("bert", bert, "torch"),
        ("layout", layout, "torch"),
        ("xlmr", xlmr, "torch"),
        ("shards", shards, "torch"),
        ("prepared", directory / "prepared", "openvino"),
        ("prepared-xlmr", directory / "prepared-xlmr", "openvino"),
        ("onnx", onnx, "torch"),
        ("jar", directory / "jar" / "model.jar", "torch"),
    ):
        options = {} if name in ("layout", "prepared") else OPTIONS
        vectors = _encode(path, engine, options)
        seeds.append(Seed(name, path, engine, options, vectors))
    return seeds


def case(corpus: list[Seed], directory: Path, rng: Random, notes: list[str]) -> str:
    """Loads a mutated model and embeds texts with it."""
    seed = rng.choice(corpus)
    notes.append(seed.name)
    if seed.path.is_dir():
        path = directory / "model"
        shutil.copytree(seed.path, path, copy_function=os.link)
        for _ in range(rng.choice((1, 1, 1, 2))):
            notes.append(mutate_directory(path, rng, _mutate_file))
    else:
        path = directory / "model.jar"
        path.write_bytes(_mutate_jar(seed.path, rng, notes))
    vectors = _encode(path, seed.engine, seed.options)
    if seed.engine == "openvino":
        assert _close(vectors, seed.vectors), "a prepared model has other vectors"
        return "same vectors"
    if path.is_file() or seed.name == "onnx":
        if _close(vectors, seed.vectors):
            return "same vectors"
        expected = _of_graph(path, seed, directory)
    else:
        expected = _of_transformers(path)
    assert _close(vectors, expected), (
        f"{float(np.abs(vectors - expected).max())} from the reference, "
        f"{float(np.abs(vectors - seed.vectors).max())} from the model before"
    )
    return "same vectors" if _close(vectors, seed.vectors) else "its own vectors"


def cleanup(directory: Path) -> None:
    for path in directory.rglob("*"):
        if not path.is_symlink() and path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(directory)


def _encode(path: Path, engine: str, options: dict[str, Any]) -> Any:
    """The vectors; an error of e5spark's if they are not finite."""
    spec = model_spec(str(path), {**options, "engine": engine, "device": "cpu"})
    resolve(spec).weights  # noqa: B018  # what a driver does
    encoder = Encoder.load(str(path), threads=1, engine=engine, device="cpu", **options)
    return encoder.encode(TEXTS, role="passage")


def _close(one: Any, other: Any) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= 1e-4)


def _of_transformers(path: Path) -> Any:
    """The vectors as the directory's files say, read by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(
        path, use_safetensors=True, dtype=torch.float32
    ).eval()
    return _pooled(path, tokenizer, lambda batch: model(**batch).last_hidden_state)


def _pooled(path: Path, tokenizer: Any, hidden_of: Callable[[Any], Any]) -> Any:
    def read(name: str) -> Any:
        return json.loads((path / name).read_text()) if (path / name).is_file() else {}

    limit = min(
        value
        for value in (
            read("sentence_bert_config.json").get("max_seq_length"),
            read("tokenizer_config.json").get("model_max_length"),
            510 + 2 * (read("config.json").get("model_type") == "bert"),
        )
        if isinstance(value, int)
    )
    modules = [module["type"].rsplit(".", 1)[-1] for module in read("modules.json") or ()]
    normalizes = "Normalize" in modules or not modules
    mode = "mean"
    if modules:
        folder = next(
            module["path"] for module in read("modules.json") if "Pooling" in module["type"]
        )
        pooling = read(f"{folder}/config.json")
        names = [
            key.removeprefix("pooling_mode_")
            for key, value in pooling.items()
            if value is True and key.startswith("pooling_mode_")
        ]
        (mode,) = [pooling["pooling_mode"]] if "pooling_mode" in pooling else names
    prompts = read("config_sentence_transformers.json").get("prompts") or PROMPTS
    prompt = prompts.get("passage", prompts.get("document", prompts.get("corpus")))
    vectors = []
    for text in TEXTS:
        batch = tokenizer([prompt + text], max_length=limit, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            hidden = hidden_of(batch)[0].float()
        picked = {"cls_token": hidden[0], "cls": hidden[0], "lasttoken": hidden[-1]}
        vector = picked.get(mode, hidden.mean(0))
        vector = torch.nn.functional.normalize(vector, dim=0) if normalizes else vector
        vectors.append(vector.numpy())
    return np.stack(vectors)


def _of_graph(path: Path, seed: Seed, directory: Path) -> Any:
    """The vectors that ONNX Runtime computes with the graph itself."""
    import onnxruntime

    if path.is_file():
        where = directory / "unpacked"
        with zipfile.ZipFile(path) as archive:
            archive.extractall(where)
    else:
        where = path
    (graph,) = where.rglob("*.onnx")
    (tokens,) = where.rglob("*tokenizer.json")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    backend = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokens))
    inputs = {part.name for part in session.get_inputs()}

    def hidden(batch: Any) -> Any:
        feed = {name: value.numpy() for name, value in batch.items() if name in inputs}
        return torch.from_numpy(session.run(None, feed)[0])

    return _pooled(where, backend, hidden)


def _mutate_file(name: str, data: bytes, rng: Random) -> bytes:
    if name.endswith(".safetensors"):
        return _mutate_safetensors(data, rng)
    if name.endswith(".json"):
        if len(data) > 50_000 and rng.random() < 0.7:  # a tokenizer: beside its vocabulary
            return _mutate_tokenizer(data, rng)
        return mutate_json(data, rng)
    return mutate_bytes(data, rng)


def _mutate_tokenizer(data: bytes, rng: Random) -> bytes:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_json(data, rng)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        return mutate_json(data, rng)
    key = rng.choice([key for key in content if key != "model"])
    if rng.random() < 0.5:
        content[key] = mutate_value(content[key], rng) if rng.random() < 0.7 else None
    else:
        model = content["model"]
        part = rng.choice(list(model))
        if part == "vocab":
            vocab = model["vocab"]
            if not isinstance(vocab, dict | list) or not vocab:
                return mutate_json(data, rng)
            at = rng.randrange(len(vocab))
            if isinstance(vocab, list):
                vocab[at] = rng.choice(
                    (["x", 0.0], [vocab[at][0], float("nan")], ["x"], None, vocab[0])
                )
            else:
                word = list(vocab)[at]
                vocab[word] = rng.choice((0, len(vocab), len(vocab) + 5, -1, 2**40, "1", None))
        else:
            model[part] = near(model[part], rng)
    return dump(content)


def _mutate_safetensors(data: bytes, rng: Random) -> bytes:  # noqa: C901  # a table
    (length,) = struct.unpack("<Q", data[:8])
    if length > len(data) - 8:  # mutated already
        return mutate_bytes(data, rng)
    header, values = data[8 : 8 + length], data[8 + length :]
    action = rng.randrange(10)
    if action == 0:
        return (
            struct.pack("<Q", rng.choice((0, 1, length - 1, length + 1, 10**11, 2**63, 2**64 - 1)))
            + data[8:]
        )
    if action == 1:
        return data[:8] + header + mutate_bytes(values, rng)
    if action == 2:  # numbers that are none
        at = 4 * rng.randrange(len(values) // 4)
        number = rng.choice((float("nan"), float("inf"), 1e38, -1e38, 1e-45, 0.0))
        return data[:8] + header + values[:at] + struct.pack("<f", number) + values[at + 4 :]
    if action == 3:
        return mutate_bytes(data, rng)
    if action == 4:
        header = header.replace(b'"F32"', rng.choice((b'"F16"', b'"BF16"', b'"I32"', b'"F99"')), 1)
        return struct.pack("<Q", len(header)) + header + values
    try:
        entries = json.loads(header)
    except ValueError:
        return mutate_bytes(data, rng)
    names = [name for name in entries if name != "__metadata__"]
    if action <= 6 and len(names) > 1 and all(isinstance(entries[name], dict) for name in names):
        entry = entries[rng.choice(names)]
        part = rng.choice(("shape", "data_offsets"))
        if entry.get(part):
            at = rng.randrange(len(entry[part]))
            entry[part] = list(entry[part])
            entry[part][at] = near(entry[part][at], rng)
        header = dump(entries)
    elif action == 7 and len(names) > 1:
        one, other = rng.sample(names, 2)
        entries[one], entries[other] = entries[other], entries[one]
        header = dump(entries)
    else:
        header = mutate_json(header, rng)
    return struct.pack("<Q", len(header)) + header + values


def _mutate_jar(path: Path, rng: Random, notes: list[str]) -> bytes:
    data = path.read_bytes()
    if rng.random() < 0.4:
        notes.append("bytes of the archive")
        return mutate_bytes(data, rng)
    if rng.random() < 0.3:  # its directory, at the end
        return data[:-300] + mutate_bytes(data[-300:], rng)
    target = path.with_name("mutated.jar")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    action = rng.randrange(6)
    notes.append(f"{action} of {name}")
    if action == 0:
        members[rng.choice(("../x.onnx", "/x", "a/../../b", "C:/x", "..\\x.onnx", ""))] = (
            members.pop(name)
        )
    elif action == 1:
        members["other-tokenizer.json"] = b"{}"
    elif action == 2:
        del members[name]
    else:
        members[name] = _mutate_file(name, members[name], rng)
    with zipfile.ZipFile(
        target, "w", rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED))
    ) as archive:
        for member, content in members.items():
            entry = zipfile.ZipInfo(member or " ")
            if rng.random() < 0.05:
                entry.external_attr = 0o120777 << 16
            archive.writestr(entry, content)
    return target.read_bytes()


def _copy(source: Path, to: Path) -> Path:
    shutil.copytree(source, to)
    return to


def _shards(directory: Path) -> Path:
    model = transformers.AutoModel.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="100KB")
    return directory
