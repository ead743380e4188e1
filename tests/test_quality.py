"""Gates and drift: every figure inside its range passes, and no other does."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5spark.errors import GateError
from e5spark.job.config import QualityConfig
from e5spark.job.figures import Figures
from e5spark.job.quality import (
    Gate,
    Quality,
    check_quality,
    gates,
    judge,
    judge_drift,
)
from e5spark.model.registry import CHECKPOINTS
from tests import minimal_job
from tests.tables import rows_of

CONFIG = QualityConfig(min_vectors=100)
BAND = (0.65, 0.95)
GOOD = Figures(
    vectors=1000,
    truncated=100,
    lowest_norm=0.9999,
    highest_norm=1.0001,
    pairs=1000,
    cosine_sum=800.0,
    distinct_texts=1000,
    distinct_vectors=990,
)


def all_gates(config=CONFIG, *, normalized=True, band=BAND):
    return gates(config, normalized=normalized, band=band, checkpoint="intfloat/e5-small-v2")


def failed(figures, config=CONFIG, **named):
    return {v.figure for v in judge(figures, all_gates(config, **named)) if not v.passed}


def test_good_vectors_pass_every_gate():
    assert failed(GOOD) == set()


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({"not_finite": 1}, "not_finite"),
        ({"zeros": 1}, "zeros"),
        ({"lowest_norm": 0.99}, "norm_error"),
        ({"highest_norm": 1.0011}, "norm_error"),
        ({"distinct_vectors": 700}, "equal_share"),
        ({"cosine_sum": 600.0}, "pair_cosine"),
        ({"cosine_sum": 960.0}, "pair_cosine"),
        ({"truncated": 900}, "truncated_share"),
    ],
)
def test_one_bad_figure_fails_its_gate_alone(change, gate):
    config = dataclasses.replace(CONFIG, max_truncated_share=0.5)
    assert failed(dataclasses.replace(GOOD, **change), config) == {gate}


def test_norms_are_judged_only_where_vectors_are_normalised():
    long = dataclasses.replace(GOOD, lowest_norm=8.0, highest_norm=12.0)
    assert failed(long) == {"norm_error"}
    assert failed(long, normalized=False) == set()


def test_few_vectors_are_not_judged_by_shares_and_cosines():
    bad = Figures(vectors=99, pairs=99, cosine_sum=99.0, distinct_texts=99, distinct_vectors=1)
    assert failed(bad) == set()
    assert failed(dataclasses.replace(bad, zeros=1)) == {"zeros"}
    assert failed(dataclasses.replace(bad, vectors=100)) == {"equal_share", "pair_cosine"}


def test_a_run_without_vectors_passes():
    assert failed(Figures()) == set()


def test_without_a_known_band_cosines_are_judged_only_by_the_config():
    low = dataclasses.replace(GOOD, cosine_sum=10.0)
    assert failed(low, band=None) == set()
    configured = dataclasses.replace(CONFIG, min_pair_cosine=0.1)
    assert failed(low, configured, band=None) == {"pair_cosine"}
    assert failed(GOOD, configured, band=None) == set()


def test_the_config_replaces_one_end_of_the_band():
    configured = dataclasses.replace(CONFIG, max_pair_cosine=0.75)
    (gate,) = [gate for gate in all_gates(configured) if gate.figure == "pair_cosine"]
    assert (gate.lowest, gate.highest) == (0.65, 0.75)
    assert gate.source == "the band of intfloat/e5-small-v2 and [quality]"
    both = dataclasses.replace(configured, min_pair_cosine=0.5)
    (gate,) = [gate for gate in all_gates(both) if gate.figure == "pair_cosine"]
    assert (gate.lowest, gate.highest, gate.source) == (0.5, 0.75, "[quality]")


def test_an_end_beyond_the_band_replaces_both_ends():
    above = all_gates(QualityConfig(min_vectors=1, min_pair_cosine=0.97))[-1]
    assert (above.lowest, above.highest, above.source) == (0.97, None, "[quality]")
    below = all_gates(QualityConfig(min_vectors=1, max_pair_cosine=0.2))[-1]
    assert (below.lowest, below.highest, below.source) == (None, 0.2, "[quality]")


def test_the_band_of_a_checkpoint_leaves_out_vectors_that_say_nothing():
    bands = {name: checkpoint.pair_cosine for name, checkpoint in CHECKPOINTS.items()}
    assert bands["intfloat/e5-small-v2"] == bands["intfloat/multilingual-e5-large"]
    # No E5, or its cosines are not published.
    assert bands["sentence-transformers/all-MiniLM-L6-v2"] is None
    for lowest, highest in filter(None, bands.values()):
        assert 0.5 < lowest < highest < 0.99


ends = st.one_of(st.none(), st.floats(-2, 2))


@given(cosine=st.floats(-1, 1), lowest=ends, highest=ends)
def test_a_figure_passes_exactly_if_it_lies_in_the_range(cosine, lowest, highest):
    figures = Figures(vectors=1, pairs=1, cosine_sum=cosine)
    (verdict,) = judge(figures, [Gate(figure="pair_cosine", lowest=lowest, highest=highest)])
    inside = (lowest is None or cosine >= lowest) and (highest is None or cosine <= highest)
    assert verdict.passed == inside
    assert bool(verdict.problem) != inside


@given(before=st.floats(0, 1), now=st.floats(0, 1), limit=st.floats(0, 1))
def test_drift_is_symmetric(before, now, limit):
    """Beyond rounding, moving up by a distance is the same as moving down by it."""
    config = QualityConfig(min_vectors=1, max_cosine_drift=limit)

    def passes(one, other):
        figures = Figures(vectors=1, pairs=1, cosine_sum=one)
        return all(v.passed for v in judge_drift(figures, {"pair_cosine": other}, config))

    if abs(abs(before - now) - limit) > 1e-9:
        assert passes(before, now) == passes(now, before) == (abs(before - now) <= limit)


def test_drift_is_not_judged_without_a_last_run_or_with_few_vectors():
    last = {**GOOD.as_dict(), "pair_cosine": 0.1, "truncated_share": None}
    assert judge_drift(GOOD, None, CONFIG) == ()
    few = dataclasses.replace(GOOD, vectors=99)
    assert judge_drift(few, last, CONFIG) == ()
    assert judge_drift(GOOD, last, dataclasses.replace(CONFIG, drift="ignore")) == ()
    verdicts = {verdict.figure: verdict.passed for verdict in judge_drift(GOOD, last, CONFIG)}
    assert verdicts == {"pair_cosine": False, "equal_share": True, "error_share": True}


def quality(figures=GOOD, last=None, drift="warn"):
    config = dataclasses.replace(CONFIG, drift=drift)
    return Quality(
        figures=figures,
        gates=judge(figures, all_gates()),
        drift=judge_drift(figures, last, config),
        drift_fails=drift == "fail",
        canaries="matched",
    )


def test_the_message_says_what_was_found_what_is_needed_and_what_to_do():
    bad = dataclasses.replace(GOOD, cosine_sum=990.0, zeros=3)
    with pytest.raises(GateError) as caught:
        check_quality(quality(bad), "s3a://KEY:SECRET@bucket/out")
    message = str(caught.value)
    assert "zeros is 3, and at most 0 is allowed. The model is broken" in message
    band = "pair_cosine is 0.99, and at most 0.95 is allowed (the band of intfloat/e5-small-v2)."
    assert band in message
    assert "set quality.min_pair_cosine" in message
    assert message.endswith("All rows are in s3a://bucket/out.")


def test_drift_warns_unless_it_is_told_to_fail():
    last = {**GOOD.as_dict(), "truncated_share": 0.5}
    warned, failing = quality(last=last), quality(last=last, drift="fail")
    check_quality(warned, "/out")
    sentence = (
        "truncated_share is 0.1, and at least 0.4 is needed (it was 0.5 in the last run). Look "
        "whether the input has changed in kind."
    )
    assert [warning.startswith(sentence) for warning in warned.warnings] == [True]
    assert failing.warnings == []
    with pytest.raises(GateError, match=r"truncated_share is 0\.1"):
        check_quality(failing, "/out")


def test_the_report_has_figures_verdicts_and_canaries():
    document = quality(last=GOOD.as_dict()).as_dict()
    assert list(document) == ["figures", "gates", "drift", "canaries"]
    assert document["figures"]["pair_cosine"] == 0.8
    assert document["gates"][0] == {
        "figure": "not_finite",
        "value": 0,
        "lowest": None,
        "highest": 0,
        "passed": True,
    }
    assert all(verdict["passed"] for verdict in document["drift"])


WRONG = [
    ("max_equal_share=1.5", "quality.max_equal_share is 1.5; it must be a share from 0 to 1."),
    ("max_truncated_share=nan", "quality.max_truncated_share is nan; it must be a share"),
    ("max_share_drift=-0.1", "quality.max_share_drift is -0.1; it must be a share from 0 to 1."),
    ("max_cosine_drift=-1", "quality.max_cosine_drift is -1.0; it must be 0 or more."),
    ("max_norm_error=nan", "quality.max_norm_error is nan; it must be 0 or more."),
    ("min_vectors=0", "quality.min_vectors is 0; it must be 1 or more."),
    ("min_vectors=1.5", "quality.min_vectors is 1.5; it must be a whole number."),
    ("min_pair_cosine=-2", "quality.min_pair_cosine is -2.0; it must be a cosine from -1 to 1."),
    ("canaries=1", "quality.canaries is 1; it must be true or false."),
    ("drift=stop", "quality.drift is 'stop'; it must be one of warn, fail, ignore."),
    ("canary=true", "unknown key 'canary' in [quality]. Did you mean 'canaries'?"),
]


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_a_wrong_value_of_quality_is_refused(tmp_path, override, message):
    refusal = minimal_job.refusal(
        lambda *overrides, more: minimal_job.load(tmp_path, *overrides, more=more),
        f"quality.{override}",
    )
    assert message in refusal


def test_a_smallest_cosine_above_the_largest_is_refused(tmp_path):
    more = "[quality]\nmin_pair_cosine = 0.9\nmax_pair_cosine = 0.8"
    refusal = minimal_job.refusal(
        lambda *overrides, more: minimal_job.load(tmp_path, *overrides, more=more), more=more
    )
    assert "quality.min_pair_cosine is 0.9 and quality.max_pair_cosine is 0.8" in refusal


# In a job

TEXTS = [f"The library on hill {number} opens at {number}" for number in range(30)]
EVERY_RUN = ("quality.min_vectors=1",)


@pytest.fixture
def embed(embed: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the job over columns of texts, and judges it however few they are."""

    def run(columns: dict[str, list[str | None]], *overrides: str) -> dict[str, Any]:
        ids = list(range(len(columns["body"])))
        pq.write_table(pa.table({"id": ids, **columns}), tmp_path / "docs.parquet")
        return embed(*EVERY_RUN, *overrides)

    return run


