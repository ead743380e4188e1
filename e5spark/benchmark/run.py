"""One benchmark from beginning to end: machine, model, texts, rounds, report."""

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

log = logging.getLogger("e5spark")

FORMAT = 1  # of the document
_ARCHITECTURES = ("bert", "xlm-roberta")  # whose operations are known


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The model and the texts of a benchmark, on disk.

    Attributes:
        directory: Of the checkpoint.
        config: Its config.json.
        role: What the texts are for.
        prefix: What the role puts before each.
        texts: Parquet file.
        lengths: Tokens that the model reads of each text.
    """

    directory: Path
    config: dict[str, Any]
    role: str
    prefix: str
    texts: Path
    lengths: corpus.Ints

    @property
    def flops(self) -> float | None:
        """Returns the operations that all texts need; None for a model of another kind."""
        if self.config.get("model_type") not in _ARCHITECTURES:
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
        ModelError: If the model that was given cannot be used.
        OptionError: If no contender is left.
    """
    host = machine.describe()
    everyone = contenders(
        host, threads=settings.threads, device=settings.device, prepared=settings.prepared
    )
    chosen = selected(
        with_pythons(everyone, settings.pythons), only=settings.only, skip=settings.skip
    )
    if not any(each.missing is None for each in chosen):
        raise OptionError(_nobody({each.name: str(each.missing) for each in chosen}))
    with ExitStack() as stack:
        work = settings.work or Path(stack.enter_context(TemporaryDirectory(prefix="e5spark-")))
        work = work.absolute()
        prepared = prepare(settings, work)
        peaks = [_peaks(settings, prepared)]
        _show(report.machine_text(host, peaks[0]))
        if settings.device != "cpu" and "gpu" not in peaks[0]:
            raise OptionError(f"--device is {settings.device!r}, but torch sees no GPU here.")
        able = {each.name: each for each in chosen if each.missing is None}
        tasks = {name: _task(each, settings, prepared, work) for name, each in able.items()}
        children = Children(tasks, work=work, fresh=settings.fresh)
        with closing(children):
            figures, failed = run_rounds(children, list(able), settings.rounds)
        if not any(figures.values()):
            raise E5SparkError(_nobody(failed))
        # Once more: a machine that has become slower or faster meanwhile shows here.
        peaks.append(_peaks(settings, prepared))
    missing = {each.name: each.missing for each in chosen if each.missing is not None}
    document = {
        "format": FORMAT,
        "machine": host,
        "peaks": peaks,
        "model": {"name": settings.model or settings.shape, **_measures(prepared.config)},
        "settings": _plain(settings),
        "texts": {
            "mix": settings.mix,
            "rows": settings.rows,
            "tokens": int(prepared.lengths.sum()),
            "mean_tokens": float(prepared.lengths.mean()),
            "gflop": None if prepared.flops is None else prepared.flops / 1e9,
        },
        **_summaries(able, figures, settings, prepared, _best(peaks, settings.device)),
        "left_out": [
            {"name": name, "reason": reason} for name, reason in {**missing, **failed}.items()
        ],
    }
    _show(report.table(document))
    return document


def prepare(settings: Settings, work: Path) -> Prepared:
    """Returns the model and the texts, made if they are not in ``work`` yet."""
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
    return Prepared(
        directory=directory,
        config=read_json(directory / "config.json"),
        role=mix.role,
        prefix=prefix,
        texts=path,
        lengths=corpus.token_counts(
            texts, tokenizer=tokenizer, prefix=prefix, max_tokens=recipe.max_tokens
        ),
    )


def _peaks(settings: Settings, prepared: Prepared) -> dict[str, Any]:
    config = prepared.config
    found = machine.peaks(
        threads=settings.threads, hidden=config["hidden_size"], ffn=config["intermediate_size"]
    )
    return {"threads": settings.threads, **found}


def _best(peaks: list[dict[str, Any]], device: str) -> dict[str, float]:
    """Precision to the best that was measured: a limit is what the machine can do."""
    measured = [each["gflops"] if device == "cpu" else each["gpu"]["gflops"] for each in peaks]
    return {name: max(each.get(name, 0.0) for each in measured) for name in measured[0]}


def _task(contender: Contender, settings: Settings, prepared: Prepared, work: Path) -> Task:
    copies = 1
    if contender.transport:
        copies = max(round(settings.transport_rows / settings.rows), 1)
    return Task(
        name=contender.name,
        kind=contender.kind,
        python=contender.python or sys.executable,
        model=contender.model or str(prepared.directory),
        checkpoint=settings.checkpoint,
        options=dict(contender.options),
        texts=str(prepared.texts),
        role=prepared.role,
        prefix=prepared.prefix,
        threads=settings.threads,
        workers=contender.workers,
        partitions=settings.partitions,
        copies=copies,
        work=str(work),
    )


def _summaries(
    able: Mapping[str, Contender],
    figures: dict[str, list[dict[str, Any]]],
    settings: Settings,
    prepared: Prepared,
    peaks: dict[str, float],
) -> dict[str, Any]:
    found, vectors = [], {}
    for name, contender in able.items():
        if not figures[name]:
            continue
        copies = _task(contender, settings, prepared, Path()).copies
        rows = Rows(
            rows=settings.rows * copies, tokens=int(prepared.lengths.sum()), flops=prepared.flops
        )
        found.append(summarize(contender, figures[name], rows, peaks))
        vectors[name] = figures[name][0]["first"]["vectors"]
    compare(found)
    return {"vectors_compared_with": agreement(found, vectors), "contenders": found}


def _measures(config: dict[str, Any]) -> dict[str, Any]:
    names = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    return {name: config.get(name) for name in names}


def _plain(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return found


def _nobody(reasons: dict[str, str]) -> str:
    if not reasons:
        return "No contender is left; look at --only and --skip."
    named = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"None of the contenders can run here: {named}."


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
