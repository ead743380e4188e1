"""The report of a run: the keys of its JSON document, its sums, its sentences and its gate."""

import dataclasses

import pytest

from e5spark.errors import GateError
from e5spark.job.config import QualityConfig
from e5spark.job.figures import Figures
from e5spark.job.quality import Gate, Quality, judge, judge_drift
from e5spark.job.report import Counts, RunReport, check_errors, check_gates, total

COUNTS = Counts(
    rows_in=10,
    duplicates=0,
    rows=4,
    ok=2,
    null_text=1,
    empty_text=0,
    error=1,
    truncated=1,
    already_prompted=0,
    tokens=100,
    lost_tokens=25,
    embedded=4,
    refreshed=1,
    skipped=5,
    deleted=2,
    recovered=3,
    chunks=1,
    epoch=7,
)
QUALITY = Quality(
    figures=Figures(vectors=2, zeros=1),
    gates=judge(Figures(vectors=2, zeros=1), [Gate(figure="zeros", highest=1)]),
    drift=(),
    drift_fails=False,
    canaries="matched",
)
REPORT = RunReport(
    counts=COUNTS,
    quality=QUALITY,
    seconds=2.0,
    model="intfloat/e5-small-v2",
    dim=384,
    fingerprint="f" * 64,
    fingerprint_parts={"dim": 384},
    output="s3a://KEY:SECRET@bucket/out",
    versions={"e5spark": "0"},
)
KEYS = """
    rows_in duplicates rows ok null_text empty_text error truncated already_prompted tokens
    lost_tokens embedded refreshed skipped deleted recovered chunks epoch lost_token_share seconds
    texts_per_second tokens_per_second model dim fingerprint fingerprint_parts output versions
    quality
""".split()  # noqa: SIM905


def test_the_document_has_these_keys_in_this_order() -> None:
    document = REPORT.as_dict()
    assert list(document) == KEYS
    assert document["output"] == "s3a://bucket/out"
    assert (document["lost_token_share"], document["texts_per_second"]) == (0.25, 1.0)
    assert document["tokens_per_second"] == 37.5


def test_only_a_stream_reports_micro_batches() -> None:
    stream = dataclasses.replace(
        REPORT, counts=total([COUNTS, dataclasses.replace(COUNTS, rows_in=5)], recovered=9)
    )
    document = stream.as_dict()
    assert (document["micro_batches"], document["rows_in"], document["ok"]) == (2, 15, 4)
    # Of the run, and not of its parts.
    assert (document["epoch"], document["recovered"]) == (7, 9)


def test_a_report_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        REPORT.seconds = 1.0  # type: ignore[misc]


def test_the_sentences_say_each_count_and_no_credential() -> None:
    first, second, third = REPORT.sentences()
    assert first == (
        "10 rows: 4 to embed, 1 refreshed, 5 unchanged, 2 removed, 3 recovered from an earlier run."
    )
    assert "2 embedded, 1 null, 0 empty, 1 errors; 1 truncated (25.00 % of all tokens" in second
    assert third.endswith("Vectors of 384 dimensions are in s3a://bucket/out.")
    duplicates = dataclasses.replace(COUNTS, duplicates=5)
    assert "5 further rows had a duplicate id" in " ".join(
        dataclasses.replace(REPORT, counts=duplicates).sentences()
    )


def test_errors_are_a_share_of_all_texts_of_the_input() -> None:
    check_errors(REPORT, 0.1)
    with pytest.raises(GateError, match="1 of 10 texts could not be embedded"):
        check_errors(REPORT, 0.09)


def test_all_gates_that_failed_are_in_one_message() -> None:
    check_gates(REPORT, 0.1)
    failed = judge(QUALITY.figures, [Gate(figure="zeros", highest=0)])
    broken = dataclasses.replace(REPORT, quality=dataclasses.replace(QUALITY, gates=failed))
    with pytest.raises(GateError) as caught:
        check_gates(broken, 0.0)
    message = str(caught.value)
    assert "1 of 10 texts could not be embedded" in message
    assert "zeros is 1, and at most 0 is allowed" in message
    with pytest.raises(GateError, match=r"^The vectors of this run do not pass \[quality\]"):
        check_gates(broken, 0.1)


def test_drift_that_does_not_fail_the_run_is_in_the_log() -> None:
    figures = Figures(vectors=1000, truncated=900)
    drift = judge_drift(figures, {"truncated_share": 0.1}, QualityConfig())
    drifting = dataclasses.replace(REPORT, quality=dataclasses.replace(QUALITY, drift=drift))
    assert drifting.sentences()[-1].startswith("Drift: truncated_share is 0.9, and at most 0.2")
