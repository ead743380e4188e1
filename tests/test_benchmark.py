"""The benchmark itself: its model, its texts, its arithmetic, and one small run from end to end.

No test here looks at a speed.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from e5spark.benchmark import corpus, machine, report, synthetic
from e5spark.benchmark.contenders import Contender, contenders, selected, with_pythons
from e5spark.benchmark.figures import Rows, agreement, compare, summarize
from e5spark.benchmark.rounds import Child, Failure, run_rounds
from e5spark.benchmark.run import _best as best
from e5spark.benchmark.shapes import SHAPES, flops
from e5spark.benchmark.task import Task
from e5spark.cli import main
from e5spark.model.engines import ENGINES

MEANS = {"queries": 12, "passages": 80, "long": 350, "duplicates": 80}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def tokenizers(directory: Path, minilm: str) -> Callable[[str], Path]:
    """The directory of a tokenizer; the tiny one is in the place where a run looks for it."""

    def find(name: str) -> Path:
        if name == "minilm":
            return Path(minilm)
        return synthetic.checkpoint(SHAPES[name], directory / "models", name=name)

    return find


# Every mix with one tokenizer, and one mix with the others.
MIX_AND_TOKENIZER = [
    *((mix, "tiny") for mix in corpus.MIXES),
    ("passages", "multilingual-tiny"),
    ("passages", "minilm"),
]


@pytest.mark.parametrize(("name", "expected"), [("small", 3.52), ("base", 13.83), ("large", 48.95)])
def test_operations_of_a_text_of_80_tokens_equal_those_calculated_by_hand(
    name: str, expected: float
) -> None:
    shape = SHAPES[name]
    operations = flops([80], layers=shape.layers, hidden=shape.hidden, ffn=shape.ffn)
    assert round(operations / 1e9, 2) == expected


def test_operations_of_texts_add_up_and_attention_grows_with_the_square() -> None:
    # One layer, hidden 1, ffn 4: 24 L + 4 L^2.
    assert flops([1, 10], layers=1, hidden=1, ffn=4) == (24 + 4) + (240 + 400)


@pytest.mark.parametrize(
    ("name", "tokenizer"), [pair for pair in MIX_AND_TOKENIZER if pair[0] in MEANS]
)
def test_texts_have_the_tokens_that_the_mix_promises(
    name: str, tokenizer: str, tokenizers: Callable[[str], Path]
) -> None:
    mix = corpus.MIXES[name]
    prefix = synthetic.PROMPTS[mix.role]
    backend = corpus.load_tokenizer(tokenizers(tokenizer))
    texts = corpus.make_texts(mix, 1000, tokenizer=backend, prefix=prefix, seed=3)
    reference = AutoTokenizer.from_pretrained(tokenizers(tokenizer))
    prompted = [prefix + text for text in texts]
    ids = reference(prompted, truncation=True, max_length=512)["input_ids"]
    lengths = [len(row) for row in ids]
    assert abs(np.mean(lengths) / MEANS[name] - 1) < 0.06
    counts = corpus.token_counts(texts, tokenizer=backend, prefix=prefix, max_tokens=512)
    assert counts.tolist() == lengths


@pytest.mark.parametrize("tokenizer", ["tiny", "multilingual-tiny"])
def test_a_heavy_tail_has_short_texts_and_some_that_are_cut(
    tokenizer: str, tokenizers: Callable[[str], Path]
) -> None:
    backend = corpus.load_tokenizer(tokenizers(tokenizer))
    texts = corpus.make_texts(
        corpus.MIXES["heavy"], 2000, tokenizer=backend, prefix="passage: ", seed=0
    )
    lengths = corpus.token_counts(texts, tokenizer=backend, prefix="passage: ", max_tokens=10_000)
    assert np.median(lengths) < np.mean(lengths) / 1.5
    assert 0.01 < np.mean(lengths > 512) < 0.05


@pytest.mark.parametrize(("name", "tokenizer"), MIX_AND_TOKENIZER)
def test_equal_seeds_give_equal_texts_and_different_seeds_different_texts(
    name: str, tokenizer: str, tokenizers: Callable[[str], Path]
) -> None:
    def make(seed: int) -> list[str]:
        return corpus.make_texts(
            corpus.MIXES[name],
            40,
            tokenizer=corpus.load_tokenizer(tokenizers(tokenizer)),
            prefix="query: ",
            seed=seed,
        )

    first = make(1)
    assert make(1) == first
    assert make(2) != first


def test_duplicates_repeat_three_rows_in_ten(tokenizers: Callable[[str], Path]) -> None:
    texts = corpus.make_texts(
        corpus.MIXES["duplicates"],
        1000,
        tokenizer=corpus.load_tokenizer(tokenizers("tiny")),
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
    directory = synthetic.checkpoint(shape, tmp_path, name=name)
    config = AutoConfig.from_pretrained(directory)
    assert config.model_type == shape.architecture
    assert (config.num_hidden_layers, config.hidden_size) == (shape.layers, shape.hidden)
    assert (config.intermediate_size, config.vocab_size) == (shape.ffn, shape.embeddings)
    assert len(AutoTokenizer.from_pretrained(directory)) == shape.pieces


def test_a_checkpoint_is_made_once_and_equal_for_equal_seeds(tmp_path: Path) -> None:
    def weights(folder: str, seed: int) -> Path:
        parent = tmp_path / folder
        directory = synthetic.checkpoint(SHAPES["tiny"], parent, name="tiny", seed=seed)
        return directory / "model.safetensors"

    first = weights("one", 0)
    written = first.stat().st_mtime_ns
    assert weights("one", 0).stat().st_mtime_ns == written
    assert weights("two", 0).read_bytes() == first.read_bytes()
    assert weights("two", 1).read_bytes() != first.read_bytes()


def test_names_are_unique_and_patterns_choose_among_them() -> None:
    candidates = contenders({"isa": ["avx2"]}, threads=4, device="cpu", prepared={})
    names = [contender.name for contender in candidates]
    assert len(set(names)) == len(names)
    chosen = selected(candidates, only=["recipe", "spark-*-torch-fp32"], skip=["spark-4x*"])
    assert [contender.name for contender in chosen] == ["recipe", "spark-1x4-torch-fp32"]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_every_engine_takes_part_on_its_devices_and_in_its_precisions(device: str) -> None:
    candidates = contenders({"isa": ["avx2"]}, threads=4, device=device, prepared={})
    own = [contender for contender in candidates if contender.kind in ("encoder", "embed")]
    assert {(contender.options["engine"], contender.precision) for contender in own} == {
        (name, precision)
        for name, entry in ENGINES.items()
        for precision in entry.precisions
        if device.partition(":")[0] in entry.devices
    }
    assert {contender.options["device"] for contender in own} == {device}


def test_bf16_is_left_out_with_a_reason_where_the_cpu_lacks_it() -> None:
    def reasons(isa: list[str]) -> dict[str, str | None]:
        candidates = contenders({"isa": isa}, threads=1, device="cpu", prepared={})
        return {contender.name: contender.missing for contender in candidates}

    assert "no bf16" in str(reasons(["avx2"])["e5spark-torch-bf16"])
    assert reasons(["avx2", "avx512_bf16"])["e5spark-torch-bf16"] is None
    assert "st-torch-bf16" not in reasons(["avx2"])


class FakeChildren:
    """Children that only record the names of the contenders that run."""

    def __init__(self, broken: str) -> None:
        self.ran: list[str] = []
        self._broken = broken

    def run(self, name: str) -> dict[str, Any]:
        self.ran.append(name)
        if name == self._broken:
            raise Failure("no such thing")
        return {"seconds": 1.0}


def test_each_round_begins_with_another_contender_and_goes_on_without_a_broken_one() -> None:
    children = FakeChildren(broken="b")
    figures, failed = run_rounds(children, ["a", "b", "c"], 3)  # type: ignore[arg-type]
    assert children.ran == ["a", "b", "c", "c", "a", "c", "a"]
    assert {name: len(runs) for name, runs in figures.items()} == {"a": 3, "b": 0, "c": 3}
    assert failed == {"b": "no such thing"}


def test_a_process_that_dies_between_rounds_is_a_failure_of_its_contender(tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\nread task\necho '{}'\nexit 9\n")
    interpreter.chmod(0o755)
    task = Task(
        name="a",
        kind="encoder",
        python=str(interpreter),
        model="",
        checkpoint=None,
        options={},
        texts="",
        role="passage",
        prefix="",
        threads=1,
        workers=0,
        partitions=1,
        copies=1,
        work=str(tmp_path),
    )
    child = Child(task, open(tmp_path / "a.log", "w", encoding="utf-8"))  # noqa: SIM115
    child._process.wait()
    with pytest.raises(Failure, match="its process ended with exit code 9"):
        child.run()


def test_a_measurement_of_peaks_that_is_killed_is_reported_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = subprocess.CompletedProcess([], returncode=-9, stdout="", stderr="")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: killed)
    peaks = machine.peaks(threads=1, hidden=32, ffn=64, seconds=0.1)
    assert peaks == {"gflops": {}, "not_measured": {"all": "exit code -9"}}


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_second_measurement_that_fails_leaves_the_first_as_the_limit(device: str) -> None:
    peaks = [
        {"gflops": {"fp32": 100.0}, "gpu": {"gflops": {"fp32": 100.0}}},
        {"gflops": {}, "not_measured": {"all": "exit code -9"}},
    ]
    assert best(peaks, device) == {"fp32": 100.0}


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
    runs = [run_of(second, **({} if row else first)) for row, second in enumerate(seconds)]
    contender = Contender(name=name, kind="encoder")
    return summarize(contender, runs, Rows(rows=10, tokens=800, flops=4e9), {"fp32": 10.0})


def test_figures_are_medians_with_their_spread() -> None:
    summary = summary_of("x", [2.0, 1.0, 5.0])
    assert summary["texts_per_second"] == {"median": 5.0, "min": 2.0, "max": 10.0}
    assert summary["tokens_per_second"]["median"] == 400
    assert summary["share_of_peak"]["median"] == pytest.approx(0.2)  # 2 of 10 GFLOP/s
    assert summary["padding_efficiency"] == pytest.approx(0.8)
    assert summary["cpu_seconds"]["median"] == 4
    assert summary["first_vector_seconds"]["median"] == 3
    assert (summary["worker_pss_mb"], summary["worker_peak_rss_mb"]) == ([500], [600])


def test_ratios_are_to_the_recipe_and_cosines_to_the_first() -> None:
    summaries = [summary_of("recipe", [2.0]), summary_of("fast", [0.5])]
    compare(summaries)
    assert [summary["ratio_to_recipe"] for summary in summaries] == [1, 4]
    with_vectors = {"recipe": [[1.0, 0.0], [0.0, 2.0]], "fast": [[2.0, 0.0], [3.0, 4.0]]}
    assert agreement(summaries, with_vectors) == "recipe"
    assert [summary["worst_cosine"] for summary in summaries] == [1, 0.8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "--rows is 0"),
        (["--gemm-seconds", "0"], "--gemm-seconds is 0.0; it must be a positive number"),
        (["--threads", "100000"], "may use"),
        (["--only", "nobody"], "No contender is left"),
        (["--python", "st-onnx=/no/such/python"], "an existing interpreter"),
        (["--prepared", "int8"], "such as openvino-int8=DIR"),
        (["--plot", "chart.txt"], "must end in one of"),
    ],
)
def test_wrong_arguments_fail_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "--shape", "tiny", *arguments]) == 2
    failure = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert message in failure["message"]


def test_a_machine_without_torch_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    arguments = ["--shape", "tiny", "--work", str(tmp_path), "--only", "recipe"]
    assert main(["benchmark", *arguments]) == 2
    failure = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "needs torch, which is not installed here: pip install" in failure["message"]


def test_a_contender_that_fails_says_why(
    tmp_path: Path,
    directory: Path,
    tokenizers: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its prepared model has no weights; it fails in its own process."""
    monkeypatch.setattr(machine, "peaks", lambda **_: {"gflops": {}, "not_measured": {}})
    broken = tmp_path / "broken"
    shutil.copytree(tokenizers("tiny"), broken, ignore=shutil.ignore_patterns("*.safetensors"))
    arguments = ["benchmark", "--shape", "tiny", "--rows", "4", "--rounds", "1"]
    arguments += ["--only", "e5spark-torch-fp32", "--prepared", f"torch-fp32={broken}"]
    assert main([*arguments, "--work", str(directory)]) == 1
    failure = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "e5spark-torch-fp32: ModelError" in failure["message"]
    assert "no model.safetensors" in failure["message"]