def test_figures_of_a_run_count_every_vector(embed: Callable[..., dict[str, Any]]) -> None:
    """The tokenizer has no upper case, so that every vector belongs to two texts."""
    report = embed({"body": [*TEXTS, *map(str.upper, TEXTS), None, ""]})
    figures = report["quality"]["figures"]
    assert (report["code"], report["chunks"]) == (4, 1)
    assert "equal_share is" in report["message"]
    assert (figures["vectors"], figures["not_finite"], figures["zeros"]) == (60, 0, 0)
    # At most a half: an engine may round equal texts differently in two batches.
    assert 0.2 < figures["equal_share"] <= 0.55
    assert -1 < figures["pair_cosine"] < 1
    assert abs(figures["lowest_norm"] - 1) < 1e-5 > abs(figures["highest_norm"] - 1)
    assert (figures["truncated_share"], figures["error_share"]) == (0, 0)


@pytest.mark.parametrize(
    ("overrides", "vectors"),
    [
        (
            (
                "model.output_type=ubinary",
                "model.long_text=split",
                "model.max_tokens=12",
                "model.overlap=1",
            ),
            None,
        ),
        (('embed.text=["body", "title"]', "model.normalize=false"), 60),
    ],
    ids=["windows of bits", "two columns"],
)
def test_figures_are_taken_from_windows_bits_and_several_columns(
    embed: Callable[..., dict[str, Any]], overrides: tuple[str, ...], vectors: int | None
) -> None:
    report = embed({"body": TEXTS, "title": TEXTS[::-1]}, *overrides, "quality.max_equal_share=1")
    figures = report["quality"]["figures"]
    assert report["code"] == 0, report
    assert figures["vectors"] == (vectors or report["rows"])
    assert figures["vectors"] > len(TEXTS)
    is_normalized = "model.normalize=false" not in overrides
    assert (figures["equal_share"] is not None) == is_normalized
    assert (abs(figures["highest_norm"] - 1) < 1e-5) == is_normalized
    judged = {verdict["figure"] for verdict in report["quality"]["gates"]}
    assert ("norm_error" in judged) == is_normalized


