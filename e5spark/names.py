"""Column names, table names and paths: quoted for SQL, and made safe to show in messages."""

import re
from collections.abc import Sequence

# The user's column names must not begin with this, in any case: e5spark adds columns that do.
RESERVED = "__e5spark"
_MAX_NAMES, _MAX_LENGTH = 10, 40
# Letters, digits and _, as Spark has them without quotes, or anything in backticks.
_TABLE = re.compile(r"(?:\w+|`(?:[^`]|``)+`)(?:\.(?:\w+|`(?:[^`]|``)+`))*")

_HIDDEN = "***"
# Repetitions have bounds: a message of a megabyte takes linear time, whatever is in it.
_USERS = (
    # A secret of S3 may contain slashes and begin like a port; a bucket has no port.
    re.compile(r"(\bs3[an]?://)[^/@:\s]{0,128}:[^@\s]{0,1024}@", re.IGNORECASE),
    # hdfs://host:9000/a@b has a port, and abfss://container@account no password.
    re.compile(r"(://)[^/@:\s]{0,128}:(?!\d{1,5}/)[^@\s]{0,1024}@"),
    re.compile(r"(\bhttps?://)[^/@:?#\s]{1,1024}@", re.IGNORECASE),
    re.compile(r"(\bjdbc:oracle:\w{1,16}:)[^@\s/]{1,128}/[^@\s]{1,1024}@", re.IGNORECASE),
)
_QUERY = re.compile(r"(://[^\s?'\"]{0,4096})\?[\w.%-]{1,256}=[^\s'\",;)]*")
# What a secret is called: fs.s3a.secret.key, fs.azure.account.key.ACCOUNT, X-Api-Key, AccountKey.
_STRONG = (
    r"(?:password|passwd|passphrase|pwd|secret(?:[._-]?access)?(?:[._-]?key)?"
    r"|(?:access|account|api|private|shared[._-]?access)[._-]?key(?:[._-]?id)?"
    r"|shared[._-]?access[._-]?signature|authorization)(?:[._-][\w.-]{0,128})?"
)
# n_tokens and tokenizer are other words.
_WEAK = r"(?:credentials?|token|(?<![a-z])sig|(?<![a-z])signature)"
_QUOTED = r"\"[^\"\n]{0,8192}(?:\"|$)|'[^'\n]{0,8192}(?:'|$)"
_SCHEME = r"(?:Bearer|Basic|Token|Digest|AWS4-HMAC-SHA256)"
_PLAIN = rf"\{{[^}}\n]{{1,8192}}\}}|(?:{_SCHEME}\s{{1,4}})?[^\s,;&'\")\]}}]{{1,8192}}"
_SEEN = r"(?![\"']?\*\*\*)"  # what is hidden already is left as it is
_SECRETS = (
    re.compile(
        r"(-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----)(?!\*\*\*).{1,4096}?(?=-----END|$)", re.DOTALL
    ),
    *(
        re.compile(pattern, re.IGNORECASE)
        for pattern in (
            rf"({_STRONG}[\"'`]?\s{{0,4}}=\s{{0,4}}){_SEEN}(?:{_QUOTED}|{_PLAIN})",
            rf"({_STRONG}[\"'`]\s{{0,4}}:\s{{0,4}}){_SEEN}(?:{_QUOTED}|{_PLAIN})",
            rf"({_STRONG}\s{{0,4}}:\s{{0,4}}){_SEEN}(?:{_QUOTED})",
            # "spark.x.secret.key: unknown key" is a sentence about a setting.
            rf"((?<!\.){_STRONG.replace('[._-]', '[_-]')}:\s{{0,4}}){_SEEN}(?:{_PLAIN})",
            rf"({_STRONG}[\"'`]?\s{{1,4}}(?:is|cannot be)\s{{1,4}}){_SEEN}(?:{_QUOTED})",
            rf"({_WEAK}\s{{0,4}}=\s{{0,4}}){_SEEN}(?:{_QUOTED}|{_PLAIN})",
            rf"({_WEAK}[\"'`]\s{{0,4}}[=:]\s{{0,4}}){_SEEN}(?:{_QUOTED}|{_PLAIN})",
            # Without the name of the header; a word of prose has no digit.
            r"(\b(?:Bearer|Basic)\s{1,4})(?=\S{0,64}[\d=])[\w.~+/=-]{16,8192}",
        )
    ),
    # By their look: AWS's key ids, tokens of the hub, GitHub, Databricks, Google and OpenAI, JWTs.
    re.compile(
        r"()\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|hf_[A-Za-z0-9]{30,64}|gh[oprsu]_[A-Za-z0-9]{36,255}"
        r"|github_pat_\w{40,255}|dapi[0-9a-f]{32}(?:-\d)?|AIza[\w-]{35}|sk-[A-Za-z0-9]{32,128}"
        r"|eyJ[\w-]{8,4096}\.[\w-]{8,4096}(?:\.[\w-]{0,4096})?)(?![A-Za-z0-9])"
    ),
)


def quoted(name: str) -> str:
    """Returns the column name in backticks, so that Spark does not split it at its dots."""
    return "`" + name.replace("`", "``") + "`"


def listed(names: Sequence[str]) -> str:
    """Returns column names for a message: at most 10, quoted, at most 40 characters each.

    Spark turns the first row of a CSV file without a header into column names, and texts are never
    logged.
    """
    parts = [
        repr(name if len(name) <= _MAX_LENGTH else f"{name[: _MAX_LENGTH - 1]}…")
        for name in names[:_MAX_NAMES]
    ]
    more = len(names) - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more else "")


def is_table_name(name: str) -> bool:
    """Returns whether a name is one of Spark's tables: parts with dots, quoted where they must be.

    Such a name is an identifier wherever it stands in a statement, and nothing else.
    """
    return _TABLE.fullmatch(name) is not None


def has_credentials(path: str) -> bool:
    """Returns whether a path has a user and a password, as in ``s3a://KEY:SECRET@bucket``."""
    return any(rule.search(path) for rule in _USERS)


def redacted(text: str) -> str:
    """Returns a path, or a text that contains paths and settings, without secrets.

    ``s3a://KEY:SECRET@bucket/x?sig=y`` becomes ``s3a://bucket/x``, and ``fs.s3a.secret.key = x``
    becomes ``fs.s3a.secret.key = ***``. A second time changes nothing.
    """
    for rule in _USERS:
        text = rule.sub(r"\1", text)
    text = _QUERY.sub(r"\1", text)
    for rule in _SECRETS:
        text = rule.sub(rf"\g<1>{_HIDDEN}", text)
    return text
