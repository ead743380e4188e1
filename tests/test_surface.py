"""The public names: a change of this list is a change for users, and goes into CHANGELOG.md."""

import inspect
import re
import subprocess
import sys

import pytest

import e5spark
import e5spark.encoder
import e5spark.errors
import e5spark.search
import e5spark.spark

SURFACE = {
    "e5spark": [
        "E5Embedder",
        "Encoder",
        "__version__",
        "embed",
        "embedding_udf",
        "errors",
        "nearest",
    ],
    "e5spark.search": ["nearest"],
    "e5spark.spark": ["E5Embedder", "embed", "embedding_udf"],
    "e5spark.encoder": ["Encoder", "Encoding", "LoadedModel", "load"],
}
ERRORS = [
    "ColumnError",
    "ConfigError",
    "ConflictError",
    "E5SparkError",
    "GateError",
    "InputError",
    "ModelError",
    "OptionError",
    "TextError",
    "TransientError",
]


@pytest.mark.parametrize("module", SURFACE)
def test_the_exported_names_are_these(module):
    assert sorted(sys.modules[module].__all__) == SURFACE[module]


@pytest.mark.parametrize("module", SURFACE)
def test_every_exported_name_exists_and_is_documented(module):
    for name in SURFACE[module]:
        exported = getattr(sys.modules[module], name)
        assert isinstance(exported, str) or inspect.getdoc(exported), name
        assert name in dir(sys.modules[module])


def test_every_public_name_is_in_the_docstring_of_the_package():
    for name in e5spark.__all__:
        assert name.startswith("_") or f"``{name}``" in e5spark.__doc__


def test_the_error_classes_are_these():
    kinds = [
        name
        for name, kind in vars(e5spark.errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    ]
    assert sorted(kinds) == ERRORS


def test_the_names_are_those_of_the_packages_behind_them():
    assert e5spark.embed is e5spark.spark.embed
    assert e5spark.embedding_udf is e5spark.spark.embedding_udf
    assert e5spark.E5Embedder is e5spark.spark.E5Embedder
    assert e5spark.nearest is e5spark.search.nearest
    assert e5spark.Encoder is e5spark.encoder.Encoder
    assert e5spark.errors is sys.modules["e5spark.errors"]


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'e5spark' has no attribute 'embedd'"):
        _ = e5spark.embedd


def test_embed_is_the_function_and_no_module():
    code = "from e5spark import embed; import e5spark.spark.embedding; print(callable(embed))"
    command = [sys.executable, "-c", f"{code}; assert embed is e5spark.spark.embed"]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "True"


@pytest.mark.parametrize(
    ("function", "keywords"),
    [
        (
            e5spark.embed,
            ["text", "role", "model", "instruction", "join", "column_prefix", "options"],
        ),
        (e5spark.embedding_udf, ["role", "model", "instruction", "options"]),
        (e5spark.Encoder.encode, ["role", "instruction"]),
        (e5spark.Encoder.load, ["threads", "options"]),
    ],
    ids=lambda function: getattr(function, "__qualname__", ""),
)
def test_options_are_passed_by_keyword_and_role_has_no_default(function, keywords):
    parameters = inspect.signature(function).parameters
    by_keyword = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD)
    ]
    assert by_keyword == keywords
    if "role" in parameters:
        assert parameters["role"].default is inspect.Parameter.empty
    documented = inspect.getdoc(function)
    for name in keywords:
        assert re.search(rf"^ +(\*\*)?{name}: ", documented, re.MULTILINE), name
