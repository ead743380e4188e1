"""Every code block of the README is run; a text block after one is what it prints."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e5spark.model.registry import find
from tests import checkpoints

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODEL = "intfloat/multilingual-e5-small"
NEXT = "---- next block ----"


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / "README.md").read_text("utf-8"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A shell as the README assumes it, whose hub cache has a random checkpoint of its model."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / f"models--{MODEL.replace('/', '--')}"
    checkpoint, shape = find(MODEL), find(MODEL).shape
    checkpoints.bert_unigram(
        repository / "snapshots" / str(checkpoint.revision),
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        ffn=64,  # only layers and width are checked, and blocks are many
    )
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_CACHE": str(cache),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_blocks_are_of_a_kind_that_is_run():
    assert {language for language, _ in blocks()} == {"python", "text", "sh"}


def test_python_blocks_run_and_print_what_the_readme_says(environment, tmp_path):
    pieces = [code for language, code in blocks() if language == "python"]
    script = tmp_path / "readme.py"
    script.write_text(f"\nprint({NEXT!r})\n".join(pieces), "utf-8")
    printed = run([sys.executable, str(script)], environment).split(NEXT)
    expected = outputs()
    assert len(expected) == 2
    for number, text in expected.items():
        assert printed[number].strip() == text.strip()


def outputs() -> dict[int, str]:
    """What the README says is printed, by the number of the python block before it."""
    found = {}
    number = -1
    for language, code in blocks():
        if language == "python":
            number += 1
        elif language == "text":
            found[number] = code
    return found


def test_shell_blocks_run(environment):
    shutil.rmtree(ROOT / "build" / "readme", ignore_errors=True)
    (ROOT / "build" / "readme").mkdir(parents=True)
    for language, code in blocks():
        if language == "sh":
            run(["bash", "-euo", "pipefail", "-c", code], environment)
