"""The task of the bundle: e5spark embed, as Databricks runs a Python file.

It raises SystemExit only if the run failed: a job does not look at the value that a function
returns, and may take a SystemExit of code 0 for a failure.
"""

import sys

from e5spark.cli import main

if code := main(["embed", *sys.argv[1:]]):
    raise SystemExit(code)
