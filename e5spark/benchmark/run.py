"""A benchmark from beginning to end: machine, model, texts, rounds, report."""

import json
import logging
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from e5spark.benchmark import corpus, machine, report, synthetic
from e5spark.benchmark.contenders import Contender, contenders, selected, with_pythons
from e5spark.benchmark.figures import Rows, agreement, compare, summarize
from e5spark.benchmark.rounds import Children, run_rounds
from e5spark.benchmark.settings import Settings
from e5spark.benchmark.shapes import SHAPES, flops
from e5spark.benchmark.task import Task
from e5spark.errors import E5SparkError, OptionError
from e5spark.model import prompts
from e5spark.model.json_file import read_json
from e5spark.model.resolve import resolve
from e5spark.model.spec import model_spec
from e5spark.names import redacted

log = logging.getLogger("e5spark")

FORMAT = 1  # of the document
_COUNTED = ("bert", "xlm-roberta")  # architectures whose operations ``flops`` can count


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The model and the texts of a benchmark, on disk.

    Attributes:
        directory: The directory of the checkpoint.
        config: The content of its config.json.
        role: The role of the texts.
        prefix: The prefix that the role adds to each text.
        texts: The Parquet file of the texts.
        lengths: Tokens of each text after truncation.  # (rows,)
    """

    directory: Path
    config: dict[str, Any]
    role: str
    prefix: str
    texts: Path
    lengths: corpus.Ints

    @property
    def flops(self) -> float | None:
        """Returns the operations that all texts need; None for an uncounted architecture."""
        if self.config.get("model_type") not in _COUNTED:
            return None
        return flops(
            self.lengths,
            layers=self.config["num_hidden_layers"],
            hidden=self.config["hidden_size"],
            ffn=self.config["intermediate_size"],
        )


def run(settings: Settings) -> dict[str, Any]:
    """Returns the document of a benchmark; prints the machine first, and a table at the end.

    Raises:
        E5SparkError: If every contender failed.
        ModelError: If the model cannot be used.
        OptionError: If no contender is left, or a package is not installed.
    """
    host = machine.describe()
    candidates = contenders(
        host, threads=settings.threads, device=settings.device, prepared=settings.prepared
    )
    selection = selected(
        with_pythons(candidates, settings.pythons), only=settings.only, skip=settings.skip
    )
    runnable = {contender.name: contender for contender in selection if contender.missing is None}
    left_out = {
        contender.name: contender.missing
        for contender in selection
        if contender.missing is not None
    }
    if not runnable:
        raise OptionError(_no_contender(left_out))
    with ExitStack() as stack:
        work = settings.work or Path(stack.enter_context(TemporaryDirectory(prefix="e5spark-")))
        work = work.absolute()
        workload = make_workload(settings, work)
        peaks = [_peaks(settings, workload)]
        _show(report.machine_text(host, peaks[0]))
        if settings.device != "cpu" and "gpu" not in peaks[0]:
            raise OptionError(
                f"--device is {settings.device!r}, but torch sees no GPU here; use --device cpu."
            )
        tasks = {
            name: _task(contender, settings, workload, work) for name, contender in runnable.items()
        }
        children = Children(tasks, work=work, fresh=settings.fresh)
        with closing(children):
            figures, failed = run_rounds(children, list(runnable), settings.rounds)
        if not any(figures.values()):
            raise E5SparkError(_no_contender(failed))
        # A second time, because the machine may have become slower or faster during the rounds.
        peaks.append(_peaks(settings, workload))
    document = {
        "format": FORMAT,
        "machine": host,
        "peaks": peaks,
        "model": {"name": settings.model or settings.shape, **_dimensions(workload.config)},
        "settings": _plain(settings),
        "texts": {
            "mix": settings.mix,
            "rows": settings.rows,
            "tokens": int(workload.lengths.sum()),
            "mean_tokens": float(workload.lengths.mean()),
            "gflop": None if workload.flops is None else workload.flops / 1e9,
        },
        **_summaries(runnable, figures, settings, workload, _best(peaks, settings.device)),
        "left_out": [
            {"name": name, "reason": redacted(reason)}
            for name, reason in {**left_out, **failed}.items()
        ],
    }
    _show(report.table(document))
    _show(report.advice(document))
    return document


def make_workload(settings: Settings, work: Path) -> Workload:
    """Returns the model and the texts; makes the model if ``work`` does not have it yet."""
    if settings.model is None:
        directory = synthetic.checkpoint(
            SHAPES[settings.shape], work / "models", name=settings.shape, seed=settings.seed
        )
    else:
        directory = Path(settings.model).absolute()
    options = {} if settings.checkpoint is None else {"checkpoint": settings.checkpoint}
    spec = model_spec(str(directory), options)
    resolved = resolve(spec)
    files, recipe = resolved.files, resolved.recipe
    mix = corpus.MIXES[settings.mix]
    prefix = prompts.prefix(recipe.prompts, mix.role, None)
    tokenizer = corpus.load_tokenizer(files.tokenizer)
    texts = corpus.make_texts(
        mix, settings.rows, tokenizer=tokenizer, prefix=prefix, seed=settings.seed
    )
    path = work / f"texts-{settings.mix}-{settings.rows}-{settings.seed}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path)
    return Workload(
        directory=directory,
        config=read_json(directory / "config.json"),
        role=mix.role,
        prefix=prefix,
        texts=path,
        lengths=corpus.token_counts(
            texts, tokenizer=tokenizer, prefix=prefix, max_tokens=recipe.max_tokens
        ),
    )


def _peaks(settings: Settings, workload: Workload) -> dict[str, Any]:
    measured = machine.peaks(
        threads=settings.threads,
        hidden=workload.config["hidden_size"],
        ffn=workload.config["intermediate_size"],
        seconds=settings.gemm_seconds,
    )
    return {"threads": settings.threads, **measured}


def _best(peaks: list[dict[str, Any]], device: str) -> dict[str, float]:
    """Precision to the best measurement, which is the machine's limit."""
    # The second measurement may have failed, for lack of memory after the rounds.
    measured = [
        peak["gflops"] if device == "cpu" else peak.get("gpu", {"gflops": {}})["gflops"]
        for peak in peaks
    ]
    return {name: max(gflops.get(name, 0.0) for gflops in measured) for name in measured[0]}


