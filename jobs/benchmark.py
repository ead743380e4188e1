"""python jobs/benchmark.py [--shape small] [--mix passages] ...: e5spark benchmark."""

import sys

from e5spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
