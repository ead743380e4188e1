"""``python -m e5spark``: the command line."""

import sys

from e5spark.cli import main

if __name__ == "__main__":
    sys.exit(main())
