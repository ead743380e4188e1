import dataclasses
import re
import tomllib
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5spark.errors import ConfigError, ConflictError
from e5spark.job import job_file
from e5spark.job.config import (
    EmbedConfig,
    InputConfig,
    InputFormat,
    JobConfig,
    ModelConfig,
    OutputConfig,
    QualityConfig,
    ReportConfig,
    RunConfig,
)
from e5spark.model.engines import ENGINES
from e5spark.model.spec import ModelOptions, ModelSpec, model_spec
from e5spark.tables.sinks.registry import SINKS
from e5spark.tables.sources.batch import READERS
from tests import minimal_job
from tests.minimal_job import MINIMAL, refusal

EXAMPLE = Path(__file__).parent.parent / "conf" / "embed.toml"
COMMENTED = re.compile(r"^# (?=\[[\w.]+\]|[\w.\"]+ = )(?P<setting>.*?)(?:\s+# (?P<note>.*))?$")


@pytest.fixture
def toml_file(tmp_path):
    def write(text):
        path = tmp_path / "job.toml"
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.fixture
def load(tmp_path):
    return partial(minimal_job.load, tmp_path)


# The example: conf/embed.toml is the reference of every key.


def defaults() -> dict[str, Any]:
    """Each key of a job file, as section.key, and the value the code takes without it."""
    values = {}
    for kind in (InputConfig, EmbedConfig, OutputConfig, RunConfig, QualityConfig, ReportConfig):
        section = kind.__name__.removesuffix("Config").lower()
        for field in dataclasses.fields(kind):
            has_factory = field.default_factory is not dataclasses.MISSING
            values[f"{section}.{field.name}"] = (
                field.default_factory() if has_factory else field.default
            )
    for field in dataclasses.fields(ModelSpec):
        name = "name" if field.name == "model" else field.name
        values[f"model.{name}"] = field.default
    return values


def example() -> dict[str, tuple[Any, str | None]]:
    """Each key of the example: its value, and what its comment says if it is commented out."""
    settings, section = {}, ""
    for line in EXAMPLE.read_text("utf-8").splitlines():
        commented = COMMENTED.match(line)
        setting = commented["setting"] if commented else line
        note = (commented["note"] or "") if commented else None
        for key, value in tomllib.loads(setting).items():
            if setting.startswith("["):
                section = setting.split("]")[0].strip("[ ")
                settings[section] = {}, note
            else:
                settings[f"{section}.{key}"] = value, note
    return settings


def test_the_example_is_a_valid_job():
    job = job_file.load(EXAMPLE)
    assert job.embed == EmbedConfig(text="body", role="passage")
    assert job.model.name == "intfloat/multilingual-e5-small"


def test_the_example_documents_every_key_and_no_other():
    documented = {key for key in example() if "." in key and key.split(".")[0] != "spark"}
    assert documented - {"model.prompts.query", "model.prompts.passage"} == set(defaults())


def comments() -> dict[str, str]:
    """Each key of the example, as section.key, and its whole comment."""
    texts: dict[str, str] = {}
    name = ""
    for line in EXAMPLE.read_text("utf-8").splitlines():
        setting = re.match(r"(?:# )?(?:\[(?P<section>[\w.]+)\]|(?P<key>\w+) = )", line)
        if setting and setting["section"]:
            name = section = setting["section"]
        elif setting:
            name = f"{section}.{setting['key']}"
        texts[name] = f"{texts.get(name, '')} {line.rpartition('# ')[2]}"
    return texts


def choices() -> dict[str, tuple[str, ...]]:
    """Each key whose values are names from a list, and the list."""
    names = {"output.format": tuple(SINKS), "model.engine": ("auto", *ENGINES)}
    for kind in (InputConfig, EmbedConfig, OutputConfig, RunConfig, QualityConfig, ModelSpec):
        section = kind.__name__.removesuffix("Config").removesuffix("Spec").lower()
        for key, hint in get_type_hints(kind).items():
            values = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
            if values:
                names[f"{section}.{key}"] = get_args(values[0])
    return names


def test_the_example_names_every_choice_of_a_key():
    assert {"input.format", "model.pooling", "model.output_type", "output.write"} <= set(choices())
    texts = comments()
    missing = {
        (key, value)
        for key, values in choices().items()
        for value in values
        if not re.search(rf"\b{value}\b", texts[key])
    }
    assert not missing


def test_every_input_format_has_a_reader():
    assert get_args(InputFormat) == tuple(READERS)


