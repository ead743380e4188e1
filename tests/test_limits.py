"""One row of 200 MB and 100,000 rows of nothing: the memory of a worker stays bounded."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.oracle import FP32_TOLERANCE, assert_close, reference

pytestmark = [pytest.mark.large, pytest.mark.spark]

MEGABYTES = 200
EMPTY = 100_000
SENTENCE = "The ferry leaves at seven unless the wind is stronger than forty knots. "
EMOJI = "\U0001f680 "
# Measured: 1.7 and 2.9 GB, of which 0.5 are the engine's. Arrow, Python and the prompt take copies
# of the text, and Python's have 4 bytes a character once a single emoji is in it.
BOUND_GB = {"ascii": 2.2, "emoji": 3.6}


def peak_of_workers(session: subprocess.Popen[str], stop: threading.Event) -> int:
    """Largest resident size that any Python worker under the process has had, in bytes."""
    peak = 0
    while not stop.wait(0.1):
        parents: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                parents[int(path.name)] = int(fields[1])
            except OSError:  # gone meanwhile
                continue
        for pid in parents:
            if session.pid not in ancestors(pid, parents):
                continue
            try:
                if b"pyspark.daemon" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    continue
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            peak = max(
                peak,
                *(
                    1024 * int(line.split()[1])
                    for line in status.splitlines()
                    # The kernel keeps the high-water mark, so nothing falls between two looks.
                    if line.startswith("VmHWM:")
                ),
                0,
            )
    return peak


def ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    pids: set[int] = set()
    while pid in parents and parents[pid] not in pids:
        pid = parents[pid]
        pids.add(pid)
    return pids


@pytest.mark.parametrize(
    "content", ["ascii", pytest.param("emoji", marks=pytest.mark.large_sample)]
)
def test_a_huge_row_and_many_empty_ones(tmp_path: Path, model: str, content: str) -> None:
    beginning = EMOJI if content == "emoji" else ""
    huge = beginning + SENTENCE * (MEGABYTES * 1_000_000 // len(SENTENCE))
    texts = ["", *[None, "", " "] * (EMPTY // 3), huge, "the last"]
    ids = np.arange(len(texts))
    (tmp_path / "in").mkdir()
    pq.write_table(
        pa.table({"id": ids, "text": pa.array(texts, pa.string())}),
        tmp_path / "in" / "texts.parquet",
        compression="zstd",
    )
    job = tmp_path / "job.toml"
    job.write_text(
        f"""
        [input]
        path = "{tmp_path}/in"
        columns = ["id"]
        [embed]
        text = "text"
        role = "passage"
        [model]
        name = "{model}"
        [output]
        path = "{tmp_path}/out"
        [spark]
        "spark.master" = "local[1]"
        "spark.driver.memory" = "4g"
        "spark.driver.host" = "127.0.0.1"
        "spark.ui.enabled" = "false"
        """
    )
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    environment.pop("SPARK_HOME", None)
    stop, peaks = threading.Event(), []
    with subprocess.Popen(
        [sys.executable, "-m", "e5spark", "embed", str(job)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as session:
        watcher = threading.Thread(target=lambda: peaks.append(peak_of_workers(session, stop)))
        watcher.start()
        stdout, stderr = session.communicate()
        stop.set()
        watcher.join()
    assert session.returncode == 0, stderr[-4000:]
    peak = peaks[0] / 1e9
    print(f"{MEGABYTES} MB in one row ({content}): peak of the worker {peak:.2f} GB")
    assert 0.1 < peak < BOUND_GB[content]

    document = json.loads(stdout.splitlines()[-1])
    counts = {name: document[name] for name in ("ok", "null_text", "empty_text", "error")}
    assert counts == {
        "ok": 2,
        "null_text": EMPTY // 3,
        "empty_text": 2 * (EMPTY // 3) + 1,
        "error": 0,
    }
    assert (document["rows_in"], document["rows"]) == (len(texts), len(texts))
    table = pq.read_table(tmp_path / "out").sort_by("id")
    assert table["id"].to_pylist() == ids.tolist()
    last = table.slice(len(texts) - 2).to_pylist()
    assert [row["truncated"] for row in last] == [True, False]
    assert last[0]["n_tokens"] > MEGABYTES * 100_000  # an estimate
    actual = np.array([row["embedding"] for row in last], np.float32)
    expected = reference(model, (huge[:10_000], "the last"), prompt="passage: ")
    assert_close(actual, expected, FP32_TOLERANCE)
