"""Names as messages show them: no credential, and not much of what may be a text."""

import pytest

from e5spark.names import has_credentials, listed, redacted


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("s3a://AKIA:SECRET@bucket/docs", "s3a://bucket/docs"),
        ("s3a://AKIA:SEC/RET+x@bucket/docs", "s3a://bucket/docs"),
        ("s3a://AKIA:@bucket/docs", "s3a://bucket/docs"),
        ("https://host/docs?sig=SECRET&x=1", "https://host/docs"),
        ("The input s3a://A:SECRET@b/c is no table.", "The input s3a://b/c is no table."),
        ("s3a://A:SECRET@b/c and s3a://D:SECRET@e/f", "s3a://b/c and s3a://e/f"),
    ],
)
def test_credentials_of_a_path_are_never_shown(path: str, shown: str) -> None:
    assert redacted(path) == shown
    assert has_credentials(path) == ("@" in path)


@pytest.mark.parametrize(
    "path",
    [
        "/data/docs",
        "s3a://bucket/user@host/docs",
        "hdfs://host:9000/a@b",
        "abfss://container@account.dfs.core.windows.net/docs",
        "/data/part-?.parquet",
        "/data/y?ar=2026",
        "spark_catalog.db.docs",
    ],
)
def test_a_path_without_credentials_is_shown_whole(path: str) -> None:
    assert redacted(path) == path
    assert not has_credentials(path)


def test_names_are_quoted_cut_and_at_most_ten() -> None:
    assert listed(["id", "body"]) == "'id', 'body'"
    assert listed(["x" * 41]) == f"'{'x' * 39}…'"
    assert listed([f"c{number}" for number in range(12)]).endswith("'c9' and 2 more")
