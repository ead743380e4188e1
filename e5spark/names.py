"""Names as SQL takes them, and paths as a message may show them."""

import re

# Credentials are in scheme://user:password@host/path?query; a user alone is a container in Azure.
_USER_INFO = re.compile(r"(?<=://)[^/?#\s:@]*:[^/?#\s@]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\",;)]*")


def quoted(name: str) -> str:
    """Returns a column name that Spark does not take apart at its dots."""
    return "`" + name.replace("`", "``") + "`"


def redacted(text: str) -> str:
    """Returns a path, or a sentence with paths in it, without the credentials of its URIs.

    ``s3a://KEY:SECRET@bucket/x?sig=y`` becomes ``s3a://bucket/x``.
    """
    return _QUERY.sub(r"\1", _USER_INFO.sub("", text))
