"""Where e5spark keeps what it makes once for a machine."""

import os
import tempfile

import pytest

from e5spark.model import digest


@pytest.fixture(autouse=True)
def homeless(monkeypatch, tmp_path):
    """A user without a home that can be written."""
    (tmp_path / "file").touch()
    monkeypatch.delenv("E5SPARK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    digest._temporary_directory.cache_clear()
    yield
    digest._temporary_directory.cache_clear()


def test_without_a_home_there_is_a_directory_that_only_its_user_can_write(tmp_path):
    directory = digest.cache_directory()
    assert directory == tmp_path / f"e5spark-{os.getuid()}"
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_is_somebody_elses_is_not_trusted(tmp_path, monkeypatch):
    squatted = tmp_path / f"e5spark-{os.getuid() + 1}"
    squatted.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: int(squatted.name.removeprefix("e5spark-")))
    directory = digest.cache_directory()
    assert directory != squatted
    assert directory.stat().st_mode & 0o777 == 0o700
    assert digest.cache_directory() == directory


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"e5spark-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert digest.cache_directory().resolve() != tmp_path / "elsewhere"