def test_what_the_example_comments_out_is_the_default(toml_file):
    shown = {
        key: value
        for key, (value, note) in example().items()
        # Alternatives ("or ...") and keys that have no value of their own show an example.
        if note is not None
        and not note.startswith("or ")
        and key in defaults()
        and (defaults()[key] is not None or value == "")
    }
    assert {"input.format", "model.tokenizer", "model.sort_window", "run.partitions"} <= set(shown)
    data = tomllib.loads(EXAMPLE.read_text("utf-8"))
    for key, value in shown.items():
        section, name = key.split(".")
        data[section][name] = value
    expected, job = job_file.load(EXAMPLE), job_file.load(toml_file(toml(data)))
    assert model_spec(job.model.name, job.model.options) == model_spec(
        expected.model.name, expected.model.options
    )
    assert dataclasses.replace(job, model=expected.model) == expected


def test_the_keywords_of_a_model_are_the_fields_of_its_spec():
    spec = get_type_hints(ModelSpec)
    assert spec.pop("model") is str
    assert get_type_hints(ModelOptions) == spec


# Reading a file


def test_a_minimal_job_has_the_defaults(load):
    assert load() == JobConfig(
        input=InputConfig(path="/data/docs"),
        embed=EmbedConfig(text="body", role="passage"),
        model=ModelConfig(name="/models/e5", options={}),
        output=OutputConfig(path="/data/vectors"),
        run=RunConfig(),
        quality=QualityConfig(),
        spark={},
    )


def test_a_missing_file_is_refused_by_its_path(tmp_path):
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}/none.toml cannot be read")):
        job_file.load(tmp_path / "none.toml")


@pytest.mark.parametrize("content", [b"[input\n", b"text = '\xff'"], ids=["syntax", "utf-8"])
def test_a_file_that_is_no_toml_is_refused(tmp_path, content):
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not valid TOML"):
        job_file.load(path)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("[outptu]\nx = 1", "unknown section [outptu]. Did you mean 'output'?"),
        ("[qqqq]", "Use one of input, embed, model, output, run, quality, report, spark."),
        ("[run]\npartition = 3", "unknown key 'partition' in [run]. Did you mean 'partitions'?"),
        ("[run]\nqqqqqqqqq = 3", "Use one of partitions, max_error_rate"),
    ],
)
def test_an_unknown_section_or_key_brings_the_nearest(load, more, expected):
    assert expected in refusal(load, more=more)


def test_an_unknown_model_option_brings_the_nearest(load):
    message = refusal(load, "model.token_budgets=100")
    assert "unknown key 'token_budgets' in [model]. Did you mean 'token_budget'?" in message


def test_a_value_in_place_of_a_section_is_refused(toml_file):
    path = toml_file("run = 3\n")
    with pytest.raises(ConfigError, match=r"run is a value; it must be a section, \[run\]"):
        job_file.load(path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("embed.text=3", "embed.text is 3; it must be a string."),
        ("embed.text=[3]", "embed.text is 3; it must be a string."),
        ("input.path=true", "input.path is True; it must be a string."),
        ("run.partitions=many", "run.partitions is 'many'; it must be a whole number."),
        ("run.partitions=true", "run.partitions is True; it must be a whole number."),
        ("run.partitions=2.5", "run.partitions is 2.5; it must be a whole number."),
        ("run.max_error_rate=none", "run.max_error_rate is 'none'; it must be a number."),
        ("model.download=yes", "model.download is 'yes'; it must be true or false."),
        ("model.max_tokens=lots", "model.max_tokens is 'lots'; it must be a whole number."),
        ("model.prompts=e5", "model.prompts is 'e5'; it must be a table, [model.prompts]."),
        ("input.columns=id", "input.columns is 'id'; it must be a list."),
        ("input.columns=[1]", "input.columns is 1; it must be a string."),
        ("input.options=header", "input.options is 'header'; it must be a table"),
        ("input.format=avro", "must be one of parquet, delta, csv, jsonl, text"),
        ("output.format=csv", "output.format is 'csv'; it must be one of parquet, delta"),
        ("model.precision=fp8", "must be one of auto, fp32, bf16"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(load, override, expected):
    assert expected in refusal(load, override)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('text = "body"', "[embed] needs the key 'text'"),
        ('name = "/models/e5"', "[model] has no name"),
    ],
)
def test_a_key_without_default_is_required(toml_file, line, expected):
    path = toml_file(MINIMAL.replace(line, ""))
    with pytest.raises(ConfigError, match=re.escape(expected)):
        job_file.load(path)


