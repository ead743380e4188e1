"""Every error that e5spark raises on purpose.

    E5SparkError                    exit code 1
    ├── OptionError                 2   an option has a wrong value
    │   └── ConfigError             2   a job file or a command line is wrong
    ├── ModelError                  2   a checkpoint is unknown, absent, damaged or altered
    ├── InputError                  3   the input table breaks its contract
    │   └── ColumnError             3   a column is missing, has the wrong type or is taken
    ├── TextError                   3   a text cannot be encoded
    ├── GateError                   4   the run finished, but its result must not be used as it is
    ├── ConflictError               5   the output exists, or holds other vectors
    └── TransientError              75  the same command may succeed later

Each class takes one message: extra constructor arguments would not survive pickling between a
worker and the driver. Executor errors reach the driver as text only, inside PySpark's
``PythonException``; ``from_text`` turns that text into e5spark's error again. A traceback does not
mark the end of a message, so a message is one line: line breaks, as in a quoted error, become
spaces. A message has no secrets, whatever it quotes: see ``e5spark.names.redacted``.
"""

import re
import sys

from e5spark.names import redacted

# Messages have some hundred characters, unless they quote a value of a damaged file.
_LONGEST = 3000


class E5SparkError(Exception):
    """The base class: catches every error that e5spark raises on purpose."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        lines = filter(None, map(str.strip, message.splitlines()))
        super().__init__(_shortened(redacted(" ".join(lines))))


def _shortened(message: str) -> str:
    """The beginning, which says what was found, and the end, which says what to do."""
    if len(message) <= _LONGEST:
        return message
    return f"{message[: _LONGEST // 2]} [...] {message[-_LONGEST // 3 :]}"


class OptionError(E5SparkError, ValueError):
    """An option has a wrong value: of the wrong type, out of range, or in conflict with another."""

    exit_code = 2


class ConfigError(OptionError):
    """A job file or a command line is wrong."""


class ModelError(E5SparkError, ValueError):
    """A checkpoint is unknown, absent, damaged, or not what the run was planned with."""

    exit_code = 2


class InputError(E5SparkError, ValueError):
    """The input table cannot be read or breaks its contract."""

    exit_code = 3


class ColumnError(InputError):
    """A column is missing, has the wrong type, or its name is taken."""


class TextError(InputError):
    """A text cannot be encoded."""


class GateError(E5SparkError):
    """The good rows are stored, but the run must not count as a success."""

    exit_code = 4


class ConflictError(E5SparkError):
    """The output already exists, or holds vectors that must not be mixed with this run's."""

    exit_code = 5


class TransientError(E5SparkError):
    """An external system failed temporarily; the same command may succeed later."""

    exit_code = 75


# The last match counts: a chained traceback ends with the error that stopped the task.
# Spark indents what an interpreter that did not start has written.
_RAISED = re.compile(r"^ *e5spark\.errors\.(\w+): (.+?)$", re.MULTILINE)


# A worker's traceback that names a missing package: Python's own error, or PySpark's check.
_MISSING = re.compile(
    r"ModuleNotFoundError: No module named '(\w+)"
    r"|PySparkImportError: \[(?:PACKAGE_NOT_INSTALLED|UNSUPPORTED_PACKAGE_VERSION)\] "
    r"(\w+) >= (\S+) must be installed; however, (?:it was not found|your version is (\S+)\.)"
)
# How to install what e5spark needs on an executor.
_INSTALL = {
    **dict.fromkeys(["numpy", "pandas", "pyarrow", "tokenizers", "huggingface_hub"], "e5spark"),
    **dict.fromkeys(["torch", "transformers", "safetensors"], "'e5spark[torch]'"),
    "openvino": "'e5spark[openvino]'",
    "e5spark": "e5spark",
}


def missing_package(text: str) -> OptionError | None:
    """Returns an error that names the package missing from an executor's Python, or None.

    Only packages that e5spark needs are recognised; any other is the user's own.

    Args:
        text: The traceback of a Python worker.
    """
    matches = list(_MISSING.finditer(text))
    for match in reversed(matches):
        module, package, minimum, version = match.groups()
        name = (module or package).lower()
        if name not in _INSTALL:
            continue
        problem = (
            f"The package {name} is {version} on an executor; {minimum} or later is needed."
            if version
            else f"The package {name} is not installed on an executor."
        )
        remedy = f"Run pip install {'--upgrade ' + name if version else _INSTALL[name]} in the "
        return OptionError(
            f"{problem} {remedy}Python that Spark's workers run, or set spark.pyspark.python to "
            f"one that has it.{_alternative(name)}"
        )
    return None


def _alternative(name: str) -> str:
    if name in ("torch", "transformers", "safetensors"):
        return " A model made with e5spark prepare needs only openvino."
    return ""


def from_text(text: str) -> E5SparkError | None:
    """Returns the last e5spark error printed in a traceback, or None.

    A package missing on a worker counts as an error too; see ``missing_package``.

    Args:
        text: The Python traceback in PySpark's ``PythonException``.
    """
    matches = _RAISED.findall(text)
    if not matches:
        return missing_package(text)
    name, message = matches[-1]
    kind = getattr(sys.modules[__name__], name, E5SparkError)
    error: E5SparkError = kind(message)
    return error
