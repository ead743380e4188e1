"""The human-readable report: a table and a chart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e5spark.errors import OptionError

_HEADER = (
    "contender",
    "texts/s",
    "(min-max)",
    "tokens/s",
    "x recipe",
    "of peak",
    "padding",
    "CPU s",
    "first s",
    "PSS MB",
    "cosine",
)

# A gain that is larger than the noise of a run.
_WORTH_A_CHOICE = 1.1


def machine_text(machine: dict[str, Any], peaks: dict[str, Any]) -> str:
    """Returns the lines that describe the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gflops = ", ".join(f"{name} {value:.0f}" for name, value in peaks["gflops"].items())
    memory = f"{machine['memory_gb']} GB" if machine["memory_gb"] else "memory unknown"
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, {memory}; "
        f"{' '.join(machine['isa']) or 'no relevant instruction set'}",
        f"{versions}; Python {machine['python']}; commit {machine['commit']}; {machine['date']}",
        f"GEMM peaks on {peaks['threads']} threads, GFLOP/s: {gflops or 'none'}",
    ]
    if "gpu" in peaks:
        gpu = peaks["gpu"]
        figures = ", ".join(f"{name} {value:.0f}" for name, value in gpu["gflops"].items())
        lines.append(f"{gpu['name']}, {gpu['memory_gb']} GB, GFLOP/s: {figures}")
    lines += [f"  {name} not measured: {why}" for name, why in peaks["not_measured"].items()]
    return "\n".join(lines) + "\n"


