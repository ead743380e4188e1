"""The report of a run as one HTML page: pure functions from its JSON document, without Spark."""

from e5spark.page.build import html

__all__ = ["html"]