def test_an_interpreter_runs_the_contenders_that_its_pattern_names() -> None:
    contenders = [Contender(name=name, kind="encoder", missing="x") for name in ("st-a", "b")]
    changed = with_pythons(contenders, {"st-*": "/other/python"})
    assert [contender.python for contender in changed] == ["/other/python", None]
    assert [contender.missing for contender in changed] == [None, "x"]


def measured(**speeds: float) -> dict[str, Any]:
    """A document of contenders in some precisions, through Spark, and of one without Spark."""
    contenders = [
        {
            "kind": "embed",
            "precision": name,
            "texts_per_second": {"median": speed},
            "worst_cosine": 0.998,
        }
        for name, speed in speeds.items()
    ]
    contenders.append({**contenders[0], "kind": "encoder", "texts_per_second": {"median": 1e9}})
    left_out = [
        {"name": "spark-1x2-openvino-int8", "reason": "it needs a prepared model"},
        {"name": "st-onnx", "reason": "optimum is not installed"},
    ]
    return {"contenders": contenders, "left_out": left_out}


@pytest.mark.parametrize(
    ("speeds", "choice", "mentions_int8"),
    [
        ({"fp32": 50, "bf16": 86, "int8": 119}, "bf16", True),
        ({"fp32": 50, "bf16": 86, "int8": 90}, "bf16", False),
        ({"fp32": 50, "bf16": 40, "int8": 119}, "fp32", True),
        ({"fp32": 50, "bf16": 52}, "fp32", False),
    ],
)
def test_the_last_sentence_says_which_precision_to_choose(
    speeds: dict[str, float], choice: str, mentions_int8: bool
) -> None:
    sentence = report.advice(measured(**speeds))
    assert sentence.startswith(f"Choose {choice} on this machine: compared with fp32, ")
    assert f"bf16 is {speeds['bf16'] / 50:.2f} times as fast (worst cosine 0.99800)" in sentence
    assert ("choose int8 if" in sentence) == mentions_int8
    assert sentence.endswith(".")


def test_without_a_second_precision_no_choice_is_said_and_why() -> None:
    sentence = report.advice(measured(fp32=50))
    assert "unknown, because e5spark ran in fp32 only" in sentence
    assert "(it needs a prepared model)." in sentence
    assert "did not run in fp32" in report.advice(measured(bf16=50))
