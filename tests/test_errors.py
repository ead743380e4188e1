import pickle

import pytest

from e5spark import errors
from e5spark.errors import E5SparkError, ModelError, TextError, TransientError


def subclasses(kind):
    return [
        kind,
        *(descendant for child in kind.__subclasses__() for descendant in subclasses(child)),
    ]


ALL = subclasses(E5SparkError)

PYTHON_EXCEPTION = """
  An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "/opt/e5spark/spark/worker.py", line 200, in _encoder
    files = locate(spec)
            ^^^^^^^^^^^^
e5spark.errors.ModelError: There is no model directory '/models/e5'; ship it: see the docs.
"""

STAGE_FAILURE = f"""Job aborted due to stage failure: Task 0 in stage 1.0 failed 4 times, \
most recent failure: Lost task 0.3 in stage 1.0 (TID 7): \
org.apache.spark.api.python.PythonException: {PYTHON_EXCEPTION.strip()}

\tat org.apache.spark.api.python.BasePythonRunner.handlePythonException(PythonRunner.scala:581)
Driver stacktrace:
"""

CHAINED = """Traceback (most recent call last):
  File "worker.py", line 1, in f
e5spark.errors.TransientError: The hub did not answer.

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "worker.py", line 2, in f
e5spark.errors.ModelError: The checkpoint is incomplete.
"""


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("E5SparkError", 1),
        ("OptionError", 2),
        ("ConfigError", 2),
        ("ModelError", 2),
        ("InputError", 3),
        ("ColumnError", 3),
        ("TextError", 3),
        ("GateError", 4),
        ("ConflictError", 5),
        ("TransientError", 75),
    ],
)
def test_exit_code(name, code):
    assert getattr(errors, name).exit_code == code


def test_every_error_is_in_the_tree_of_the_module_s_docstring():
    assert errors.__doc__ is not None
    for kind in ALL:
        assert f"{kind.__name__} " in errors.__doc__
        assert str(kind.exit_code) in errors.__doc__


@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_pickling(kind):
    copy = pickle.loads(pickle.dumps(kind("No column 'body'; it has id, text.")))
    assert type(copy) is kind
    assert str(copy) == "No column 'body'; it has id, text."


@pytest.mark.parametrize("kind", ALL)
def test_a_printed_error_is_found_again(kind):
    error = errors.from_text(
        f"Traceback (most recent call last):\n{kind.__module__}."
        f"{kind.__name__}: Why it failed: x: y.\n"
    )
    assert type(error) is kind
    assert str(error) == "Why it failed: x: y."


@pytest.mark.parametrize("text", [PYTHON_EXCEPTION, STAGE_FAILURE], ids=["python", "stage"])
def test_the_error_of_a_worker_is_found_in_what_spark_raises(text):
    error = errors.from_text(text)
    assert isinstance(error, ModelError)
    assert str(error) == "There is no model directory '/models/e5'; ship it: see the docs."


def test_of_a_chain_the_last_error_is_found():
    error = errors.from_text(CHAINED)
    assert isinstance(error, ModelError)
    assert str(error) == "The checkpoint is incomplete."


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ValueError: no",
        "someone wrote e5spark.errors.ModelError: in the middle of a line",
        "other.e5spark.errors.ModelError: not ours",
    ],
)
def test_a_text_without_an_e5spark_error_gives_none(text):
    assert errors.from_text(text) is None


def test_an_error_that_this_version_does_not_know_is_still_an_e5spark_error():
    error = errors.from_text("e5spark.errors.LaterError: from a newer worker.")
    assert type(error) is E5SparkError
    assert str(error) == "from a newer worker."


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  ", " \n"])
def test_a_message_is_one_line_so_that_all_of_it_comes_back_from_a_worker(end):
    error = TextError(f"texts[3] could not be encoded:{end}shapes{end}differ.{end}")
    assert str(error) == "texts[3] could not be encoded: shapes differ."
    parsed = errors.from_text(
        f"Traceback (most recent call last):\ne5spark.errors.TextError: {error}\n\tat x"
    )
    assert str(parsed) == str(error)


def test_spaces_inside_a_message_are_kept():
    assert str(TransientError("column 'a  b' is gone")) == "column 'a  b' is gone"


@pytest.mark.parametrize(
    ("last_line", "message"),
    [
        (
            "ModuleNotFoundError: No module named 'pyarrow'",
            "The package pyarrow is not installed on an executor. Run pip install e5spark in the",
        ),
        (
            "pyspark.errors.exceptions.base.PySparkImportError: [PACKAGE_NOT_INSTALLED] PyArrow >= "
            "15.0.0 must be installed; however, it was not found.",
            "The package pyarrow is not installed on an executor. Run pip install e5spark in the",
        ),
        (
            "pyspark.errors.exceptions.base.PySparkImportError: [UNSUPPORTED_PACKAGE_VERSION] "
            "PyArrow >= 15.0.0 must be installed; however, your version is 4.0.1.",
            "The package pyarrow is 4.0.1 on an executor; 15.0.0 or later is needed. Run pip "
            "install --upgrade pyarrow in the",
        ),
        (
            "ModuleNotFoundError: No module named 'torch.nn'",
            "The package torch is not installed on an executor. Run pip install 'e5spark[torch]' "
            "in the Python that Spark's workers run, or set spark.pyspark.python to one that has "
            "it. A model made with e5spark prepare needs only openvino.",
        ),
        ("ModuleNotFoundError: No module named 'openvino'", "Run pip install 'e5spark[openvino]'"),
        ("ModuleNotFoundError: No module named 'e5spark'", "Run pip install e5spark"),
    ],
)
def test_a_package_that_a_worker_lacks_is_named_with_its_fix(last_line, message):
    text = PYTHON_EXCEPTION.partition("e5spark.errors")[0] + last_line + "\n\n\tat org.apache"
    error = errors.from_text(text)
    assert type(error) is errors.OptionError
    assert message in str(error)


def test_our_own_error_takes_precedence_over_a_missing_package():
    text = f"ModuleNotFoundError: No module named 'torch'\n{PYTHON_EXCEPTION}"
    assert isinstance(errors.from_text(text), ModelError)


@pytest.mark.parametrize(
    "text",
    [
        "ModuleNotFoundError: No module named 'pyarrows'",
        "ModuleNotFoundError: No module named 'users_own'",
        "No module named 'torch'",
    ],
)
def test_a_package_that_e5spark_does_not_need_is_not_ours_to_explain(text):
    assert errors.missing_package(text) is None
