"""Numbers for people: thousands, shares, durations."""


def count(value: float | None) -> str:
    """Returns a whole number with thousands separators; a dash for None."""
    return "-" if value is None else f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """Returns a share in percent, with as many digits as make it differ from 0."""
    if not whole or not part:
        return "0 %"
    percent = 100 * part / whole
    if percent >= 10 or percent == int(percent):
        return f"{percent:.0f} %" if percent < 99.5 or part == whole else "> 99 %"
    return f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"


def duration(seconds: float) -> str:
    """Returns seconds as hours, minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {left:02d} s"


def rate(value: float) -> str:
    """Returns a rate with a digit after the point if it is below 100."""
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def figure(value: float | None) -> str:
    """Returns a figure with up to six digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4g}"
