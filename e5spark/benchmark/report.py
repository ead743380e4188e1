"""What people look at: a table, and a chart."""

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


def machine_text(machine: dict[str, Any], peaks: dict[str, Any]) -> str:
    """Returns the lines about the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    gflops = ", ".join(f"{name} {value:.0f}" for name, value in peaks["gflops"].items())
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gb']} GB; "
        f"{' '.join(machine['isa']) or 'no instruction set that matters'}",
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
    """Returns the contenders as a table, and who is left out."""
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
        *(f"{each['name']} left out: {each['reason']}" for each in document["left_out"]),
    ]
    return "\n".join(lines) + "\n"


def plot(document: dict[str, Any], path: Path) -> None:
    """Writes a chart of the speeds of those that embed the same rows.

    Raises:
        OptionError: If matplotlib is not installed, or cannot write such a file.
    """
    check_plot(path)
    from matplotlib.figure import Figure  # without pyplot no display is looked for

    shown = [each for each in document["contenders"] if each["precision"] is not None]
    shown.sort(key=lambda each: each["texts_per_second"]["median"])
    speeds = [each["texts_per_second"] for each in shown]
    medians = [each["median"] for each in speeds]
    spreads = [
        [each["median"] - each["min"] for each in speeds],
        [each["max"] - each["median"] for each in speeds],
    ]
    figure = Figure(figsize=(9, 1.5 + 0.35 * len(shown)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        [each["name"] for each in shown],
        medians,
        xerr=spreads,
        color=[_color(each["name"]) for each in shown],
        ecolor="black",
        capsize=3,
    )
    axes.bar_label(bars, labels=[_label(each) for each in shown], padding=6)
    axes.set_xlim(0, 1.25 * max((each["max"] for each in speeds), default=1))
    axes.set_xlabel("texts per second: median, least and most of the rounds")
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
    """Raises unless a chart can be written to this file; better before the rounds than after.

    Raises:
        OptionError: If matplotlib is not installed, or cannot write such a file.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise OptionError(
            "--plot needs matplotlib: pip install 'e5spark[bench]', or leave --plot out."
        ) from error
    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".") not in kinds:
        raise OptionError(
            f"--plot is {str(path)!r}; its name must end in one of {', '.join(kinds)}."
        )


def _row(found: dict[str, Any]) -> Sequence[str]:
    speed = found["texts_per_second"]
    return (
        found["name"],
        _number(speed["median"]),
        f"{_number(speed['min'])}-{_number(speed['max'])}",
        _median(found["tokens_per_second"], ",.0f"),
        "-" if found["ratio_to_recipe"] is None else f"{found['ratio_to_recipe']:.2f}",
        _median(found["share_of_peak"], ".0%"),
        "-" if found["padding_efficiency"] is None else f"{found['padding_efficiency']:.3f}",
        _median(found["cpu_seconds"], ".1f"),
        _median(found["first_vector_seconds"], ".1f"),
        "+".join(map(str, found["worker_pss_mb"])) or "-",
        "-" if found["worst_cosine"] is None else f"{found['worst_cosine']:.5f}",
    )


def _median(found: dict[str, float] | None, form: str) -> str:
    return "-" if found is None else format(found["median"], form)


def _number(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _label(found: dict[str, Any]) -> str:
    ratio = found["ratio_to_recipe"]
    speed = _number(found["texts_per_second"]["median"])
    return speed if ratio is None else f"{speed}  ({ratio:.2f}x)"


def _color(name: str) -> str:
    return "tab:blue" if name.startswith(("e5spark", "spark")) else "tab:gray"
