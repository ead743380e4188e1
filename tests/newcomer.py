"""What a newcomer runs on a cluster, in one driver, so that Spark starts once.

spark-submit tests/newcomer.py COMMANDS, a JSON list of e5spark's arguments for each command. The
last line says where an executor's packages came from.
"""

import json
import sys
from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyspark.sql import SparkSession

PACKAGES = ("e5spark", "openvino", "tokenizers", "numpy", "pyarrow", "pandas")
ABSENT = ("torch", "transformers", "huggingface_hub")


def main() -> int:
    from e5spark import cli

    spark = SparkSession.builder.getOrCreate()
    for command in json.loads(sys.argv[1]):
        code = cli.main(command)
        if code:
            return code
    rows = spark.range(1).mapInArrow(origins, "document string").collect()
    print(rows[0].document)
    return 0


def origins(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The files that packages of an executor come from, and what it does not have."""
    import importlib.util
    import os

    files = {name: importlib.util.find_spec(name) for name in (*PACKAGES, *ABSENT)}
    for batch in batches:
        if batch.num_rows:
            document = {
                "directory": os.getcwd(),
                "interpreter": sys.executable,
                "files": {name: str(spec.origin) for name, spec in files.items() if spec},
            }
            yield pa.RecordBatch.from_pydict({"document": [json.dumps(document)]})


if __name__ == "__main__":
    sys.exit(main())
