"""ONNX models as checkpoints: the weights are read out of the graph, and wrong files refused."""

import contextlib
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from e5spark.encoder import Encoder
from e5spark.encoder.prepare import prepare, prepare_int8
from e5spark.errors import ModelError
from e5spark.model import prepared, registry
from e5spark.model.checkpoint import locate
from e5spark.model.digest import cache_directory
from e5spark.model.onnx import graph as reader
from e5spark.model.onnx.files import ZipFiles, choose
from e5spark.model.onnx.source import converted
from e5spark.model.registry import Checkpoint, Recipe, Shape
from e5spark.model.resolve import make_plan, resolve
from e5spark.model.spec import model_spec
from e5spark.spark.embedding import embed
from tests import onnx_models
from tests.oracle import FP32_TOLERANCE, assert_close, reference, vectors_of
from tests.texts import mixed_texts

SHAPES = ("bert_wordpiece", "xlmr_unigram", "bert_unigram")
RECIPE = {"pooling": "mean", "normalize": True, "prompts": {"query": "query: ", "passage": ""}}
TEXTS = tuple(mixed_texts(20))


@pytest.fixture(scope="module")
def graphs(models, tmp_path_factory):
    """Shape to ONNX file, exported once."""
    folder = tmp_path_factory.mktemp("graphs")
    return {
        shape: onnx_models.export(Path(models[shape]), folder / f"{shape}.onnx") for shape in SHAPES
    }


@pytest.fixture
def bare(graphs, models, tmp_path):
    """A directory of a graph and a tokenizer.json, as the jar has them."""
    return onnx_models.directory(
        tmp_path / "bare",
        {
            "e5.onnx": graphs["bert_wordpiece"],
            "e5-tokenizer.json": Path(models["bert_wordpiece"]) / "tokenizer.json",
        },
    )


def weights_of(model, **options):
    return load_file(locate(model_spec(str(model), options)).model / "model.safetensors")


def refusal(model, **options):
    with pytest.raises(ModelError) as refused:
        locate(model_spec(str(model), options))
    return str(refused.value)


# The reader


def test_reader_reads_what_the_onnx_package_reads(graphs):
    model, graph = onnx.load(graphs["xlmr_unigram"]), reader.read_graph(graphs["xlmr_unigram"])
    for expected, tensor in zip(model.graph.initializer, graph.initializers, strict=True):
        assert tensor.name == expected.name
        assert np.array_equal(tensor.array(), numpy_helper.to_array(expected))
    for expected, node in zip(model.graph.node, graph.nodes, strict=True):
        assert (node.name, node.operator) == (expected.name, expected.op_type)
        assert node.inputs == tuple(expected.input)
        assert node.outputs == tuple(expected.output)
    assert graph.inputs == ("input_ids", "attention_mask")


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    "kind", ["FLOAT", "FLOAT16", "DOUBLE", "INT64", "INT32", "INT8", "BOOL", "UINT8"]
)
def test_tensor_has_the_values_that_the_onnx_package_reads(tmp_path, kind, raw):
    dtype = getattr(TensorProto, kind)
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(helper.tensor_dtype_to_np_dtype(dtype))
    if kind not in ("BOOL", "UINT8"):
        values = values - values.dtype.type(2)
    tensor = helper.make_tensor(
        "t", dtype, values.shape, values.tobytes() if raw else values.ravel().tolist(), raw=raw
    )
    graph = helper.make_graph([], "g", [], [], [tensor])
    onnx.save(helper.make_model(graph), tmp_path / "t.onnx")
    (read,) = reader.read_graph(tmp_path / "t.onnx").initializers
    assert read.array().dtype == values.dtype
    assert np.array_equal(read.array(), values)


