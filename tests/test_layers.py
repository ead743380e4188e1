"""What an import must not load: the linter reads the code, this test looks at sys.modules."""

import subprocess
import sys

import pytest

ENGINES = {"torch", "transformers", "openvino"}
SPARK = {"pyspark", "py4j"}
HEAVY = {*ENGINES, *SPARK, "numpy", "pandas", "pyarrow", "tokenizers", "huggingface_hub"}
LIST_LOADED = "import sys, {}; print(*{{name.partition('.')[0] for name in sys.modules}})"


def loaded_by(module):
    command = [sys.executable, "-c", LIST_LOADED.format(module)]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("e5spark", HEAVY),
        ("e5spark.job.job_file", HEAVY - {"numpy"}),
        ("e5spark.model.recipe", ENGINES | SPARK),
        ("e5spark.encoder", ENGINES | SPARK),
        ("e5spark.encoder.verify", ENGINES | SPARK),
        ("e5spark.encoder.prepare", ENGINES | SPARK),
        ("e5spark.spark", ENGINES | {"pandas"}),
        ("e5spark.spark.embedder", ENGINES),
        ("e5spark.spark.worker", ENGINES | {"pandas"}),
        ("e5spark.search.neighbors", ENGINES | {"pandas"}),
        ("e5spark.cli", ENGINES),
    ],
)
def test_importing(module, never):
    loaded = loaded_by(module)
    assert "e5spark" in loaded
    assert not loaded & never


def test_a_command_loads_no_package_of_another_command():
    command = "e5spark.cli; e5spark.cli.main(['embed', 'missing.toml'])"
    loaded = loaded_by(command)
    assert "pyspark" in loaded
    assert not loaded & {*ENGINES, "pandas", "tokenizers"}
