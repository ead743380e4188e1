"""Gates on the figures of a run's vectors, and their drift since the last run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from e5spark.errors import GateError
from e5spark.job.config import QualityConfig
from e5spark.job.figures import Figures
from e5spark.names import redacted


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The range in which a figure must lie.

    Attributes:
        figure: An attribute of ``Figures``.
        lowest: The smallest value that passes; None for any.
        highest: The largest value that passes; None for any.
        min_vectors: A run with fewer vectors is not judged.
        source: Where the range comes from, for the message.
    """

    figure: str
    lowest: float | None = None
    highest: float | None = None
    min_vectors: int = 0
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate says of a run.

    Attributes:
        figure: The figure.
        value: Its value; None if the run has none, or too few vectors.
        lowest: The smallest value that passes.
        highest: The largest value that passes.
        passed: Whether it passed; a run that is not judged passes.
        problem: What is wrong and what to do about it; empty if it passed.
    """

    figure: str
    value: float | None
    lowest: float | None
    highest: float | None
    passed: bool
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the verdict for the report."""
        return {name: value for name, value in asdict(self).items() if name != "problem"}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What the watch over a run has seen.

    Attributes:
        figures: The figures of the vectors that the run wrote.
        gates: The verdict of each gate.
        drift: The verdict on each figure's distance from the last run's.
        drift_fails: Whether drift fails the run.
        canaries: ``matched``, ``added`` to the manifest, ``none`` that could be embedded,
            ``not_needed`` because the run had nothing to embed, or ``off``.
    """

    figures: Figures
    gates: tuple[Verdict, ...]
    drift: tuple[Verdict, ...]
    drift_fails: bool
    canaries: str

    @property
    def warnings(self) -> list[str]:
        """Returns the sentences on drift that does not fail the run."""
        return [] if self.drift_fails else _problems(self.drift)

    @property
    def failures(self) -> list[str]:
        """Returns the sentences on the gates that failed, drift included if it fails the run."""
        return _problems(self.gates) + (_problems(self.drift) if self.drift_fails else [])

    def as_dict(self) -> dict[str, Any]:
        """Returns the object ``quality`` of the report."""
        return {
            "figures": self.figures.as_dict(),
            "gates": [verdict.as_dict() for verdict in self.gates],
            "drift": [verdict.as_dict() for verdict in self.drift],
            "canaries": self.canaries,
        }


_REMEDIES = {
    "not_finite": "The model or the output type overflows: run it in fp32, or with "
    'output_type = "float32".',
    "zeros": "The model is broken or does not belong to its config; check it with e5spark verify.",
    "norm_error": "The vectors do not have unit length, as the recipe says; check the model with "
    "e5spark verify, and the engine's version.",
    "equal_share": "Different texts have equal vectors: look whether the texts begin alike and are "
    "truncated, differ only in what the tokenizer drops, or the model is broken; otherwise raise "
    "quality.max_equal_share.",
    "pair_cosine": "Look whether the texts are of one kind, repeat themselves or have the wrong "
    "prompts, and check the model with e5spark verify; if the corpus is like that, set "
    "quality.min_pair_cosine and quality.max_pair_cosine.",
    "truncated_share": 'Set model.long_text to "split" or "mean", or raise '
    "quality.max_truncated_share.",
}
_DRIFT_REMEDY = (
    "Look whether the input has changed in kind. If that is intended, nothing needs to be done: "
    "the next run is compared with this one."
)


def gates(
    config: QualityConfig, *, normalized: bool, band: tuple[float, float] | None, checkpoint: str
) -> list[Gate]:
    """Returns the gates of a job.

    Args:
        config: The thresholds.
        normalized: Whether the vectors should have unit length.
        band: The range of the checkpoint's mean cosine of random pairs, if it is known.
        checkpoint: The checkpoint's name, for messages.
    """
    lowest, highest = band or (None, None)
    configured = (config.min_pair_cosine, config.max_pair_cosine)
    sources = [f"the band of {checkpoint}"] if band and None in configured else []
    if configured != (None, None):
        sources.append("[quality]")
        lowest = lowest if config.min_pair_cosine is None else config.min_pair_cosine
        highest = highest if config.max_pair_cosine is None else config.max_pair_cosine
        if lowest is not None and highest is not None and lowest > highest:
            # An end beyond the band, with whose other end no run could pass.
            (lowest, highest), sources = configured, ["[quality]"]
    enough = config.min_vectors
    result = [
        Gate(figure="not_finite", highest=0),
        Gate(figure="zeros", highest=0),
        Gate(figure="equal_share", highest=config.max_equal_share, min_vectors=enough),
        Gate(figure="truncated_share", highest=config.max_truncated_share, min_vectors=enough),
    ]
    if normalized:
        result.insert(2, Gate(figure="norm_error", highest=config.max_norm_error))
    if (lowest, highest) != (None, None):
        result.append(
            Gate(
                figure="pair_cosine",
                lowest=lowest,
                highest=highest,
                min_vectors=enough,
                source=" and ".join(sources),
            )
        )
    return result


def judge(figures: Figures, gates: Sequence[Gate]) -> tuple[Verdict, ...]:
    """Returns the verdict of each gate on a run's figures."""
    return tuple(
        _verdict(
            gate,
            getattr(figures, gate.figure) if figures.vectors >= gate.min_vectors else None,
            remedy=_REMEDIES[gate.figure],
        )
        for gate in gates
    )


