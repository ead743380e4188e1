"""What the user asks of a model: one dataclass, whichever door the request came through."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypedDict, get_args

from e5spark.errors import OptionError
from e5spark.model.engines import ENGINES
from e5spark.model.prompts import ROLES
from e5spark.model.registry import LONG_TEXTS, POOLINGS, PROMPTED, LongText, Pooling, Prompted

Precision = Literal["auto", "fp32", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OutputType = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)


class ModelOptions(TypedDict, total=False):
    """The keywords of every door that takes a model; ``ModelSpec`` says what they mean."""

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
    already_prompted: Prompted
    output_type: OutputType
    calibration: str | None
    engine: str
    precision: Precision
    device: str
    token_budget: int | None
    sort_window: int


_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model and how to run it.

    Attributes:
        model: A checkpoint's name on the hub, a directory (an absolute path, ``./relative``) or
            ``archive:name``, a directory that Spark unpacked from ``--archives``.
        checkpoint: The known checkpoint that a directory holds: its prompts, pooling and limits
            are then those of e5spark's table, whatever the directory's own files say.
        tokenizer: A directory or hub name that holds the tokenizer, where the model's does not.
        revision: The commit on the hub, 40 hex digits; by default the one e5spark pins.
        download: Whether the hub may be asked; otherwise only local files are used.
        prompts: The prefix of each role, ``{"query": ..., "passage": ...}``, in place of the
            checkpoint's own.
        pooling: ``mean``, ``cls`` or ``last``, in place of the checkpoint's own.
        normalize: Whether vectors get unit L2 norm, in place of the checkpoint's own.
        max_tokens: A lower limit than the checkpoint's, prompt and special tokens included.
        dim: Components of a vector, if fewer than the checkpoint's: the first ones, normalised
            again (Matryoshka). Only a dim that the checkpoint was trained for, unless forced.
        force_dim: Whether a dim is allowed that its authors did not train or did not publish.
        long_text: What becomes of a text beyond ``max_tokens``: ``truncate``; ``split`` into
            overlapping windows, one vector each; or ``mean``, the mean of the windows' vectors,
            weighted by their tokens.
        overlap: Tokens that a window shares with the one before it, for ``split`` and ``mean``.
        already_prompted: What happens to a text that begins with a prompt already: ``report`` (the
            prompt is added as to any text, and the row is marked), ``refuse`` (the row ends in an
            error) or ``keep`` (the text is taken as it is, no prompt is added).
        output_type: How a vector is stored: ``float32``, ``float16``, ``int8``, ``uint8``,
            ``binary`` or ``ubinary``; see ``e5spark.model.output_type``.
        calibration: File of the ranges that int8 and uint8 need, made by ``e5spark calibrate``.
        engine: ``torch``, ``openvino`` (CPUs only) or ``auto``, which is decided where the model
            runs: OpenVINO on a CPU that has it, else torch. Their vectors agree within 1e-5.
        precision: How the engine computes: ``fp32``, ``bf16``, ``int8`` (a model that was prepared
            for it) or ``auto``: that of a prepared model, else ``fp32``, which every CPU has.
        device: ``auto``, ``cpu`` or a torch device such as ``cuda:0``. ``auto`` is decided where
            the model runs: the task's own GPU if it has one, else the CPU.
        token_budget: Most tokens in one forward pass, padding included; by default what suits the
            engine best.
        sort_window: Rows that are tokenised and sorted by length together.

    Raises:
        OptionError: At construction, if a value cannot be right whatever the checkpoint is.
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
    already_prompted: Prompted = "report"
    output_type: OutputType = "float32"
    calibration: str | None = None
    engine: str = "auto"
    precision: Precision = "auto"
    device: str = "auto"
    token_budget: int | None = None
    sort_window: int = 4096

    def __post_init__(self) -> None:
        if not self.model or not self.model.strip():
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
        if self.prompts is not None and set(self.prompts) != set(ROLES):
            raise OptionError(
                f"prompts has the keys {sorted(self.prompts)}; it needs 'passage' and 'query', "
                "each with its prefix ('' for none)."
            )

    def _check_values(self) -> None:
        _one_of("pooling", self.pooling, POOLINGS)
        _one_of("engine", self.engine, ("auto", *ENGINES))
        _one_of("precision", self.precision, PRECISIONS)
        capable = [name for name in ENGINES if self.precision in ENGINES[name].precisions]
        if self.precision != "auto" and self.engine not in ("auto", *capable):
            raise OptionError(
                f"precision {self.precision} is for the {' or '.join(capable)} engine; engine is "
                f"{self.engine!r}."
            )
        _one_of("long_text", self.long_text, LONG_TEXTS)
        _one_of("already_prompted", self.already_prompted, PROMPTED)
        _one_of("output_type", self.output_type, OUTPUT_TYPES)
        _positive("max_tokens", self.max_tokens)
        _positive("dim", self.dim)
        _positive("token_budget", self.token_budget)
        _positive("sort_window", self.sort_window)
        _whole("overlap", self.overlap)
        for name in ("normalize", "download", "force_dim"):
            if getattr(self, name) not in (None, True, False):
                raise OptionError(f"{name} is {getattr(self, name)!r}; it must be true or false.")

    def _check_vectors(self) -> None:
        needs_ranges = self.output_type in ("int8", "uint8")
        if needs_ranges and self.calibration is None:
            raise OptionError(
                f"output_type {self.output_type!r} needs calibration, the ranges of the corpus; "
                "make them with e5spark calibrate JOB.toml --to FILE."
            )
        if self.calibration is not None and not needs_ranges:
            raise OptionError(
                f"calibration is for int8 and uint8; output_type is {self.output_type!r}."
            )


def model_spec(model: str, options: Mapping[str, object]) -> ModelSpec:
    """Returns the spec of ``model`` with these keywords.

    Raises:
        OptionError: If a keyword is unknown or its value cannot be right.
    """
    known = [option.name for option in fields(ModelSpec)]
    for name in options:
        if name not in known:
            raise OptionError(f"Unknown option {name!r}; the options are {', '.join(known[1:])}.")
    if model.startswith((".", "~")):
        model = _absolute(model)
    tokenizer = options.get("tokenizer")
    if isinstance(tokenizer, str) and tokenizer.startswith((".", "~")):
        options = {**options, "tokenizer": _absolute(tokenizer)}
    return ModelSpec(model=model, **options)  # type: ignore[arg-type]  # checked above


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _one_of(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise OptionError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")


def _whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(f"{name} is {value!r}; it must be a whole number, 0 or more.")


def _positive(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise OptionError(f"{name} is {value!r}; it must be a positive whole number.")
