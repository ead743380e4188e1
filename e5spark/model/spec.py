"""The model and its options as the user describes them: one dataclass for every API."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypedDict, get_args

from e5spark.errors import OptionError
from e5spark.model.engines import ENGINES
from e5spark.model.onnx.files import ZIP_SUFFIXES
from e5spark.model.prompts import ROLES
from e5spark.model.registry import (
    ALREADY_PROMPTED,
    LONG_TEXTS,
    POOLINGS,
    AlreadyPrompted,
    LongText,
    Pooling,
)

Precision = Literal["auto", "fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OutputType = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)


class ModelOptions(TypedDict, total=False):
    """The keywords of every function that takes a model; ``ModelSpec`` explains them."""

    checkpoint: str | None
    tokenizer: str | None
    revision: str | None
    download: bool
    prompts: Mapping[str, str] | None
    pooling: Pooling | None
    normalize: bool | None
    max_tokens: int | None
    dim: int | None
    force_dim: bool
    long_text: LongText
    overlap: int
    already_prompted: AlreadyPrompted
    output_type: OutputType
    calibration: str | None
    engine: str
    precision: Precision
    device: str
    token_budget: int | None
    sort_window: int
    text_deadline: float | None
    max_characters: int | None


_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model and how to run it.

    Attributes:
        model: A checkpoint's name on the hub, a directory (an absolute path, ``./relative``) of
            safetensors or ONNX, a ``.jar`` or ``.zip`` file that holds an ONNX model, or
            ``archive:name``, a directory that Spark unpacked from ``--archives``.
        checkpoint: The known checkpoint that a directory holds: its prompts, pooling and limits
            then come from the registry, whatever the directory's own files say.
        tokenizer: A directory or hub name that holds the tokenizer, if the model's does not.
        revision: The commit on the hub, 40 hex digits; by default the one that e5spark pins.
        download: Whether to fetch missing files from the hub; otherwise only local files are used.
        prompts: The prefix of each role, ``{"query": ..., "passage": ...}``; by default the
            checkpoint's own.
        pooling: ``mean``, ``cls`` or ``last``; by default the checkpoint's own.
        normalize: Whether vectors get unit L2 norm; by default as the checkpoint declares.
        max_tokens: A lower limit than the checkpoint's, prompt and special tokens included.
        dim: Components of a vector, if fewer than the checkpoint's: the first ones, normalised
            again (Matryoshka). Only a dim that the checkpoint was trained for, unless forced.
        force_dim: Whether to allow a dim that its authors did not train for or did not publish.
        long_text: How to handle a text beyond ``max_tokens``: ``truncate``; ``split`` into
            overlapping windows, one vector each; or ``mean``, the mean of the windows' vectors,
            weighted by their tokens.
        overlap: Tokens that a window shares with the one before it, for ``split`` and ``mean``.
        already_prompted: How to handle a text that already begins with a prompt: ``report`` (the
            prompt is added as to any text, and the row is marked), ``refuse`` (the row ends in an
            error) or ``keep`` (the text is embedded as it is, without another prompt).
        output_type: How a vector is stored: ``float32``, ``float16``, ``int8``, ``uint8``,
            ``binary`` or ``ubinary``; see ``e5spark.model.output_type``.
        calibration: File of the ranges that int8 and uint8 need, made by ``e5spark calibrate``.
        engine: ``torch``, ``openvino`` (CPUs only) or ``auto``, which is decided where the model
            runs: OpenVINO on a CPU if it is installed, else torch. Their vectors agree within 1e-5.
        precision: How the engine computes: ``fp32``, ``bf16``, ``int8`` (only with a model that
            was prepared for it) or ``auto``: int8 for such a model; bf16 on GPUs, where Spark gives
            each task one or ``device`` names one; else fp32, which every CPU supports. A table
            keeps the precision that it was created with.
        device: ``auto``, ``cpu`` or a torch device such as ``cuda:0``. ``auto`` is decided where
            the model runs: the task's own GPU if it has one, else the CPU.
        token_budget: Maximum number of tokens in one forward pass, padding included; by default the
            engine's own budget.
        sort_window: Rows that are tokenised and sorted by length together.
        text_deadline: Seconds after which a text that is not encoded yet ends in an error; for
            tables only. Texts are then encoded in a process of their own from the start.
        max_characters: The longest text that is embedded, for tables only; a longer one ends in an
            error. By default there is no limit.

    Raises:
        OptionError: At construction, if a value has the wrong type or is wrong for every
            checkpoint.
    """

    model: str
    checkpoint: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
    download: bool = False
    prompts: Mapping[str, str] | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    dim: int | None = None
    force_dim: bool = False
    long_text: LongText = "truncate"
    overlap: int = 64
    already_prompted: AlreadyPrompted = "report"
    output_type: OutputType = "float32"
    calibration: str | None = None
    engine: str = "auto"
    precision: Precision = "auto"
    device: str = "auto"
    token_budget: int | None = None
    sort_window: int = 4096
    text_deadline: float | None = None
    max_characters: int | None = None

    def __post_init__(self) -> None:
        for name in ("model", "device"):
            _text(name, getattr(self, name))
        for name in ("checkpoint", "tokenizer", "revision", "calibration"):
            if getattr(self, name) is not None:
                _text(name, getattr(self, name))
        if not self.model.strip():
            raise OptionError("The model is empty; name a checkpoint or a directory.")
        self._check_values()
        self._check_vectors()
        if not _DEVICE.fullmatch(self.device):
            raise OptionError(f"device is {self.device!r}; use auto, cpu, cuda or cuda:N.")
        if self.revision is not None and not _COMMIT.fullmatch(self.revision):
            raise OptionError(
                f"revision is {self.revision!r}; it must be a commit, 40 hex digits: a branch or "
                "a tag can move, and the vectors with it."
            )
        if self.prompts is not None:
            _check_prompts(self.prompts)

    def _check_values(self) -> None:
        if self.pooling is not None:
            _one_of("pooling", self.pooling, POOLINGS)
        _one_of("engine", self.engine, ("auto", *ENGINES))
        _one_of("precision", self.precision, PRECISIONS)
        capable = [name for name in ENGINES if self.precision in ENGINES[name].precisions]
        if self.precision != "auto" and self.engine not in ("auto", *capable):
            raise OptionError(
                f"precision {self.precision} is for the {' or '.join(capable)} engine; engine is "
                f"{self.engine!r}. Leave engine out."
            )
        _one_of("long_text", self.long_text, LONG_TEXTS)
        _one_of("already_prompted", self.already_prompted, ALREADY_PROMPTED)
        _one_of("output_type", self.output_type, OUTPUT_TYPES)
        for name in ("max_tokens", "dim", "token_budget", "max_characters"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        _positive("sort_window", self.sort_window)
        _whole("overlap", self.overlap)
        if self.text_deadline is not None:
            _seconds("text_deadline", self.text_deadline)
        for name, allowed in (
            ("normalize", (None, True, False)),
            ("download", (True, False)),
            ("force_dim", (True, False)),
        ):
            value = getattr(self, name)
            if not any(value is choice for choice in allowed):
                raise OptionError(f"{name} is {value!r}; it must be true or false.")

    def _check_vectors(self) -> None:
        needs_ranges = self.output_type in ("int8", "uint8")
        if needs_ranges and self.calibration is None:
            raise OptionError(
                f"output_type {self.output_type!r} needs calibration, the file of the corpus' "
                "ranges; make it with e5spark calibrate JOB.toml --to FILE."
            )
        if self.calibration is not None and not needs_ranges:
            raise OptionError(
                f"calibration is for int8 and uint8; output_type is {self.output_type!r}. Leave "
                "calibration out, or change output_type."
            )


def model_spec(model: str, options: Mapping[str, object]) -> ModelSpec:
    """Returns the spec of ``model`` with these keywords.

    Raises:
        OptionError: If a keyword is unknown or its value cannot be right.
    """
    names = [field.name for field in fields(ModelSpec)][1:]  # without the model
    for name in options:
        if name not in names:
            raise OptionError(f"Unknown option {name!r}; the options are {', '.join(names)}.")
    options = {**options, "tokenizer": _absolute(options.get("tokenizer"))}
    return ModelSpec(model=_absolute(model), **options)  # type: ignore[arg-type]  # it checks


def _absolute(model: object) -> object:
    """The model with a relative directory or archive made absolute; any other value as it is."""
    is_local = isinstance(model, str) and (
        model.startswith((".", "~"))
        or (model.endswith(ZIP_SUFFIXES) and not model.startswith(("/", "archive:")))
    )
    if is_local:
        return str(Path(str(model)).expanduser().absolute())
    return model


def _check_prompts(prompts: object) -> None:
    if not isinstance(prompts, Mapping):
        raise OptionError(
            f"prompts is {prompts!r}; it must map 'passage' and 'query' to their prefixes."
        )
    if set(prompts) != set(ROLES):
        raise OptionError(
            f"prompts has the keys {sorted(map(str, prompts))}; it needs 'passage' and 'query', "
            "each with its prefix ('' for none)."
        )
    for role, prefix in prompts.items():
        if not isinstance(prefix, str):
            raise OptionError(f"prompts has {prefix!r} for {role!r}; a prefix must be a string.")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise OptionError(f"{name} is {value!r}; it must be a string.")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(f"{name} is {value!r}; it must be a whole number, 0 or more.")


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name} is {value!r}; it must be a positive whole number.")


def _seconds(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < float("inf"):  # type: ignore[operator]  # a number
        raise OptionError(f"{name} is {value!r}; it must be a number of seconds, more than 0.")
