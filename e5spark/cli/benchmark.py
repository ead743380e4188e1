"""``e5spark benchmark``: this machine, e5spark on it, and the alternatives."""

import argparse
from typing import Any

from e5spark import benchmark

add_arguments = benchmark.add_arguments


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the command and returns the document of its last line."""
    settings = benchmark.parse_settings(options)
    if options.plot is not None:
        benchmark.check_plot(options.plot)
    document = benchmark.run(settings)
    if options.plot is not None:
        benchmark.plot(document, options.plot)
    return document
