"""The report of a run: the keys of its JSON document, its sums, its sentences and its gate."""

import dataclasses

import pytest

from e5spark.errors import GateError
from e5spark.job.report import Counts, RunReport, check_errors, total

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
    skipped=6,
    deleted=2,
    recovered=3,
    chunks=1,
    epoch=7,
)
REPORT = RunReport(
    counts=COUNTS,
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
    lost_tokens embedded skipped deleted recovered chunks epoch lost_token_share seconds
    texts_per_second tokens_per_second model dim fingerprint fingerprint_parts output versions
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
        "10 rows: 4 to embed, 6 unchanged, 2 removed, 3 recovered from an earlier run."
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