# The weights


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_out_of_the_graph_are_the_checkpoints_bit_for_bit(graphs, models, shape, tmp_path):
    files = {
        "onnx/model.onnx": graphs[shape],
        "tokenizer.json": Path(models[shape], "tokenizer.json"),
    }
    weights = weights_of(onnx_models.directory(tmp_path / "m", files))
    expected = load_file(Path(models[shape]) / "model.safetensors")
    assert set(expected) - set(weights) == {"pooler.dense.weight", "pooler.dense.bias"}
    for name, values in weights.items():
        assert values.dtype == np.float32
        assert np.array_equal(values, expected[name]), name


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_of_a_graph_are_the_checkpoints(graphs, models, shape, engine, tmp_path):
    tokenizer = Path(models[shape]) / "tokenizer.json"
    model = onnx_models.jar(
        tmp_path / "m.jar", {"e5.onnx": graphs[shape], "e5-tokenizer.json": tokenizer}
    )
    encoder = Encoder.load(str(model), engine=engine, device="cpu", threads=1, **RECIPE)
    expected = reference(models[shape], TEXTS, prompt="query: ")
    assert_close(encoder.encode(TEXTS, role="query"), expected, FP32_TOLERANCE)


@pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.large)], ids=["script", "dynamo"]
)
def test_weights_of_each_exporter_and_attention_are_the_checkpoints(models, tmp_path, dynamo):
    shape = "xlmr_unigram"
    graph = onnx_models.export(
        Path(models[shape]), tmp_path / "model.onnx", attention="sdpa", dynamo=dynamo
    )
    expected = load_file(Path(models[shape]) / "model.safetensors")
    for name, values in weights_of(graph.parent, tokenizer=models[shape]).items():
        assert np.array_equal(values, expected[name]), name


def test_equal_weights_that_a_graph_stores_once_are_read_under_each_name(models, tmp_path):
    checkpoint = Path(shutil.copytree(models["bert_wordpiece"], tmp_path / "checkpoint"))
    expected = load_file(checkpoint / "model.safetensors")
    for name, values in expected.items():
        if "LayerNorm" in name:
            values[:] = name.endswith("weight")
    save_file(expected, checkpoint / "model.safetensors", {"format": "pt"})
    (tmp_path / "m").mkdir()
    graph = onnx_models.export(checkpoint, tmp_path / "m" / "model.onnx")
    for name, values in weights_of(graph.parent, tokenizer=str(checkpoint)).items():
        assert np.array_equal(values, expected[name]), name


def test_config_that_the_graph_tells_is_the_checkpoints(graphs, models, tmp_path):
    for shape in SHAPES:
        files = {"model.onnx": graphs[shape]}
        directory = onnx_models.directory(tmp_path / shape, files)
        converted_to = locate(model_spec(str(directory), {"tokenizer": models[shape]})).model
        told = json.loads((converted_to / "config.json").read_text())
        told.pop("tokenizer_class")
        config = json.loads((Path(models[shape]) / "config.json").read_text())
        assert told == {key: config[key] for key in told}
        assert {"num_attention_heads", "layer_norm_eps", "model_type"} <= set(told)


def test_head_size_that_is_left_to_the_runtime_needs_a_config(bare):
    onnx_models.altered(bare / "e5.onnx", bare / "e5.onnx", onnx_models.leave_out_head_size)
    assert "does not tell its num_attention_heads" in refusal(bare)


def test_weights_in_half_precision_stay_as_they_are(bare):
    onnx_models.altered(bare / "e5.onnx", bare / "e5.onnx", onnx_models.to_float16)
    for values in weights_of(bare).values():
        assert values.dtype == np.float16


def test_weights_in_a_file_beside_the_graph_are_read(bare, models):
    expected = weights_of(models["bert_wordpiece"])
    model = onnx.load(bare / "e5.onnx")
    onnx.save(model, bare / "e5.onnx", save_as_external_data=True, location="e5.onnx_data")
    for name, values in weights_of(bare).items():
        assert np.array_equal(values, expected[name]), name


