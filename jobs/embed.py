"""spark-submit jobs/embed.py conf/embed.toml [--set section.key=value ...]."""

import sys

from e5spark.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
