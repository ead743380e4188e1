"""The benchmark itself: its model, its texts, its arithmetic, and one small run from end to end.

No test here looks at a speed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from e5spark.benchmark import corpus, synthetic
from e5spark.benchmark.contenders import Contender, contenders, selected, with_pythons
from e5spark.benchmark.figures import Rows, agreement, compare, summarize
from e5spark.benchmark.rounds import Failure, run_rounds
from e5spark.benchmark.shapes import SHAPES, flops
from e5spark.cli import main
from tests.cluster import REPOSITORY

MEANS = {"queries": 12, "passages": 80, "long": 350, "duplicates": 80}
# Each kind of contender once: Spark and none, e5spark and others, with a model and without.
FOUR = ("recipe", "e5spark-torch-fp32", "spark-1x1-torch-fp32", "transport-e5spark")
ROWS = 24
TRANSPORT_ROWS = 120


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module", params=["tiny", "multilingual-tiny", "minilm"])
def tokenizer_directory(request: pytest.FixtureRequest, directory: Path, minilm: str) -> Path:
    if request.param == "minilm":
        return Path(minilm)
    return synthetic.checkpoint(SHAPES[request.param], directory, name=request.param)


@pytest.fixture(scope="module")
def chart(directory: Path) -> Path:
    return directory / "chart.png"


@pytest.fixture(scope="module")
def outcome(jvm: None, directory: Path, chart: Path) -> "subprocess.CompletedProcess[str]":
    """A whole run as people start it."""
    command = [sys.executable, "jobs/benchmark.py", "--shape", "tiny", "--threads", "1"]
    command += ["--rows", str(ROWS), "--transport-rows", str(TRANSPORT_ROWS), "--rounds", "2"]
    command += ["--work", str(directory), "--plot", str(chart)]
    command += ["--json", str(directory / "document.json")]
    for name in FOUR:
        command += ["--only", name]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("SPARK_HOME", None)
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def document(outcome: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outcome.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in document["contenders"]}


@pytest.mark.parametrize(
    ("shape", "expected"), [("small", 3.52), ("base", 13.83), ("large", 48.95)]
)
def test_operations_of_a_text_of_80_tokens_are_those_calculated_by_hand(
    shape: str, expected: float
) -> None:
    one = SHAPES[shape]
    found = flops([80], layers=one.layers, hidden=one.hidden, ffn=one.ffn)
    assert round(found / 1e9, 2) == expected


def test_operations_of_texts_add_up_and_attention_grows_with_the_square() -> None:
    # One layer, hidden 1, ffn 4: 24 L + 4 L^2.
    assert flops([1, 10], layers=1, hidden=1, ffn=4) == (24 + 4) + (240 + 400)


@pytest.mark.parametrize("mix", MEANS)
def test_texts_have_the_tokens_that_the_mix_promises(mix: str, tokenizer_directory: Path) -> None:
    one = corpus.MIXES[mix]
    prefix = synthetic.PROMPTS[one.role]
    backend = corpus.load_tokenizer(tokenizer_directory)
    texts = corpus.make_texts(one, 2000, tokenizer=backend, prefix=prefix, seed=3)
    loaded = AutoTokenizer.from_pretrained(tokenizer_directory)
    whole = [prefix + text for text in texts]
    lengths = [len(ids) for ids in loaded(whole, truncation=True, max_length=512)["input_ids"]]
    assert abs(np.mean(lengths) / MEANS[mix] - 1) < 0.06
    counted = corpus.token_counts(texts, tokenizer=backend, prefix=prefix, max_tokens=512)
    assert counted.tolist() == lengths


def test_a_heavy_tail_has_short_texts_and_some_that_are_cut(tokenizer_directory: Path) -> None:
    backend = corpus.load_tokenizer(tokenizer_directory)
    texts = corpus.make_texts(
        corpus.MIXES["heavy"], 2000, tokenizer=backend, prefix="passage: ", seed=0
    )
    lengths = corpus.token_counts(texts, tokenizer=backend, prefix="passage: ", max_tokens=10_000)
    assert np.median(lengths) < np.mean(lengths) / 1.5
    assert 0.01 < np.mean(lengths > 512) < 0.05


@pytest.mark.parametrize("mix", corpus.MIXES)
def test_the_same_seed_gives_the_same_texts_and_another_one_others(
    mix: str, tokenizer_directory: Path
) -> None:
    def make(seed: int) -> list[str]:
        return corpus.make_texts(
            corpus.MIXES[mix],
            40,
            tokenizer=corpus.load_tokenizer(tokenizer_directory),
            prefix="query: ",
            seed=seed,
        )

    assert make(1) == make(1)
    assert make(1) != make(2)


def test_duplicates_repeat_three_rows_in_ten(tokenizer_directory: Path) -> None:
    texts = corpus.make_texts(
        corpus.MIXES["duplicates"],
        1000,
        tokenizer=corpus.load_tokenizer(tokenizer_directory),
        prefix="passage: ",
        seed=0,
    )
    assert len(texts) == 1000
    assert len(set(texts)) == 700


@pytest.mark.parametrize(
    "name",
    [
        "tiny",
        "multilingual-tiny",
        "small",
        pytest.param("multilingual-small", marks=pytest.mark.large),
    ],
)
def test_a_checkpoint_has_the_size_of_its_shape(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    made = synthetic.checkpoint(shape, tmp_path, name=name)
    config = AutoConfig.from_pretrained(made)
    assert config.model_type == shape.architecture
    assert (config.num_hidden_layers, config.hidden_size) == (shape.layers, shape.hidden)
    assert (config.intermediate_size, config.vocab_size) == (shape.ffn, shape.embeddings)
    assert len(AutoTokenizer.from_pretrained(made)) == shape.pieces


def test_a_checkpoint_is_made_once_and_equal_for_equal_seeds(tmp_path: Path) -> None:
    def weights(folder: str, seed: int) -> Path:
        made = synthetic.checkpoint(SHAPES["tiny"], tmp_path / folder, name="tiny", seed=seed)
        return made / "model.safetensors"

    first = weights("one", 0)
    written = first.stat().st_mtime_ns
    assert weights("one", 0).stat().st_mtime_ns == written
    assert weights("two", 0).read_bytes() == first.read_bytes()
    assert weights("two", 1).read_bytes() != first.read_bytes()


def test_names_are_unique_and_patterns_choose_among_them() -> None:
    everyone = contenders({"isa": ["avx2"]}, threads=4, device="cpu", prepared={})
    names = [each.name for each in everyone]
    assert len(set(names)) == len(names)
    chosen = selected(everyone, only=["recipe", "spark-*-torch-fp32"], skip=["spark-4x*"])
    assert [each.name for each in chosen] == ["recipe", "spark-1x4-torch-fp32"]


def test_bf16_is_left_out_with_a_reason_where_the_cpu_lacks_it() -> None:
    def reasons(isa: list[str]) -> dict[str, str | None]:
        everyone = contenders({"isa": isa}, threads=1, device="cpu", prepared={})
        return {each.name: each.missing for each in everyone}

    assert "no bf16" in str(reasons(["avx2"])["e5spark-torch-bf16"])
    assert reasons(["avx2", "avx512_bf16"])["e5spark-torch-bf16"] is None
    assert "st-torch-bf16" not in reasons(["avx2"])


class FakeChildren:
    """Children that only write down who ran."""

    def __init__(self, broken: str) -> None:
        self.ran: list[str] = []
        self._broken = broken

    def run(self, name: str) -> dict[str, Any]:
        self.ran.append(name)
        if name == self._broken:
            raise Failure("no such thing")
        return {"seconds": 1.0}


def test_rounds_begin_with_another_contender_each_and_outlive_a_broken_one() -> None:
    children = FakeChildren(broken="b")
    figures, failed = run_rounds(children, ["a", "b", "c"], 3)  # type: ignore[arg-type]
    assert children.ran == ["a", "b", "c", "c", "a", "c", "a"]
    assert {name: len(found) for name, found in figures.items()} == {"a": 3, "b": 0, "c": 3}
    assert failed == {"b": "no such thing"}


def run_of(seconds: float, **others: Any) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "worker_cpu_seconds": None,
        "tokens": 800,
        "padded": 1000,
        "workers": [{"pss": 500_000_000, "peak_rss": 600_000_000}],
        **others,
    }


def summary_of(name: str, seconds: list[float]) -> dict[str, Any]:
    first = {"first": {"first_vector_seconds": 3.0}}
    runs = [run_of(each, **(first if not row else {})) for row, each in enumerate(seconds)]
    contender = Contender(name=name, kind="encoder")
    return summarize(contender, runs, Rows(rows=10, tokens=800, flops=4e9), {"fp32": 10.0})


def test_figures_are_medians_with_their_spread() -> None:
    found = summary_of("x", [2.0, 1.0, 5.0])
    assert found["texts_per_second"] == {"median": 5.0, "min": 2.0, "max": 10.0}
    assert found["tokens_per_second"]["median"] == 400
    assert found["share_of_peak"]["median"] == pytest.approx(0.2)  # 2 of 10 GFLOP/s
    assert found["padding_efficiency"] == pytest.approx(0.8)
    assert found["cpu_seconds"]["median"] == 4
    assert found["first_vector_seconds"]["median"] == 3
    assert (found["worker_pss_mb"], found["worker_peak_rss_mb"]) == ([500], [600])


def test_ratios_are_to_the_recipe_and_cosines_to_the_first() -> None:
    summaries = [summary_of("recipe", [2.0]), summary_of("fast", [0.5])]
    compare(summaries)
    assert [each["ratio_to_recipe"] for each in summaries] == [1, 4]
    with_vectors = {"recipe": [[1.0, 0.0], [0.0, 2.0]], "fast": [[2.0, 0.0], [3.0, 4.0]]}
    assert agreement(summaries, with_vectors) == "recipe"
    assert [each["worst_cosine"] for each in summaries] == [1, 0.8]


def test_the_last_line_is_the_document_that_the_file_has(
    document: dict[str, Any], directory: Path
) -> None:
    written = json.loads((directory / "document.json").read_text())
    assert document == {"status": "done", **written}


def test_the_machine_comes_first_and_a_table_before_the_document(
    outcome: "subprocess.CompletedProcess[str]",
) -> None:
    lines = outcome.stdout.splitlines()
    assert "GEMM peaks" in lines[2]
    table = lines[[line.startswith("contender") for line in lines].index(True) :]
    assert [line.split()[0] for line in table[1 : 1 + len(FOUR)]] == list(FOUR)


def test_the_document_says_what_was_measured(document: dict[str, Any]) -> None:
    assert document["format"] == 1
    assert document["machine"]["versions"].keys() >= {"e5spark", "torch", "pyspark"}
    assert document["machine"]["cpu"]
    assert all(each["gflops"]["fp32"] > 0 for each in document["peaks"])
    assert all(each["gflops"]["int8"] > 0 for each in document["peaks"])
    assert document["settings"]["threads"] == 1
    assert document["texts"]["rows"] == ROWS
    assert document["left_out"] == []


def test_every_contender_has_its_figures(by_name: dict[str, dict[str, Any]]) -> None:
    assert list(by_name) == list(FOUR)
    for found in by_name.values():
        for figure in ("seconds", "texts_per_second", "cpu_seconds"):
            assert 0 < found[figure]["min"] <= found[figure]["median"] <= found[figure]["max"]
        assert len(found["worker_pss_mb"]) == len(found["worker_peak_rss_mb"]) == 1
        assert found["worker_pss_mb"][0] > 0
    for name in FOUR[:3]:
        assert by_name[name]["first_vector_seconds"]["median"] > 0
        assert 0 < by_name[name]["share_of_peak"]["median"] < 1
        assert by_name[name]["ratio_to_recipe"] > 0


def test_all_contenders_make_the_same_vectors(
    document: dict[str, Any], by_name: dict[str, dict[str, Any]]
) -> None:
    assert document["vectors_compared_with"] == "recipe"
    for name in FOUR[:3]:
        assert by_name[name]["worst_cosine"] > 0.99999
    assert by_name["transport-e5spark"]["worst_cosine"] is None


def test_every_token_goes_through_each_model_and_none_through_the_transport(
    document: dict[str, Any], by_name: dict[str, dict[str, Any]]
) -> None:
    for name in FOUR[:3]:
        assert by_name[name]["computed_tokens"] == document["texts"]["tokens"]
        assert 0 < by_name[name]["padding_efficiency"] <= 1
    transport = by_name["transport-e5spark"]
    assert transport["rows"] == TRANSPORT_ROWS
    assert transport["padding_efficiency"] is None
    assert transport["share_of_peak"] is None


@pytest.mark.usefixtures("outcome")
def test_the_chart_is_a_picture(chart: Path) -> None:
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "--rows is 0"),
        (["--threads", "100000"], "may use"),
        (["--only", "nobody"], "No contender is left"),
        (["--python", "st-onnx=/no/such/python"], "an interpreter that exists"),
        (["--prepared", "int8"], "such as openvino-int8=DIR"),
        (["--plot", "chart.txt"], "must end in one of"),
    ],
)
def test_wrong_arguments_fail_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "--shape", "tiny", *arguments]) == 2
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert message in found["message"]


def test_a_contender_that_fails_says_why(
    tmp_path: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prepared model of its own, in its own process, that has no weights."""
    made = synthetic.checkpoint(SHAPES["tiny"], directory, name="tiny")
    broken = tmp_path / "broken"
    shutil.copytree(made, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    arguments = ["benchmark", "--shape", "tiny", "--rows", "4", "--rounds", "1"]
    arguments += ["--only", "e5spark-torch-fp32", "--prepared", f"torch-fp32={broken}"]
    assert main([*arguments, "--work", str(directory)]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "e5spark-torch-fp32: ModelError" in found["message"]
    assert "no model.safetensors" in found["message"]


def test_another_interpreter_runs_whom_its_pattern_names() -> None:
    one, other = (Contender(name=name, kind="encoder", missing="x") for name in ("st-a", "b"))
    found = with_pythons([one, other], {"st-*": "/other/python"})
    assert [(each.python, each.missing) for each in found] == [("/other/python", None), (None, "x")]