def test_prepared_model_of_a_graph_has_the_identity_of_its_weights(bare, models, tmp_path):
    spec = model_spec(str(bare), RECIPE)
    prepare(spec, tmp_path / "prepared")
    manifest = prepared.read(tmp_path / "prepared")
    assert manifest.weights == identity(bare)
    encoder = Encoder.load(str(tmp_path / "prepared"), threads=1, **RECIPE)
    expected = reference(models["bert_wordpiece"], TEXTS, prompt="query: ")
    assert_close(encoder.encode(TEXTS, role="query"), expected, FP32_TOLERANCE)


def test_graph_that_computes_something_else_is_not_prepared(bare, tmp_path):
    """Names, shapes and operators are an encoder's; only a run shows that a residual is missing."""
    onnx_models.altered(bare / "e5.onnx", bare / "e5.onnx", onnx_models.drop_residual)
    with pytest.raises(ModelError, match="computes other vectors than a bert model"):
        prepare(model_spec(str(bare), RECIPE), tmp_path / "prepared")
    with pytest.raises(ModelError, match="computes other vectors than a bert model"):
        prepare_int8(
            model_spec(str(bare), RECIPE),
            tmp_path / "prepared",
            TEXTS,
            ["query: "] * len(TEXTS),
            overflow_safe=None,
        )
    assert not (tmp_path / "prepared").exists()


# The identity


def identity(model, **options):
    return resolve(model_spec(str(model), {**RECIPE, **options})).weights


@pytest.mark.parametrize("shape", SHAPES)
def test_graph_and_safetensors_have_one_fingerprint(graphs, models, shape, tmp_path):
    tokenizer = Path(models[shape]) / "tokenizer.json"
    safetensors = onnx_models.directory(
        tmp_path / "safetensors",
        {
            "model.safetensors": Path(models[shape]) / "model.safetensors",
            "config.json": Path(models[shape]) / "config.json",
            "tokenizer.json": tokenizer,
        },
    )
    jar = onnx_models.jar(
        tmp_path / "m.jar", {"m.onnx": graphs[shape], "tokenizer.json": tokenizer}
    )
    plans = [
        make_plan(spec, spec)
        for spec in (model_spec(str(model), RECIPE) for model in (safetensors, jar))
    ]
    assert plans[0].fingerprint == plans[1].fingerprint


def test_identity_is_the_tensors_whatever_holds_them(models, tmp_path):
    directory = Path(shutil.copytree(models["bert_wordpiece"], tmp_path / "m"))
    expected = identity(directory)
    path = directory / "model.safetensors"
    tensors = load_file(path)
    half = {name: values.astype(np.float16) for name, values in tensors.items()}
    with_head = {f"bert.{name}": values for name, values in half.items()}
    with_head["bert.embeddings.position_ids"] = np.arange(512)[None]
    with_head["cls.bias"] = np.zeros(3, np.float32)
    widened = {name: values.astype(np.float32) for name, values in half.items()}
    identities = []
    for content in (half, with_head, widened):
        save_file(content, path)
        identities.append(identity(directory))
    assert identities[0] == identities[1] == identities[2] != expected


@pytest.mark.parametrize("change", ["a weight", "a tokenizer", "the config"])
def test_identity_changes_with_what_decides_a_vector(models, tmp_path, change):
    directory = Path(shutil.copytree(models["xlmr_unigram"], tmp_path / "m"))
    expected = identity(directory)
    if change == "a weight":
        tensors = load_file(directory / "model.safetensors")
        tensors["encoder.layer.1.output.dense.bias"][3] += 1e-3
        save_file(tensors, directory / "model.safetensors")
    elif change == "a tokenizer":
        path = directory / "tokenizer_config.json"
        path.write_text(path.read_text().replace("512", "511"))
    else:
        path = directory / "config.json"
        path.write_text(
            path.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2')
        )
    assert identity(directory) != expected


