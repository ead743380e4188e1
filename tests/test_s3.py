"""An S3-like store for real: moto on loopback, through hadoop-aws.

`make s3` installs moto in an environment of its own, because botocore does not take the dateutil
that e5spark is tested with. hadoop-aws comes without its bundle of every AWS service, 640 MB; the
parts that s3a uses are 18 MB.
"""

import multiprocessing
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count

import pytest
from pyspark.sql import SparkSession

from e5spark.errors import ConflictError, InputError
from e5spark.tables.ledger.lock import acquire
from e5spark.tables.storage.hadoop import HadoopStorage
from e5spark.tables.storage.open import open_storage
from e5spark.tables.storage.protocol import Storage
from tests.cluster import REPOSITORY, SPARK_HOME
from tests.storage_contract import StorageContract

pytestmark = pytest.mark.s3

MOTO = REPOSITORY / ".venv" / "moto" / "bin" / "python"
HADOOP = "3.4.2"
AWS_SDK = "2.29.52"  # what that Hadoop is built with
ROUNDS = 20

_numbers = count(1)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a store with one bucket."""
    log = tmp_path_factory.mktemp("moto") / "log.txt"
    server = [str(MOTO), str(REPOSITORY / "tests" / "s3_server.py")]
    with (
        log.open("wb") as errors,
        subprocess.Popen(server, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line, log.read_text()
            url = f"http://127.0.0.1:{line.split()[-1].rstrip('.')}"
            urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
            yield url
        finally:
            process.kill()


@pytest.fixture(scope="module")
def spark(endpoint: str) -> Iterator[SparkSession]:
    """A session with s3a; no other test of this run may have started one before."""
    session = s3_session(endpoint)
    yield session
    session.stop()


@pytest.fixture
def place() -> str:
    """A path that no test has used."""
    return f"s3a://bucket/test {next(_numbers)}"


class TestS3(StorageContract):
    @pytest.fixture
    def files(self, spark: SparkSession, place: str) -> Storage:
        storage = open_storage(spark, place)
        assert isinstance(storage, HadoopStorage)
        return storage


def test_the_jars_are_those_of_the_hadoop_that_spark_has() -> None:
    assert (SPARK_HOME / "jars" / f"hadoop-client-api-{HADOOP}.jar").is_file()


def test_exactly_one_of_two_processes_creates(
    spark: SparkSession, endpoint: str, place: str
) -> None:
    with processes() as pool:
        other = pool.submit(race, endpoint, place, 2)
        mine = create_all(open_storage(spark, place), 1)
        theirs = other.result()
    assert [sum(attempts) for attempts in zip(mine, theirs, strict=True)] == [1] * ROUNDS
    content = [open_storage(spark, place).read(f"{number}.json") for number in range(ROUNDS)]
    assert content == [b"1" * 1000 if won else b"2" * 1000 for won in mine]


def test_a_second_run_of_another_process_is_refused(
    spark: SparkSession, endpoint: str, place: str
) -> None:
    with processes() as pool, acquire(open_storage(spark, place)) as held:
        assert pool.submit(refused, endpoint, place).result()
        held.check()
    assert acquire(open_storage(spark, place)).epoch == 2


def test_a_bucket_that_is_not_there_is_no_empty_output(spark: SparkSession) -> None:
    files = open_storage(spark, "s3a://nowhere/x")
    with pytest.raises(InputError, match="nowhere"):
        files.put("a.json", b"1")


def test_spark_reads_what_it_wrote(spark: SparkSession, place: str) -> None:
    spark.range(1000).write.parquet(f"{place}/table")
    files = open_storage(spark, f"{place}/table")
    assert files.read("_SUCCESS") is not None
    assert spark.read.parquet(f"{place}/table").count() == 1000


def s3_session(endpoint: str) -> SparkSession:
    assert SparkSession.getActiveSession() is None, "pytest -m s3 alone: jars come at the start"
    packages = [
        f"org.apache.hadoop:hadoop-aws:{HADOOP}",
        f"software.amazon.awssdk:s3-transfer-manager:{AWS_SDK}",
        f"software.amazon.awssdk:sts:{AWS_SDK}",
    ]
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.jars.excludes": "software.amazon.awssdk:bundle",
        "spark.jars.packages": ",".join(packages),
        "spark.log.level": "ERROR",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.hadoop.fs.s3a.access.key": "any",
        "spark.hadoop.fs.s3a.attempts.maximum": "2",
        "spark.hadoop.fs.s3a.endpoint": endpoint,
        "spark.hadoop.fs.s3a.endpoint.region": "us-east-1",
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.secret.key": "any",
    }
    return SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()


def processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def race(endpoint: str, place: str, name: int) -> list[bool]:
    return create_all(open_storage(s3_session(endpoint), place), name)


def create_all(files: Storage, name: int) -> list[bool]:
    """Meets the other process before each file."""
    won = []
    for number in range(ROUNDS):
        files.put(f"round-{number}/{name}", b"")
        while len(files.list(f"round-{number}")) < 2:
            time.sleep(0.01)
        won.append(files.create(f"{number}.json", str(name).encode() * 1000))
    return won


def refused(endpoint: str, place: str) -> bool:
    try:
        acquire(open_storage(s3_session(endpoint), place))
    except ConflictError:
        return True
    return False
