"""spark-submit jobs/run.py COMMAND ...: any command of e5spark; jobs/run.py --help lists them."""

import sys

from e5spark.cli import main

if __name__ == "__main__":
    sys.exit(main())