def test_pad_id_is_part_of_the_identity_only_where_positions_depend_on_it(models, tmp_path):
    changed = {}
    for shape in ("bert_wordpiece", "xlmr_unigram"):
        directory = Path(shutil.copytree(models[shape], tmp_path / shape))
        before = identity(directory)
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token_id": 3}))
        changed[shape] = identity(directory) != before
    assert changed == {"bert_wordpiece": False, "xlmr_unigram": True}


def test_published_weights_are_recognised_without_a_name(graphs, models, bare, monkeypatch):
    shape = "bert_wordpiece"
    config = json.loads((Path(models[shape]) / "config.json").read_text())
    published = Checkpoint(
        name="owner/tiny",
        architecture="bert",
        shape=Shape(layers=2, hidden=32, heads=4, ffn=64),
        vocab=config["vocab_size"],
        details={"hidden_act": "gelu"},
        tokenizer_model="WordPiece",
        recipe=Recipe(
            dim=32, pooling="mean", prompts={"query": "q: ", "passage": ""}, max_tokens=9
        ),
        content_sha256=identity(bare).weights,
    )
    monkeypatch.setitem(registry.CHECKPOINTS, "owner/tiny", published)
    resolved = resolve(model_spec(str(bare), {}))
    assert resolved.spec.checkpoint == "owner/tiny"
    assert resolved.recipe == published.recipe


def test_other_weights_are_not_recognised_by_their_shape(bare):
    with pytest.raises(ModelError, match="do not say how its vectors are computed"):
        resolve(model_spec(str(bare), {}))


# The cache


def test_model_is_converted_once_on_a_machine(bare):
    first = locate(model_spec(str(bare), {})).model
    written = (first / "model.safetensors").stat()
    assert locate(model_spec(str(bare), {})).model == first
    assert (first / "model.safetensors").stat() == written
    assert first.parent == cache_directory() / "onnx"
    assert not list(first.parent.glob(".*"))  # nothing unpacked is left


def test_changed_file_is_converted_again(bare, models):
    first = locate(model_spec(str(bare), {})).model
    shutil.copyfile(Path(models["bert_wordpiece"]) / "config.json", bare / "config.json")
    assert locate(model_spec(str(bare), {})).model != first


def test_safetensors_are_preferred_to_a_graph(graphs, models, tmp_path):
    directory = Path(shutil.copytree(models["bert_wordpiece"], tmp_path / "m"))
    (directory / "onnx").mkdir()
    shutil.copyfile(graphs["xlmr_unigram"], directory / "onnx" / "model.onnx")
    assert locate(model_spec(str(directory), {})).model == directory


def test_relative_jar_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_spec("e5.jar", {}).model == str(tmp_path / "e5.jar")
    assert model_spec("archive:e5.jar", {}).model == "archive:e5.jar"


# Which file


@pytest.mark.parametrize(
    ("names", "graph"),
    [
        (["e5.onnx"], "e5.onnx"),
        (["model.onnx", "model_int8.onnx"], "model.onnx"),
        (["onnx/model.onnx", "onnx/model_O4.onnx"], "onnx/model.onnx"),
        (["model.onnx", "onnx/model.onnx"], "model.onnx"),
        (["deep/er/model.onnx", "deep/er/other.onnx"], "deep/er/model.onnx"),
    ],
)
def test_graph_is_chosen_by_its_name(names, graph):
    assert choose(names, Path("m")).graph == graph


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "m has no ONNX file"),
        (["a.txt"], "m has no ONNX file"),
        (["a.onnx", "b.onnx"], r"m has 2 ONNX files \(a.onnx, b.onnx\)"),
        (["a/model.onnx", "b/model.onnx"], "m has 2 ONNX files"),
        (["m.onnx", "a-tokenizer.json", "b-tokenizer.json"], "m has 2 tokenizers"),
    ],
)
def test_several_files_to_choose_from_are_refused(names, message):
    with pytest.raises(ModelError, match=message):
        choose(names, Path("m"))


