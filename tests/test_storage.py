"""Storage on local disk, alone and with processes that race, and through Hadoop's file systems."""

import errno
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from copy import copy
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from e5spark.errors import E5SparkError, InputError, TransientError
from e5spark.tables.storage import hadoop
from e5spark.tables.storage.hadoop import HadoopStorage
from e5spark.tables.storage.local import LocalStorage
from e5spark.tables.storage.open import open_storage
from e5spark.tables.storage.protocol import Storage
from tests.storage_contract import StorageContract

RACERS = 4
ROUNDS = 50
SIZE = 100_000


class TestLocalDisk(StorageContract):
    @pytest.fixture(params=["plain", "file:", "file://", "relative"])
    def files(self, spark: SparkSession, tmp_path: Path, request: pytest.FixtureRequest) -> Storage:
        prefix = {"file:": "file:", "file://": "file://"}.get(request.param, "")
        path = f"{prefix}{tmp_path}/with space %20/"
        if request.param == "relative":
            path = os.path.relpath(path)
        storage = open_storage(spark, path)
        assert isinstance(storage, LocalStorage)
        storage.put("probe", b"")
        assert (tmp_path / "with space %20" / "probe").is_file()
        storage.delete("probe")
        return storage


class TestHadoop(StorageContract):
    """Hadoop's local file system: its renames are not atomic, its calls are those of others."""

    @pytest.fixture(params=["hdfs", "s3a"])
    def files(
        self,
        spark: SparkSession,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        request: pytest.FixtureRequest,
    ) -> Storage:
        if request.param == "s3a":
            monkeypatch.setattr(hadoop, "_OBJECT_STORES", {"file"})
        return hadoop_storage(spark, f"file:{tmp_path}/root")

    @pytest.mark.parametrize("step", range(1, 5))
    def test_a_rename_that_paused_leaves_what_another_run_has_moved(
        self, files: HadoopStorage, step: int
    ) -> None:
        real = files._files
        steps = count(1)

        class Slow:
            """Another run makes the same move before one of this one's calls."""

            def __getattr__(self, name: str) -> Any:
                if next(steps) == step:
                    files.rename("staging/part-0", "part-0")
                return getattr(real, name)

        files.put("staging/part-0", b"vectors")
        slow = copy(files)
        slow._files = Slow()
        with suppress(TransientError):
            slow.rename("staging/part-0", "part-0")
        assert next(steps) > step
        assert files.read("part-0") == b"vectors"


def test_hadoop_lists_no_checksums(spark: SparkSession, tmp_path: Path) -> None:
    files = hadoop_storage(spark, f"file:{tmp_path}")
    files.put("d/a.json", b"1")
    assert (tmp_path / "d" / ".a.json.crc").is_file()
    assert files.list("d") == ["a.json"]


def test_an_unknown_scheme_is_refused(spark: SparkSession) -> None:
    with pytest.raises(InputError, match="nosuch://bucket/x cannot be used: No FileSystem for sch"):
        open_storage(spark, "nosuch://bucket/x")


def test_a_place_that_does_not_answer_is_transient(spark: SparkSession) -> None:
    # Port 1 refuses.
    files = open_storage(spark, "hdfs://127.0.0.1:1/x")
    with pytest.raises(TransientError, match=r"^hdfs://127\.0\.0\.1:1/x cannot be used: "):
        files.read("a.json")


@pytest.mark.parametrize("kind", ["local", "hadoop"])
def test_a_file_in_the_way_of_a_directory_is_refused(
    spark: SparkSession, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").touch()
    make = hadoop_storage if kind == "hadoop" else open_storage
    with pytest.raises(InputError, match="file"):
        make(spark, f"file:{tmp_path}").put("file/a.json", b"1")


def test_exactly_one_of_several_processes_creates(tmp_path: Path) -> None:
    with processes(RACERS) as pool:
        won = [
            list(attempts) for attempts in zip(*pool.map(racer, [tmp_path] * RACERS), strict=True)
        ]
    assert [sum(attempts) for attempts in won] == [1] * ROUNDS
    # The content is the winner's, whole.
    winners = [LocalStorage("", tmp_path).read(f"{number}.json") for number in range(ROUNDS)]
    assert {len(content or b"") for content in winners} == {SIZE}
    assert {len(set(content or b"")) for content in winners} == {1}


def test_no_reader_sees_a_part_of_a_put(tmp_path: Path) -> None:
    files = LocalStorage("", tmp_path)
    files.put("a.json", b"0" * SIZE)
    with processes(2) as pool:
        writers = [pool.submit(writer, tmp_path, letter) for letter in (b"1", b"2")]
        seen = set()
        while not all(future.done() for future in writers):
            content = files.read("a.json")
            assert content is not None
            seen.add((len(content), len(set(content))))
        for future in writers:
            future.result()
    assert seen == {(SIZE, 1)}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("method", ["put", "create"])
def test_a_writer_that_is_killed_leaves_the_old_content_or_the_new(
    tmp_path: Path, method: str
) -> None:
    files = LocalStorage("", tmp_path)
    spawn = multiprocessing.get_context("spawn")
    for kill in range(5):
        process = spawn.Process(target=endless_writer, args=(tmp_path, method))
        process.start()
        while files.read(f"{method}-{20 * (kill + 1)}") is None:
            assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        contents = [files.read(name) or b"" for name in files.list("")]
        assert {(len(content), len(set(content))) for content in contents} == {(SIZE, 1)}


def hadoop_storage(spark: SparkSession, path: str) -> HadoopStorage:
    conf = spark._jsparkSession.sessionState().newHadoopConf()
    return HadoopStorage(spark.sparkContext._gateway, conf, path)


def processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def racer(directory: Path) -> list[bool]:
    files = LocalStorage("", directory)
    # Whole files of one byte: a mixture of two racers' would show.
    content = bytes([os.getpid() % 256]) * SIZE
    meet(directory / "racers")
    return [files.create(f"{number}.json", content) for number in range(ROUNDS)]


def meet(directory: Path) -> None:
    """Returns once all racers are here."""
    directory.mkdir(exist_ok=True)
    (directory / str(os.getpid())).touch()
    while len(os.listdir(directory)) < RACERS:
        pass


def writer(directory: Path, letter: bytes) -> None:
    files = LocalStorage("", directory)
    for _ in range(ROUNDS):
        files.put("a.json", letter * SIZE)


def endless_writer(directory: Path, method: str) -> None:
    files = LocalStorage("", directory)
    for number in range(10_000):
        getattr(files, method)(f"{method}-{number}", b"1" * SIZE)
        getattr(files, method)("always", bytes([number % 256]) * SIZE)


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        (errno.ENOSPC, TransientError, "no space is left on the device. Free some space"),
        (errno.EDQUOT, TransientError, "no space is left on the device. Free some space"),
        (errno.EROFS, InputError, "Read-only file system.* Give another path"),
        (errno.EACCES, InputError, "Permission denied.* Give another path"),
        (errno.EIO, TransientError, "Start the same command again"),
    ],
)
def test_a_disk_that_refuses_says_whether_to_start_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[E5SparkError],
    sentence: str,
) -> None:
    def refuse(file: int) -> None:
        raise OSError(code, os.strerror(code))

    files = LocalStorage("s3://KEY:SECRET@b", tmp_path)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(kind, match=sentence) as caught:
        files.put("a.json", b"1")
    assert "SECRET" not in str(caught.value)
    assert files.list("") == []
