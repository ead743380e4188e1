"""The speed of e5spark on this machine, compared with what people would use in its place.

``run`` describes the machine, makes a model and texts, and runs the contenders in turn, each in a
process of its own. Only the command line imports this package.
"""

from e5spark.benchmark.report import check_plot, plot
from e5spark.benchmark.run import run
from e5spark.benchmark.settings import Settings, add_arguments, settings_of

__all__ = ["Settings", "add_arguments", "check_plot", "plot", "run", "settings_of"]