def test_small_files_are_found_beside_the_graph_and_above_an_onnx_folder():
    names = ["onnx/model.onnx", "tokenizer.json", "config.json", "onnx/config.json", "x/vocab.txt"]
    assert choose(names, Path("m")).small == {
        "tokenizer.json": "tokenizer.json",
        "config.json": "onnx/config.json",
    }


# Archives


@pytest.fixture
def members(bare):
    return {"e5.onnx": bare / "e5.onnx", "e5-tokenizer.json": bare / "e5-tokenizer.json"}


def test_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "m.jar").write_bytes(b"PK\x03\x04 and no more")
    assert "m.jar is not a complete zip file" in refusal(tmp_path / "m.jar")


def test_truncated_jar_is_refused(members, tmp_path):
    jar = onnx_models.jar(tmp_path / "m.jar", members)
    jar.write_bytes(jar.read_bytes()[:-100])
    assert "m.jar is not a complete zip file" in refusal(jar)


def test_damaged_member_is_refused(members, tmp_path):
    jar = onnx_models.jar(tmp_path / "m.jar", members)
    content = bytearray(jar.read_bytes())
    content[5000] ^= 0xFF
    jar.write_bytes(content)
    assert f"e5.onnx in {jar} cannot be read" in refusal(jar)


def test_jar_without_a_graph_is_refused(tmp_path):
    jar = onnx_models.jar(tmp_path / "m.jar", {"README": b"."})
    assert f"{jar} has no ONNX file" in refusal(jar)


def test_jar_without_a_tokenizer_is_refused(members, tmp_path):
    jar = onnx_models.jar(tmp_path / "m.jar", {"e5.onnx": members["e5.onnx"]})
    assert f"{jar} has no tokenizer" in refusal(jar)


def test_members_of_one_name_do_not_replace_each_other(tmp_path):
    contents = {"config.json": b"a", "1_Pooling/config.json": b"b"}
    archive = ZipFiles(onnx_models.jar(tmp_path / "m.jar", contents))
    copies = {name: archive.fetch(name, tmp_path / "scratch") for name in contents}
    assert {name: copy.read_bytes() for name, copy in copies.items()} == contents


@pytest.mark.parametrize(
    "name", ["../e5.json", "a/../../b", "/etc/x", "..\\x", "C:\\x", "\\x", "."]
)
def test_member_outside_of_the_archive_is_refused(members, tmp_path, name):
    jar = onnx_models.jar(tmp_path / "m.jar", {**members, name: b"."})
    refused = refusal(jar)
    assert "outside of the archive; it cannot be trusted" in refused
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "m.jar"]


def test_bomb_is_refused_before_it_is_unpacked(members, tmp_path):
    jar = onnx_models.jar(tmp_path / "m.jar", {**members, "e5.onnx": bytes(200_000_000)})
    assert jar.stat().st_size < 1_000_000
    assert f"{jar} unpacks e5.onnx to 200000000 bytes" in refusal(jar)


def test_bomb_of_a_tokenizer_is_refused(members, tmp_path):
    content = b"{" + bytes(1 << 27)
    jar = onnx_models.jar(tmp_path / "m.jar", {**members, "e5-tokenizer.json": content})
    assert "unpacks e5-tokenizer.json to 134217729 bytes" in refusal(jar)


def test_onnx_file_in_place_of_its_directory_is_refused(bare):
    assert "is a file; name the directory" in refusal(bare / "e5.onnx")
    tokenizer = str(bare / "e5-tokenizer.json")
    assert refusal(bare, tokenizer=tokenizer).endswith("name the directory that holds it.")


# Graphs that are not the architecture


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_truncated_graph_is_refused(bare, keep):
    content = (bare / "e5.onnx").read_bytes()
    (bare / "e5.onnx").write_bytes(content[:keep])
    assert "e5.onnx is not a complete ONNX file" in refusal(bare)


