"""The smallest job file that there is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from e5spark.errors import ConfigError
from e5spark.job import job_file
from e5spark.job.config import JobConfig

MINIMAL = """
[input]
path = "/data/docs"
[embed]
text = "body"
role = "passage"
[model]
name = "/models/e5"
[output]
path = "/data/vectors"
"""


def load(directory: Path, *overrides: str, more: str = "") -> JobConfig:
    """The config of a minimal job, with overrides and further lines."""
    path = directory / "job.toml"
    path.write_text(MINIMAL + more, "utf-8")
    return job_file.load(path, overrides)


def refusal(load: Callable[..., JobConfig], *overrides: str, more: str = "") -> str:
    """The message with which the job is refused."""
    with pytest.raises(ConfigError) as refused:
        load(*overrides, more=more)
    return str(refused.value)