def _task(contender: Contender, settings: Settings, workload: Workload, work: Path) -> Task:
    copies = 1
    if contender.transport:
        copies = max(round(settings.transport_rows / settings.rows), 1)
    return Task(
        name=contender.name,
        kind=contender.kind,
        python=contender.python or sys.executable,
        model=contender.model or str(workload.directory),
        checkpoint=settings.checkpoint,
        options=dict(contender.options),
        texts=str(workload.texts),
        role=workload.role,
        prefix=workload.prefix,
        threads=settings.threads,
        workers=contender.workers,
        partitions=settings.partitions,
        copies=copies,
        work=str(work),
    )


def _summaries(
    runnable: Mapping[str, Contender],
    figures: dict[str, list[dict[str, Any]]],
    settings: Settings,
    workload: Workload,
    peaks: dict[str, float],
) -> dict[str, Any]:
    summaries, vectors = [], {}
    for name, contender in runnable.items():
        if not figures[name]:
            continue
        copies = _task(contender, settings, workload, Path()).copies
        rows = Rows(
            rows=settings.rows * copies, tokens=int(workload.lengths.sum()), flops=workload.flops
        )
        summaries.append(summarize(contender, figures[name], rows, peaks))
        vectors[name] = figures[name][0]["first"]["vectors"]
    compare(summaries)
    return {"vectors_compared_with": agreement(summaries, vectors), "contenders": summaries}


def _dimensions(config: dict[str, Any]) -> dict[str, Any]:
    names = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    return {name: config.get(name) for name in names}


def _plain(settings: Settings) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return plain


def _no_contender(reasons: dict[str, str]) -> str:
    if not reasons:
        return "No contender is left; check --only and --skip."
    sentences = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"None of the contenders can run here: {sentences}."


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