def test_lfs_pointer_is_refused(bare):
    (bare / "e5.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "e5.onnx is a Git LFS pointer" in refusal(bare)


@pytest.mark.parametrize("change", sorted(onnx_models.CHANGES))
def test_graph_of_something_else_is_refused_with_what_differs(bare, change):
    alter, message = onnx_models.CHANGES[change]
    onnx_models.altered(bare / "e5.onnx", bare / "e5.onnx", alter)
    refused = refusal(bare)
    assert message in refused
    assert f"e5.onnx in {bare}" in refused


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_attention_heads", 2, "which has num_attention_heads 2 (not 4)"),
        ("num_hidden_layers", 3, "which has num_hidden_layers 3 (not 2)"),
        ("layer_norm_eps", 1e-5, "which has layer_norm_eps 1e-05 (not 1e-12)"),
        ("hidden_act", "relu", "which has hidden_act 'relu' (not 'gelu')"),
        ("model_type", "xlm-roberta", "which has model_type"),
        ("model_type", "mistral", "has a config.json of a mistral model"),
        ("model_type", "distilbert", "holds a 'distilbert' model"),
    ],
)
def test_graph_that_is_not_its_configs_is_refused(bare, models, key, value, message):
    config = json.loads((Path(models["bert_wordpiece"]) / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, key: value}))
    assert message in refusal(bare)


def test_missing_file_of_weights_is_refused(bare):
    model = onnx.load(bare / "e5.onnx")
    onnx.save(model, bare / "e5.onnx", save_as_external_data=True, location="e5.onnx_data")
    data = bare / "e5.onnx_data"
    data.write_bytes(data.read_bytes()[:-8])
    assert "the file is not complete" in refusal(bare)
    data.unlink()
    assert f"{bare} lacks e5.onnx_data" in refusal(bare)


def test_weights_outside_of_the_directory_are_refused(bare):
    model = onnx.load(bare / "e5.onnx")
    (bare / "below").mkdir()
    onnx.save(model, bare / "below" / "e5.onnx", save_as_external_data=True, location="w")
    model = onnx.load(bare / "below" / "e5.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../below/w"
    (bare / "e5.onnx").write_bytes(model.SerializeToString())
    assert "has weights in '../below/w'" in refusal(bare)


def test_tokenizer_of_another_model_is_refused(bare, models):
    other = Path(models["xlmr_unigram"]) / "tokenizer.json"
    content = json.loads(other.read_text())
    content["added_tokens"][-1]["id"] = 5000
    (bare / "e5-tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="belongs to another model"):
        resolve(model_spec(str(bare), RECIPE))


@settings(max_examples=40)
@given(data=st.data())
def test_damaged_graph_is_read_or_refused(graphs, data):
    """Whatever a file holds, there is a message and never a traceback."""
    content = bytearray(graphs["bert_wordpiece"].read_bytes())
    positions = st.integers(0, len(content) - 1) | st.integers(
        len(content) - 30_000, len(content) - 1
    )
    for position in data.draw(st.lists(positions, min_size=1, max_size=20)):
        content[position] = data.draw(st.integers(0, 255))
    with TemporaryDirectory() as folder:
        (Path(folder) / "m.onnx").write_bytes(content)
        (Path(folder) / "tokenizer.json").write_text("{}")
        with contextlib.suppress(ModelError):
            converted(Path(folder))


def test_workers_run_a_jar(make_table, graphs, models, tmp_path):
    shape = "bert_wordpiece"
    tokenizer = Path(models[shape]) / "tokenizer.json"
    jar = onnx_models.jar(
        tmp_path / "m.jar", {"m.onnx": graphs[shape], "tokenizer.json": tokenizer}
    )
    rows = embed(make_table(TEXTS), text="text", role="query", model=str(jar), **RECIPE)
    expected = reference(models[shape], TEXTS, prompt="query: ")
    assert_close(vectors_of(rows), expected, FP32_TOLERANCE)