def test_an_empty_model_option_counts_as_unset(load):
    assert load("model.checkpoint=", 'model.tokenizer=""', "model.revision=").model.options == {}
    assert "[model] has no name" in refusal(load, "model.name=")


def test_reader_options_and_spark_settings_reach_spark_as_it_spells_them(load):
    more = """
    [input.options]
    header = true
    mode = "FAILFAST"
    maxColumns = 3
    [spark]
    "spark.sql.ansi.enabled" = false
    spark.sql.shuffle.partitions = 4
    """
    job = load(more=more)
    assert job.input.options == {"header": "true", "mode": "FAILFAST", "maxColumns": "3"}
    assert job.spark == {"spark.sql.ansi.enabled": "false", "spark.sql.shuffle.partitions": "4"}


# --set


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("input.path=/other", "input", "path", "/other"),
        ("input.path=s3a://a/b=c", "input", "path", "s3a://a/b=c"),
        ('input.path="/quoted"', "input", "path", "/quoted"),
        ('embed.text="2024"', "embed", "text", "2024"),
        ("embed.instruction=Find: it", "embed", "instruction", "Find: it"),
        ("run.partitions=12", "run", "partitions", 12),
        ("run.max_error_rate=0.25", "run", "max_error_rate", 0.25),
        ("run.max_error_rate=1", "run", "max_error_rate", 1.0),
        ('embed.text=["title", "body"]', "embed", "text", ("title", "body")),
        (r'embed.join="\n"', "embed", "join", "\n"),
        ('input.columns=["id", "title"]', "input", "columns", ("id", "title")),
        ("input.options.header=true", "input", "options", {"header": "true"}),
        ("input.options.a.b=1", "input", "options", {"a.b": "1"}),
        (" input.path=/spaces", "input", "path", "/spaces"),
    ],
)
def test_an_override_sets_a_key(load, override, section, key, expected):
    value = getattr(getattr(load(override), section), key)
    assert (value, type(value)) == (expected, type(expected))


def test_overrides_set_model_options_and_prompts(load):
    options = load(
        "model.download=true",
        "model.max_tokens=128",
        "model.pooling=cls",
        "model.prompts.query=q: ",
        "model.prompts.passage=",
    ).model.options
    assert options == {
        "download": True,
        "max_tokens": 128,
        "pooling": "cls",
        "prompts": {"query": "q: ", "passage": ""},
    }


def test_an_override_sets_a_spark_setting_by_its_dotted_name(load):
    job = load("spark.spark.sql.shuffle.partitions=7", "spark.spark.sql.ansi.enabled=true")
    assert job.spark == {"spark.sql.shuffle.partitions": "7", "spark.sql.ansi.enabled": "true"}


def test_of_two_overrides_the_last_counts_and_the_file_counts_least(load):
    assert load("embed.text=a", "embed.text=b").embed.text == "b"


def test_an_override_makes_the_section_it_needs(toml_file):
    path = toml_file("")
    overrides = ["input.path=/i", "embed.text=t", "embed.role=query", "model.name=/m"]
    assert job_file.load(path, [*overrides, "output.path=/o"]).output.path == "/o"


@pytest.mark.parametrize("override", ["input.path", "path=/x", "=x", "input.=x", "input"])
def test_an_override_without_section_key_or_value_is_refused(load, override):
    assert "give it as section.key=value" in refusal(load, override)


@pytest.mark.parametrize("override", ["input.path.x=1", "run.a=1", "run.a.b=1"])
def test_an_override_below_a_value_is_refused(toml_file, override):
    path = toml_file(f"run = 3\n{MINIMAL}")
    with pytest.raises(ConfigError, match="is not a table"):
        job_file.load(path, [override])


@pytest.mark.parametrize(
    ("overrides", "more", "start"),
    [
        (["run.partitions=2", "run.partitoins=3"], "", "--set run.partitoins: unknown key"),
        (["embed.role=passage", "run.partitions=x"], "", "--set run.partitions: run.partitions is"),
        (["output.table=t"], "", "--set output.table: [output] needs either path or table"),
        (["run.chunk_rows=5"], "[run]\nchunk_row = 3", "{path}: unknown key 'chunk_row'"),
    ],
)
def test_a_mistake_is_blamed_on_the_override_that_made_it(tmp_path, load, overrides, more, start):
    expected = start.format(path=tmp_path / "job.toml")
    assert refusal(load, *overrides, more=more).startswith(expected)


