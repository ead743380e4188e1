"""How fast e5spark is on this machine, beside what people would use in its place.

``run`` describes the machine, makes a model and texts, and lets the contenders run in turn, each
in a process of its own. Nothing else in e5spark imports this package but the command line.
"""

from e5spark.benchmark.report import check_plot, plot
from e5spark.benchmark.run import run
from e5spark.benchmark.settings import Settings, add_arguments, settings_of

__all__ = ["Settings", "add_arguments", "check_plot", "plot", "run", "settings_of"]
