"""Charts as SVG whose colours are the page's, so that they follow its light and dark."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from coadapt._sheet import missing
from coadapt.reporting.parts import SMALL

# In a picture stand these; on the page they become its variables (report.css).
INK, FAINT = "#010203", "#a1a2a3"
SERIES = tuple(f"#0{index}0b0c" for index in range(1, 8))
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (2, 1)))
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)"} | {
    color: f"var(--series-{index})" for index, color in enumerate(SERIES, 1)
}
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "coadapt",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.edgecolor": INK,
    "grid.color": FAINT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
WIDE = 7.2  # inches, the page's column
NAMED = 24  # characters of a name in a chart
LEGEND = 14  # names in a legend
CROWD = 100  # points, from which on they are drawn small
NUMBERED, NAMES = 16, 25  # tasks of a heat map whose cells have numbers; whose names are written


def draw(part: Mapping[str, Any], number: int) -> str:
    """Return a chart as an ``<svg>`` element with a title that is its alternative text.

    Args:
        part: of :func:`coadapt.reporting.parts.chart`.
        number: of the chart on its page, which keeps the names inside apart.
    """
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        figure = _FORMS[part["form"]](part)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :]
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>c{number}-", svg)
    # The page's own fonts; a fixed size in points would not shrink on a phone.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    opening, _, rest = svg.partition(">")
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    # So that letters are as large in a narrow chart as in a wide one (report.css).
    share = f'style="--share: {float(figure.get_figwidth()) / WIDE:.3f}"'
    label = f"c{number}-title"
    title = f'<title id="{label}">{escape(part["alt"])}</title>'
    return f'{opening} {share} role="img" aria-labelledby="{label}">{title}{rest}'


def _plain(name: str, longest: int = NAMED) -> str:
    """Return a name, not too long, without what matplotlib takes for mathematics."""
    return _escaped(name if len(name) <= longest else name[: longest - 1] + "…")


def _escaped(text: str) -> str:
    return text.replace("$", r"\$")


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _intervals(part: Mapping[str, Any]) -> Any:
    """Draw values with their intervals about zero; shapes say what is shown."""
    rows = list(reversed(part["rows"]))
    figure, [panel] = _figure(WIDE, 0.7 + 0.28 * len(rows))
    panel.axvline(0.0, color=FAINT, linewidth=1)
    styles = {"win": (SERIES[0], "^"), "loss": (SERIES[1], "v"), "tie": (INK, "o")}
    for outcome, told in part["looks"].items():
        color, marker = styles[outcome]
        at = [index for index, row in enumerate(rows) if row["mark"] == outcome]
        if not at:
            continue
        values = np.array([rows[index]["value"] for index in at])
        ends = [[rows[index][end] for index in at] for end in ("low", "high")]
        lows, highs = (
            np.array([v if e is None else e for v, e in zip(values, end, strict=True)])
            for end in ends
        )
        panel.errorbar(values, at, xerr=[values - lows, highs - values], fmt=marker, color=color,
                       markersize=6, linewidth=1.4, capsize=2, label=told)  # fmt: skip
    panel.set_yticks(range(len(rows)), [_plain(row["name"], 2 * NAMED) for row in rows])
    panel.set_ylim(-0.6, len(rows) - 0.4)
    panel.set_xlabel(_escaped(part["x_title"]))
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    return figure


def _lines(part: Mapping[str, Any]) -> Any:
    """Draw panels of lines with bands; colours, shapes and dashes tell them apart."""
    panels_told = part["panels"]
    columns = min(3, len(panels_told))
    rows = -(-len(panels_told) // columns)
    names = list(dict.fromkeys(s["name"] for panel in panels_told for s in panel["series"]))
    named = names[:LEGEND]
    figure, panels = _figure(WIDE, 2.3 * rows + 0.25 * -(-len(named) // 4), rows, columns)
    for panel, told in zip(panels, panels_told, strict=False):
        for series in told["series"]:
            index = names.index(series["name"])
            color, marker = SERIES[index % len(SERIES)], _marker(index)
            dash = DASHES[(index // len(SERIES) + index) % len(DASHES)]
            label = _plain(series["name"]) if series["name"] in named else None
            panel.plot(series["x"], series["y"], color=color, marker=marker, linestyle=dash,
                       markersize=4, linewidth=1.4, label=label)  # fmt: skip
            if series["low"] and not any(missing(end) for end in (*series["low"], *series["high"])):
                panel.fill_between(
                    series["x"], series["low"], series["high"], color=color, alpha=0.15, linewidth=0
                )
        panel.set_title(_plain(told["title"]))
        panel.grid(axis="y", linewidth=0.4)
        if part.get("log"):
            places = sorted({x for series in told["series"] for x in series["x"]})
            panel.set_xscale("log")
            panel.set_xticks(places, [f"{place:g}" for place in places])
            panel.minorticks_off()
    for panel in panels[len(panels_told) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(panels_told) - columns) : len(panels_told)]:
        panel.set_xlabel(part["x_title"])
    handles = {h.get_label(): h for panel in panels for h in panel.get_legend_handles_labels()[0]}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=min(4, len(handles) or 1),
        frameon=False,
    )
    return figure  # fmt: skip


def _heat(part: Mapping[str, Any]) -> Any:
    """Draw a matrix in the order of its dendrogram, with numbers in the cells."""
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    values = np.array([[np.nan if v is None else v for v in row] for row in part["values"]])
    names, number = part["names"], len(values)
    size = min(WIDE, 2.2 + 0.42 * number)
    known = part["tree"] and number > 2 and not np.isnan(values).any()
    figure, panels = _figure(size, size * 0.82 + (0.8 if known else 0.0), 2 if known else 1)
    order = list(range(number))
    if known:
        panels[0].get_gridspec().set_height_ratios([1, 5])
        distances = np.clip(1.0 - (values + values.T) / 2, 0.0, None)
        np.fill_diagonal(distances, 0.0)
        merges = linkage(squareform(distances, checks=False), method="average")
        drawn = dendrogram(merges, ax=panels[0], no_labels=True, link_color_func=lambda _: INK)
        order = drawn["leaves"]
        panels[0].set_xlim(0, 10 * number)
        panels[0].set_ylabel("1 - value")
        panels[0].spines["bottom"].set_visible(False)
    panel = panels[-1]
    shown = values[np.ix_(order, order)]
    # An opacity tells the size, on light and on dark paper; the colour tells the sign.
    _cells(panel, shown)
    panel.set(xlim=(-0.5, number - 0.5), ylim=(number - 0.5, -0.5))
    labels = [_plain(names[index]) for index in order]
    each = -(-number // NAMES)
    panel.set_xticks(range(0, number, each), labels[::each], rotation=45, ha="right")
    panel.set_yticks(range(0, number, each), labels[::each])
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    return figure


def _cells(panel: Any, values: np.ndarray) -> None:
    """Fill the cells off the diagonal; a number or, of many, a cross tells what is negative."""
    number = len(values)
    off = ~np.eye(number, dtype=bool) & ~np.isnan(values)
    span = max(float(np.abs(values[off]).max(initial=1e-9)), 1e-9)
    # An opacity tells the size, on light and on dark paper; the color tells the sign.
    strength = np.where(off, 0.5 * np.abs(values) / span, 0.0)
    if number > NUMBERED:
        # One picture of all cells, in colors between the light page's and the dark one's.
        image = np.zeros((number, number, 4))
        image[..., :3] = np.where((values >= 0)[..., None], (0.2, 0.55, 0.8), (0.85, 0.45, 0.15))
        image[..., 3] = 2 * strength
        panel.imshow(image, interpolation="nearest", aspect="auto")
        rows, columns = np.nonzero(off & (values < 0))
        panel.plot(columns, rows, "x", color=INK, markersize=2, linestyle="", rasterized=True)
        return
    digits = 2 if span >= SMALL else 3
    for i, j in zip(*np.nonzero(off), strict=True):
        color = SERIES[0] if values[i, j] >= 0 else SERIES[1]
        panel.add_patch(_cell(i, j, color, float(strength[i, j])))
        told = f"{round(float(values[i, j]), digits) + 0.0:.{digits}f}".replace("0.", ".", 1)
        panel.text(j, i, told, ha="center", va="center", fontsize=8)


def _cell(row: int, column: int, color: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, color=color, alpha=alpha, linewidth=0)


def _strip(part: Mapping[str, Any]) -> Any:
    """Draw random plans' scores as points, and the plan's own place among them."""
    figure, [panel] = _figure(WIDE, 1.4)
    null: Sequence[float] = part["null"]
    heights = np.resize([0.0, 0.25, -0.25], len(null))
    panel.plot(null, heights, "o", color=FAINT, markeredgecolor=INK, label="random plans")
    panel.plot(
        [part["value"]], [0.0], "D", color=SERIES[1], markersize=8, label=_plain(part["name"])
    )
    panel.set_yticks([])
    panel.set_ylim(-0.8, 0.8)
    panel.spines["left"].set_visible(False)
    panel.set_xlabel("mean test score")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


def _scatter(part: Mapping[str, Any]) -> Any:
    """Draw groups of points; the axes are named by the part."""
    groups = part["groups"]
    figure, [panel] = _figure(WIDE, 4.0 + 0.25 * (min(len(groups), LEGEND) // 4))
    if not part.get("equal"):  # of a map neither axis has a place that counts
        panel.axhline(0.0, color=FAINT, linewidth=1)
    few = sum(len(group["points"]) for group in groups) <= CROWD
    size = 6 if few else 3.5
    for index, group in enumerate(groups):
        x, y = zip(*group["points"], strict=True) if group["points"] else ((), ())
        color, marker = SERIES[index % len(SERIES)], _marker(index)
        label = _plain(group["name"]) if index < LEGEND else None
        panel.plot(x, y, marker, color=color, markersize=size, markeredgewidth=0, label=label)
    panel.set(xlabel=part["x_title"], ylabel=part["y_title"])
    if part.get("equal"):
        panel.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside upper right", ncols=min(4, len(groups) or 1), frameon=False)
    return figure


def _marker(index: int) -> str:
    """Return a shape that, with a color, is that of one group out of 49."""
    return MARKERS[(index + index // len(MARKERS)) % len(MARKERS)]


_FORMS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "intervals": _intervals,
    "lines": _lines,
    "heat": _heat,
    "strip": _strip,
    "scatter": _scatter,
}
