"""Names as messages show them: no credential, and not much of what may be a text."""

import pytest

from e5spark.names import has_credentials, is_table_name, listed, redacted


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


# Texts as they reach messages, with PLANTED in place of a secret.
PLANTED = "PLANTED"
SECRETS = {
    "a password with slashes": f"s3a://AKIA:12/{PLANTED}@bucket/x",
    "a user's password": f"jdbc:postgresql://user:{PLANTED}@host:5432/db",
    "a token as the user": f"https://{PLANTED}@github.com/x",
    "a password of Oracle": f"jdbc:oracle:thin:scott/{PLANTED}@//host:1521/x",
    "a query": f"abfss://c@a.dfs.core.windows.net/x?sv=2024&sig={PLANTED}%3D",
    "a presigned URL": f"https://b.s3.amazonaws.com/x?X-Amz-Signature={PLANTED}&X-Amz-Date=1",
    "a SAS alone": f"sv=2024-01-01&ss=b&sig={PLANTED}%3D",
    "a setting": f"spark.hadoop.fs.s3a.secret.key={PLANTED}",
    "a setting of TOML": f'"fs.s3a.secret.key" = "{PLANTED} with a space"',
    "a setting of Python": f"{{'fs.s3a.access.key': '{PLANTED}'}}",
    "a setting of JSON": f'{{"fs.s3a.session.token": "{PLANTED}"}}',
    "a key of Azure": f"fs.azure.account.key.me.dfs.core.windows.net={PLANTED}==",
    "a connection string": f"AccountName=me;AccountKey={PLANTED}==;EndpointSuffix=x",
    "a shared access key": f"Endpoint=sb://x/;SharedAccessKey={PLANTED}",
    "a password of JDBC": f"jdbc:sqlserver://host:1433;user=sa;password={PLANTED};x=1",
    "a password in braces": f"jdbc:sqlserver://host;password={{a;{PLANTED}}};x=1",
    "a password of YAML": f"password: {PLANTED}",
    "a value of the wrong type": f"[spark] spark.sql.x.password cannot be '{PLANTED}': no",
    "a client's secret": f"clientSecret={PLANTED}",
    "a header": f"Authorization: Bearer {PLANTED}.x-y",
    "a header of JSON": f'"Authorization": "Basic {PLANTED}=="',
    "a header in lower case": f"authorization=Bearer {PLANTED}",
    "a signed header": f"Authorization: AWS4-HMAC-SHA256 Credential=x, Signature={PLANTED}",
    "an API key": f"X-Api-Key: {PLANTED}",
    "a token of the hub": f"HF_TOKEN={PLANTED}",
    "a private key": f"-----BEGIN RSA PRIVATE KEY-----\n{PLANTED}\n-----END RSA PRIVATE KEY-----",
}
SHAPES = [
    "AKIAIOSFODNN7EXAMPLE",
    "hf_" + "aB3" * 11 + "x",
    "ghp_" + "a1B2" * 9,
    "dapi" + "0a" * 16,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
]


@pytest.mark.parametrize("text", SECRETS.values(), ids=list(SECRETS))
def test_a_planted_secret_is_never_shown(text: str) -> None:
    for message in (text, f"The input {text} cannot be read: {text}.", f"{text} {text}"):
        shown = redacted(message)
        assert PLANTED not in shown
        assert redacted(shown) == shown


@pytest.mark.parametrize("secret", SHAPES)
def test_a_secret_is_known_by_its_look(secret: str) -> None:
    assert redacted(f"refused {secret}, again") == "refused ***, again"


@pytest.mark.parametrize(
    "text",
    [
        "s3a://bucket/date=2026-01-01/part-0.parquet",
        r"C:\Users\me@example.org\docs",
        "/home/me@example.org/docs",
        "max_tokens is 512; it must be a whole number, n_tokens = 3",
        "tokenizer=./dir, tokens=5, keys: 7",
        "its special token '[PAD]'; a token: see the model card",
        "hf_dataset/2026 and sk-learn-models-of-the-year-before-last",
        "Column 'secretary' is int; embed needs a string column.",
        "the key is 'id'; sort key=id",
        "--set input.option.fs.s3a.secret.key: unknown key 'option' in [input].",
        "Give access to the directory: it has no password.",
        "The output jdbc:oracle is not a path",
    ],
)
def test_what_is_no_secret_is_shown_whole(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("name", ["docs", "db.docs", "cat.`my db`.`a``b`", "delta.`/data/x y`"])
def test_a_name_of_a_table_has_parts_that_are_words_or_quoted(name: str) -> None:
    assert is_table_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        "a b",
        "docs; DROP TABLE docs",
        "docs -- x",
        "docs VERSION AS OF 1",
        "`a",
        "``",
        "a`b`",
        "docs\n",
        "range(5)",
        "`a`` UNION SELECT 1",
    ],
)
def test_anything_else_is_no_name_of_a_table(name: str) -> None:
    assert not is_table_name(name)


def test_names_are_quoted_cut_and_at_most_ten() -> None:
    assert listed(["id", "body"]) == "'id', 'body'"
    assert listed(["x" * 41]) == f"'{'x' * 39}…'"
    assert listed([f"c{number}" for number in range(12)]).endswith("'c9' and 2 more")
