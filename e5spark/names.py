"""Column names in SQL."""


def quoted(name: str) -> str:
    """Returns the column name in backticks, so that Spark does not split it at its dots."""
    return "`" + name.replace("`", "``") + "`"
