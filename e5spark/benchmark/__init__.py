"""The speed of e5spark on this machine, compared with the usual alternatives.

``run`` describes the machine, makes a model and texts, and runs the contenders in turn, each in a
process of its own. Only the command line imports this package.
"""

from e5spark.benchmark.report import check_plot, plot
from e5spark.benchmark.run import run
from e5spark.benchmark.settings import Settings, add_arguments, parse_settings

__all__ = ["Settings", "add_arguments", "check_plot", "parse_settings", "plot", "run"]
