"""jobs/large_runs.py counts what its runs embed, and what they leave in the table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import REPOSITORY, python_path

ROWS = 3000


@pytest.mark.large
@pytest.mark.usefixtures("jvm")
def test_three_runs_embed_all_none_and_one_row_in_a_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path())
    command = [sys.executable, "jobs/large_runs.py", "--rows", str(ROWS), "--work", str(tmp_path)]
    completed = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=600
    )
    figures = json.loads(completed.stdout.splitlines()[-1])["figures"]
    assert [figure["embedded"] for figure in figures] == [ROWS, 0, ROWS // 1000]
    assert [figure["rows"] for figure in figures] == [ROWS] * 3
    for name in ("seconds", "driver_bytes", "jvm_bytes", "heap_bytes", "files", "state_files"):
        assert all(figure[name] > 0 for figure in figures), name
    assert [figure["worker_bytes"] > 0 for figure in figures] == [True, False, True]
    assert list(tmp_path.iterdir()) == []