def test_a_gate_that_fails_and_drift_leave_the_rows_written(
    embed: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = ("model.max_tokens=32", "run.chunk_rows=20")
    assert embed({"body": TEXTS}, *limits)["code"] == 0
    longer = [*TEXTS, *(f"{text} " * 9 for text in TEXTS)]

    failed = embed({"body": longer}, *limits, "quality.max_truncated_share=0.5")
    assert (failed["code"], failed["error"], failed["rows"]) == (4, "GateError", 30)
    assert "truncated_share is 1, and at most 0.5 is allowed" in failed["message"]
    assert "Drift: truncated_share is 1, and at most 0.1 is allowed" in caplog.text
    assert len(rows_of(tmp_path / "out")) == 60

    # Nothing is left to do, so nothing is judged.
    again = embed({"body": longer}, *limits, "quality.max_truncated_share=0.5")
    assert (again["code"], again["model_rows"]) == (0, 0)
    # The last run that passed its gates is what the next one is compared with.
    short = embed({"body": [*longer, "short"]}, *limits, "quality.drift=fail")
    assert (short["code"], len(rows_of(tmp_path / "out"))) == (0, 61)
    last = [*longer, "short", "word " * 99]
    drifted = embed({"body": last}, *limits, "quality.drift=fail")
    assert (drifted["code"], len(rows_of(tmp_path / "out"))) == (4, 62)
    assert "(it was 0 in the last run)" in drifted["message"]
