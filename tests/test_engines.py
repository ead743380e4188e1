"""The registry of engines decides what runs a model, and names what is missing."""

import importlib.util
import inspect
import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from e5spark.encoder import Encoder, load, loading
from e5spark.encoder.loading import decide_engine
from e5spark.encoder.packages import missing
from e5spark.encoder.prepare import prepare, prepare_int8
from e5spark.encoder.tokenizer import Tokenizer
from e5spark.encoder.verify import verify
from e5spark.errors import ModelError, OptionError
from e5spark.model import prepared
from e5spark.model.checkpoint import Files
from e5spark.model.engines import ENGINES, EngineEntry
from e5spark.model.fingerprint import Weights
from e5spark.model.prepared import Manifest
from e5spark.model.spec import PRECISIONS, model_spec

FAKE = EngineEntry(
    packages=("json",), extra="fake", devices=("cpu",), precisions=("fp32",), runs_prepared=True
)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A BERT checkpoint, as far as the choice of an engine looks at it."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return Files(model=tmp_path, tokenizer=tmp_path)


def write_manifest(files: Files, **fields: str) -> None:
    source = Weights(weights="a", tokenizer="b")
    manifest = Manifest(kind="float", source=source, pad_id=0, pad_position=None, **fields)
    prepared.write(files.model, manifest)


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Makes importing the packages fail, as on a machine without them."""
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("name", ENGINES)
def test_every_entry_has_its_module_and_its_packages(name: str) -> None:
    module = import_module(f"e5spark.encoder.engines.{name}")
    assert list(inspect.signature(module.load).parameters) == [
        *("files", "precision", "device", "threads")
    ]
    assert list(inspect.signature(module.check).parameters) == ["files", "precision", "device"]
    assert missing(ENGINES[name].packages) == []
    assert set(ENGINES[name].precisions) <= set(PRECISIONS)


def test_one_entry_and_one_module_add_an_engine(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("e5spark.encoder.engines.fake")
    module.load = lambda files, **options: options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(ENGINES, "fake", FAKE)
    spec = model_spec("/models/e5", {"engine": "fake"})
    options = {"precision": "fp32", "device": "cpu", "threads": 2}
    assert load(files, engine=spec.engine, **options) == options
    write_manifest(files, engine="fake")
    assert load(files, engine="auto", **options) == options


def test_a_prepared_model_runs_on_the_engine_that_its_manifest_names(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "fake", FAKE)
    write_manifest(files, engine="fake")
    assert decide_engine(files, engine="auto", device="cpu") == "fake"
    with pytest.raises(OptionError, match="which the fake engine runs; engine is 'openvino'"):
        decide_engine(files, engine="openvino", device="cpu")


def test_a_manifest_without_an_engine_means_openvino(files: Files) -> None:
    write_manifest(files)
    path = files.model / prepared.MANIFEST
    manifest = json.loads(path.read_text())
    assert manifest.pop("engine") == "openvino"
    path.write_text(json.dumps(manifest))
    assert decide_engine(files, engine="auto", device="cpu") == "openvino"


def test_a_prepared_model_of_an_unknown_engine_is_refused(files: Files) -> None:
    write_manifest(files, engine="abacus")
    with pytest.raises(ModelError, match="for the engine 'abacus'; this e5spark has openvino and"):
        decide_engine(files, engine="auto", device="cpu")


@pytest.mark.parametrize(
    ("hidden", "device", "chosen"),
    [
        ([], "cpu", "openvino"),
        (["torch"], "auto", "openvino"),
        (["openvino"], "cpu", "torch"),
        ([], "cuda:1", "torch"),
        ([], "mps", "torch"),
    ],
)
def test_auto_is_the_first_engine_that_is_installed_and_runs_there(
    files: Files, monkeypatch: pytest.MonkeyPatch, hidden: list[str], device: str, chosen: str
) -> None:
    hide(monkeypatch, *hidden)
    assert decide_engine(files, engine="auto", device=device) == chosen


def test_auto_is_no_engine_that_prepares_other_architectures(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "ENGINES", {"fake": FAKE, **ENGINES})
    assert decide_engine(files, engine="auto", device="cpu") == "openvino"


def test_auto_is_torch_for_an_architecture_that_cannot_be_prepared(files: Files) -> None:
    (files.model / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    assert decide_engine(files, engine="auto", device="cpu") == "torch"


def test_a_precision_that_an_engine_lacks_is_refused() -> None:
    with pytest.raises(OptionError, match="int8 is for the openvino engine; engine is 'torch'"):
        model_spec("/models/e5", {"engine": "torch", "precision": "int8"})


@pytest.mark.parametrize("package", ["torch", "transformers", "safetensors"])
def test_the_torch_engine_names_the_package_that_is_missing(
    files: Files, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    hide(monkeypatch, package)
    with pytest.raises(OptionError, match=rf"{package}, which .* pip install 'e5spark\[torch\]'"):
        load(files, engine="torch", precision="fp32", device="cpu", threads=1)


def test_auto_without_any_engine_names_what_is_missing(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "torch", "transformers", "openvino")
    with pytest.raises(OptionError, match="needs torch and transformers, which are not installed"):
        load(files, engine="auto", precision="fp32", device="auto", threads=1)


def test_an_engine_whose_import_fails_is_reported_as_such(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed as far as can be seen, but broken."""
    monkeypatch.setitem(sys.modules, "e5spark.encoder.engines.torch", None)
    with pytest.raises(OptionError, match=r"torch engine cannot be imported: .* 'e5spark\[torch\]"):
        load(files, engine="torch", precision="fp32", device="cpu", threads=1)


class Blocker:
    """A finder that refuses one package, as some environments do."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self._package:
            raise ImportError(f"{name} is blocked")


def test_a_package_that_is_blocked_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec("colorsys") is not None
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Blocker("colorsys"), *sys.meta_path])
    assert missing(["json", "colorsys"]) == ["colorsys"]


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_commands_without_an_engine_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    hide(monkeypatch, package)
    spec = model_spec("/models/e5", {"engine": "torch"})
    install = rf"needs {package}, which is not installed here: pip install 'e5spark\[torch"
    with pytest.raises(OptionError, match=install):
        verify(spec)
    with pytest.raises(OptionError, match=install):
        prepare(spec, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_int8_without_nncf_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide(monkeypatch, "nncf")
    with pytest.raises(OptionError, match=r"int8 needs nncf.*'e5spark\[torch,int8\]'"):
        prepare_int8(model_spec("/models/e5", {}), tmp_path / "new", [], [], overflow_safe=None)


def test_a_tokenizer_without_transformers_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hide(monkeypatch, "transformers")
    with pytest.raises(OptionError, match=r"needs transformers.*'e5spark\[torch\]'"):
        Tokenizer.load(tmp_path)


def test_an_encoder_without_torch_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    hide(monkeypatch, "torch")
    with pytest.raises(OptionError, match=r"The torch engine needs torch.*'e5spark\[torch\]'"):
        Encoder.load(model, engine="torch")