def test_the_value_of_an_override_is_not_repeated(load):
    message = refusal(load, "input.option.fs.s3a.secret.key=SECRET")
    assert "SECRET" not in message
    assert "unknown key 'option'" in message


@pytest.mark.parametrize("key", ["input.path", "output.path"])
def test_a_tilde_is_the_home_directory(load, monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/somebody")
    section, name = key.split(".")
    assert getattr(getattr(load(f"{key}=~/x"), section), name) == "/home/somebody/x"
    assert getattr(getattr(load(f"{key}=/a/~/x"), section), name) == "/a/~/x"
    assert "no such home directory" in refusal(load, f"{key}=~nobody-of-this-name/x")


# The example, written by e5spark init


def test_init_writes_the_example_and_overwrites_nothing(tmp_path):
    path = job_file.write_example(tmp_path / "new" / "directory")
    assert path == tmp_path / "new" / "directory" / "embed.toml"
    assert path.read_bytes() == EXAMPLE.read_bytes()
    path.write_text("mine")
    with pytest.raises(ConflictError, match=r"embed\.toml already exists and was not overwritten"):
        job_file.write_example(path.parent)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"embed\.toml is not a directory"):
        job_file.write_example(path)


# A model alone


def test_a_model_alone_takes_the_keys_of_its_section():
    config = job_file.load_model("/m", ["model.max_tokens=9", "model.prompts.query=q: "])
    assert config == ModelConfig(name="/m", options={"max_tokens": 9, "prompts": {"query": "q: "}})


def test_a_model_alone_takes_no_other_section():
    with pytest.raises(ConfigError, match=r"^--set input\.path: only keys of model can be set"):
        job_file.load_model("/m", ["input.path=/x"])


# Round trips


def toml(data: dict[str, dict[str, Any]]) -> str:
    lines = []
    for section, keys in data.items():
        lines += [f"[{section}]", *(f"{key} = {literal(value)}" for key, value in keys.items())]
    return "\n".join(lines)


def literal(value: object) -> str:
    """The value as TOML, strings with every special character escaped."""
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)} = {literal(v)}" for k, v in value.items()) + "}"
    return repr(value)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values that an annotated key can have."""
    if get_origin(hint) in (Union, UnionType):
        return st.one_of(values(kind) for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    # A path that begins with ~ comes back with the home directory in its place.
    texts = st.text(min_size=1, max_size=8).filter(lambda text: not text.startswith("~"))
    if get_origin(hint) is tuple:
        return st.lists(texts, max_size=3).map(tuple)
    if get_origin(hint) is not None:
        return st.dictionaries(texts, texts, max_size=3)
    scalars = {str: texts, int: st.integers(1, 1 << 40), bool: st.booleans()}
    return scalars.get(hint, st.floats(0, 1))


def sections(kind: type, *left_out: str) -> st.SearchStrategy[dict[str, Any]]:
    hints = get_type_hints(kind)
    return st.fixed_dictionaries(
        {}, optional={key: values(hint) for key, hint in hints.items() if key not in left_out}
    )


@settings(max_examples=50)
@given(
    table=sections(InputConfig, "path", "table", "trigger", "change_feed", "hash_id", "schema"),
    embed=sections(EmbedConfig, "role", "role_column", "instruction_column"),
    model=sections(ModelOptions),
    run=sections(RunConfig, "file_megabytes"),
    quality=sections(QualityConfig, "max_pair_cosine"),
)
def test_every_value_comes_back_as_it_was_written(
    tmp_path_factory, table, embed, model, run, quality
):
    written = {
        "input": {"path": "/i", "id": "i", **table},
        "embed": {"text": "t", **embed, "role": "query"},
        "model": {"name": "/m", **model},
        "output": {"path": "/o"},
        "run": run,
        "quality": quality,
    }
    path = tmp_path_factory.mktemp("job") / "job.toml"
    path.write_text(toml(written), "utf-8")
    assert job_file.load(path) == JobConfig(
        input=InputConfig(**written["input"]),
        embed=EmbedConfig(**written["embed"]),
        model=ModelConfig(name="/m", options=model),
        output=OutputConfig(path="/o"),
        run=RunConfig(**run),
        quality=QualityConfig(**quality),
        spark={},
    )


@settings(max_examples=50)
@given(st.text(st.characters(exclude_characters="\r\n"), min_size=1))
def test_an_override_that_is_no_toml_is_taken_word_for_word(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("job") / "job.toml"
    path.write_text(MINIMAL, "utf-8")
    assert job_file.load(path, [f"embed.instruction=say {text}"]).embed.instruction == f"say {text}"