def judge_drift(
    figures: Figures, last: Mapping[str, Any] | None, config: QualityConfig
) -> tuple[Verdict, ...]:
    """Returns the verdict on each figure's distance from the last run's.

    Nothing is judged without a last run, with fewer than ``min_vectors`` vectors, or if the config
    ignores drift.

    Args:
        figures: The figures of this run.
        last: The figures of the last run, by name.
        config: The thresholds.
    """
    if last is None or config.drift == "ignore" or figures.vectors < config.min_vectors:
        return ()
    limits = {
        "pair_cosine": config.max_cosine_drift,
        "equal_share": config.max_share_drift,
        "truncated_share": config.max_share_drift,
        "error_share": config.max_share_drift,
    }
    verdicts = []
    for name, limit in limits.items():
        before = last.get(name)
        if not isinstance(before, int | float):
            continue
        gate = Gate(
            figure=name,
            lowest=before - limit,
            highest=before + limit,
            source=f"it was {before:.6g} in the last run",
        )
        verdicts.append(_verdict(gate, getattr(figures, name), remedy=_DRIFT_REMEDY))
    return tuple(verdicts)


def check_quality(quality: Quality, output: str) -> None:
    """Checks that no gate failed.

    Args:
        quality: What the watch has seen.
        output: The table, as the user names it.

    Raises:
        GateError: If a gate failed; the rows are written.
    """
    if quality.failures:
        raise GateError(
            f"The vectors of this run do not pass [quality]: {' '.join(quality.failures)} All rows "
            f"are in {redacted(output)}."
        )


def _verdict(gate: Gate, value: float | None, *, remedy: str) -> Verdict:
    limit = ""
    if value is not None and gate.lowest is not None and value < gate.lowest:
        limit = f"at least {gate.lowest:.6g} is needed"
    elif value is not None and gate.highest is not None and value > gate.highest:
        limit = f"at most {gate.highest:.6g} is allowed"
    source = f" ({gate.source})" if gate.source else ""
    return Verdict(
        figure=gate.figure,
        value=value if value is None or isinstance(value, int) else round(value, 6),
        lowest=gate.lowest,
        highest=gate.highest,
        passed=not limit,
        problem=f"{gate.figure} is {value:.6g}, and {limit}{source}. {remedy}" if limit else "",
    )


def _problems(verdicts: Sequence[Verdict]) -> list[str]:
    return [verdict.problem for verdict in verdicts if not verdict.passed]
