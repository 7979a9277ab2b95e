"""What the pictures share: a page that writes itself, colours with shapes, boxes and intervals."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coadapt._errors import InputError
from coadapt._files import write_text
from coadapt._sheet import missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, without yellow, which is faint on white; and shapes, for those who see no color
# and for more than seven.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "<", ">")
GRAY = "0.6"

_SETTINGS: dict[Any, Any] = {"svg.hashsalt": "coadapt", "font.size": 9, "axes.titlesize": 10}


class Page:
    """A figure that is being drawn.

    Attributes:
        figure: to be filled.
        panels: its axes in a row, or as asked for.
        alt: its alternative text.
    """

    def __init__(self, figure: "Figure", panels: Sequence["Axes"]) -> None:
        self.figure, self.panels = figure, panels
        self.alt = ""

    def legend(self, names: Sequence[str]) -> None:
        """Name colors and shapes above the panels."""
        from matplotlib.lines import Line2D

        handles = []
        for index, name in enumerate(names):
            color, marker = style(index)
            handles.append(Line2D([], [], color=color, marker=marker, linestyle="", label=name))
        inches = self.figure.get_figwidth()
        longest = max(len(name) for name in names)
        columns = max(1, min(len(names), int(inches / (0.35 + 0.075 * longest))))
        self.figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=columns,
            frameon=False,
            handletextpad=0.2,
        )


@contextmanager
def page(
    path: str | Path, size: tuple[float, float], *, rows: int = 1, columns: int = 1
) -> Iterator[Page]:
    """Give a page to fill, and write it; the same numbers give the same file.

    Args:
        path: of the file, .svg or .png.
        size: in inches.
        rows: of panels.
        columns: of panels.

    Raises:
        InputError: if the path has another ending, or its folder does not exist.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise InputError(f"{path}: a picture is written as .svg or .png")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it first")
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
        drawn = Page(figure, panels)
        yield drawn
        if path.suffix == ".png":
            figure.savefig(path, dpi=120, metadata={"Description": drawn.alt})
            return
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    head, opening, rest = buffer.getvalue().partition("<svg ")
    tag, closing, body = rest.partition(">")
    told = f'{opening}role="img" {tag}{closing}\n <title>{escape(drawn.alt)}</title>'
    text = "\n".join(line.rstrip() for line in f"{head}{told}{body}".splitlines())
    write_text(path, text + "\n")


def style(index: int) -> tuple[str, str]:
    """Return the color and the shape of the so-manieth group."""
    return COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]


def boxes(panel: "Axes", groups: Sequence[Sequence[float]], index: int, num: int) -> None:
    """Draw the ``index``-th of ``num`` boxes at each place, with a point a value."""
    color, marker = style(index)
    width = min(0.35, 0.7 / num)
    for place, values in enumerate(groups):
        if not values:
            continue
        x = place + (index - (num - 1) / 2) * width
        panel.boxplot(
            [list(values)],
            positions=[x],
            widths=0.8 * width,
            manage_ticks=False,
            showfliers=False,
            medianprops={"color": color, "linewidth": 1.6},
            boxprops={"color": color},
            whiskerprops={"color": color},
            capprops={"color": color},
        )
        jitter = np.linspace(-0.22, 0.22, len(values)) * width if len(values) > 1 else [0.0]
        panel.scatter(
            x + np.asarray(jitter), values, s=10, color=color, marker=marker, alpha=0.6, linewidth=0
        )


def diagonal(panel: "Axes", pairs: Sequence[tuple[float, float]], *, log: bool) -> None:
    """Make both axes alike, with the line on which they are equal."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = [value for pair in pairs for value in pair if not missing(value)]
    if log and values and min(values) > 0:
        low, high = min(values) / 1.5, max(values) * 1.5
        panel.set(xscale="log", yscale="log")
        for axis in (panel.xaxis, panel.yaxis):
            subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
            axis.set_major_locator(LogLocator(subs=subs))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    else:
        spread = (max(values, default=1.0) - min(values, default=0.0)) or 1.0
        low = min(values, default=0.0) - 0.08 * spread
        high = max(values, default=1.0) + 0.08 * spread
    panel.plot([low, high], [low, high], color=GRAY, linewidth=0.8, zorder=0)
    panel.set(xlim=(low, high), ylim=(low, high))
    panel.set_box_aspect(1)


def lengths(
    means: Sequence[float], lows: Sequence[float | None], highs: Sequence[float | None]
) -> list[list[float]]:
    """Return what an error bar takes: how far it goes below and above; 0 where there is none."""
    below = [0.0 if low is None else mean - low for mean, low in zip(means, lows, strict=True)]
    above = [0.0 if high is None else high - mean for mean, high in zip(means, highs, strict=True)]
    return [below, above]