def table(document: dict[str, Any]) -> str:
    """Returns the contenders as a table, with the reasons why others were left out."""
    texts = document["texts"]
    rows = [_HEADER, *map(_row, document["contenders"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{texts['rows']} texts, {texts['mix']}, {texts['mean_tokens']:.1f} tokens on average; "
        f"model {document['model']['name']}; {document['settings']['rounds']} rounds, medians",
        "",
        *(
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ),
        "",
        *(f"{entry['name']} left out: {entry['reason']}" for entry in document["left_out"]),
    ]
    return "\n".join(lines) + "\n"


def advice(document: dict[str, Any]) -> str:
    """Returns one sentence: which precision to choose on the machine that was measured.

    It compares e5spark's contenders, through Spark if some ran there, with the fastest in fp32.
    """
    ran = [summary for summary in document["contenders"] if summary["kind"] in ("encoder", "embed")]
    kinds = {summary["kind"] for summary in ran}
    fastest: dict[str, dict[str, Any]] = {}
    for summary in ran:
        if "embed" in kinds and summary["kind"] != "embed":
            continue
        best = fastest.get(summary["precision"])
        if best is None or _speed(summary) > _speed(best):
            fastest[summary["precision"]] = summary
    reference = fastest.pop("fp32", None)
    if reference is None:
        return "Which precision to choose: unknown, because e5spark did not run in fp32."
    if not fastest:
        return (
            f"Which precision to choose: unknown, because e5spark ran in fp32 only{_why(document)}"
        )
    ratios = {name: _speed(summary) / _speed(reference) for name, summary in fastest.items()}
    figures = ", ".join(
        f"{name} is {ratios[name]:.2f} times as fast (worst cosine {_cosine(fastest[name])})"
        for name in sorted(ratios, key=ratios.__getitem__)
    )
    gains = [name for name, ratio in ratios.items() if ratio >= _WORTH_A_CHOICE]
    close = [name for name in gains if name != "int8"]
    choice = max(close, key=ratios.__getitem__, default="fp32")
    sentence = f"Choose {choice} on this machine: compared with fp32, {figures}"
    if "int8" in gains and ratios["int8"] > ratios.get(choice, 1.0) * _WORTH_A_CHOICE:
        sentence += "; choose int8 if e5spark compare shows that its vectors serve your purpose"
    return f"{sentence}."


def plot(document: dict[str, Any], path: Path) -> None:
    """Writes a chart of the speeds of the contenders that embed the same rows.

    Raises:
        OptionError: If matplotlib is not installed, or cannot write such a file.
    """
    check_plot(path)
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    summaries = [summary for summary in document["contenders"] if summary["precision"] is not None]
    summaries.sort(key=lambda summary: summary["texts_per_second"]["median"])
    speeds = [summary["texts_per_second"] for summary in summaries]
    medians = [speed["median"] for speed in speeds]
    spreads = [
        [speed["median"] - speed["min"] for speed in speeds],
        [speed["max"] - speed["median"] for speed in speeds],
    ]
    figure = Figure(figsize=(9, 1.5 + 0.35 * len(summaries)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        [summary["name"] for summary in summaries],
        medians,
        xerr=spreads,
        color=[_color(summary["name"]) for summary in summaries],
        ecolor="black",
        capsize=3,
    )
    axes.bar_label(bars, labels=[_label(summary) for summary in summaries], padding=6)
    axes.set_xlim(0, 1.25 * max((speed["max"] for speed in speeds), default=1))
    axes.set_xlabel("texts per second: median, minimum and maximum of the rounds")
    texts, machine = document["texts"], document["machine"]
    axes.set_title(
        f"{document['model']['name']}, {texts['rows']} texts of {texts['mean_tokens']:.0f} tokens "
        f"({texts['mix']})\n{machine['cpu']}, {document['settings']['threads']} threads, commit "
        f"{machine['commit']}, {machine['date'][:10]}",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def check_plot(path: Path) -> None:
    """Raises unless a chart can be written to a file; call it first, because the rounds take long.

    Raises:
        OptionError: If matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise OptionError(
            "--plot needs matplotlib: pip install 'e5spark[bench]', or leave --plot out."
        ) from error
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".") not in formats:
        raise OptionError(
            f"--plot is {str(path)!r}; its name must end in one of {', '.join(formats)}."
        )


def _row(summary: dict[str, Any]) -> Sequence[str]:
    speed = summary["texts_per_second"]
    return (
        summary["name"],
        _number(speed["median"]),
        f"{_number(speed['min'])}-{_number(speed['max'])}",
        _median(summary["tokens_per_second"], ",.0f"),
        "-" if summary["ratio_to_recipe"] is None else f"{summary['ratio_to_recipe']:.2f}",
        _median(summary["share_of_peak"], ".0%"),
        "-" if summary["padding_efficiency"] is None else f"{summary['padding_efficiency']:.3f}",
        _median(summary["cpu_seconds"], ".1f"),
        _median(summary["first_vector_seconds"], ".1f"),
        "+".join(map(str, summary["worker_pss_mb"])) or "-",
        "-" if summary["worst_cosine"] is None else f"{summary['worst_cosine']:.5f}",
    )


def _speed(summary: dict[str, Any]) -> float:
    return float(summary["texts_per_second"]["median"])


def _cosine(summary: dict[str, Any]) -> str:
    cosine = summary["worst_cosine"]
    return "unknown" if cosine is None else f"{cosine:.5f}"


def _why(document: dict[str, Any]) -> str:
    """Why e5spark's other precisions did not run, as the end of a sentence."""
    reasons = {
        entry["reason"]
        for entry in document["left_out"]
        if entry["name"].endswith(("-bf16", "-int8")) and not entry["name"].startswith("st-")
    }
    return f" ({'; '.join(sorted(reasons))})." if reasons else "."


def _median(figures: dict[str, float] | None, form: str) -> str:
    return "-" if figures is None else format(figures["median"], form)


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _label(summary: dict[str, Any]) -> str:
    ratio = summary["ratio_to_recipe"]
    speed = _number(summary["texts_per_second"]["median"])
    return speed if ratio is None else f"{speed}  ({ratio:.2f}x)"


def _color(name: str) -> str:
    return "tab:blue" if name.startswith(("e5spark", "spark")) else "tab:gray"
