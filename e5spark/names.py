"""Column names as SQL takes them."""


def quoted(name: str) -> str:
    """Returns a column name that Spark does not take apart at its dots."""
    return "`" + name.replace("`", "``") + "`"
