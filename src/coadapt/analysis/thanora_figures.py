"""Pictures of ranks and entropies by layer, of subspaces over steps and of sweeps.

Each function writes one file, SVG or PNG, and returns its alternative text, as those of
:mod:`coadapt.analysis.figures` do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coadapt._errors import InputError
from coadapt.analysis._drawing import GRAY, Page, lengths, page, style
from coadapt.analysis._modules import by_kind
from coadapt.analysis.rank_allocations import RankAllocation, SpectralEntropies
from coadapt.analysis.subspaces import SubspaceOverlap, middle
from coadapt.analysis.sweeps import BUDGET, Sweep
from coadapt.planning import COOPERATIVE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# With the colors, so that neighbors in a stack differ without them.
_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++", "oo", "||", "**")
_COLUMNS = 3  # panels in a row
_LINES = ("-", "--", ":", "-.")


def draw_ranks(found: RankAllocation, path: str | Path) -> str:
    """Draw each block's rank as a stack a layer, a panel a kind of map.

    Figure 4 of ThanoRA (arXiv 2505.18640), where it is lines of means over the maps of a layer.

    Args:
        found: of :func:`coadapt.analysis.rank_allocation`.
        path: of the file.

    Returns:
        The alternative text.
    """
    from matplotlib.patches import Patch

    kinds = by_kind(found.ranks)
    faces = {}
    for index, block in enumerate(found.blocks):
        color = "0.85" if block == COOPERATIVE else style(index)[0]
        hatch = "" if block == COOPERATIVE else _HATCHES[index % len(_HATCHES)]
        faces[block] = {"facecolor": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
    with page(path, _size(len(kinds), len(found.blocks)), **_grid(len(kinds))) as drawn:
        for panel, (kind, layers) in zip(_used(drawn, len(kinds)), kinds.items(), strict=True):
            bottom = np.zeros(len(layers))
            for block in found.blocks:
                heights = np.array([found.ranks[module][block] for module in layers.values()])
                panel.bar(list(layers), heights, bottom=bottom, width=0.85, **faces[block])
                bottom += heights
            _layers(panel, kind, list(layers))
        drawn.panels[0].set_ylabel("rank")
        handles = [Patch(label=block, **face) for block, face in faces.items()]
        columns = max(1, int(drawn.figure.get_figwidth() / 1.5))
        drawn.figure.legend(
            handles=handles, loc="outside upper center", ncols=columns, frameon=False
        )
        drawn.alt = f"Ranks by layer and kind of map, stacked by block: {found.reading}."
    return drawn.alt


def draw_entropies(found: SpectralEntropies, path: str | Path) -> str:
    """Draw the normalised spectral entropy over layers, a line a task, a panel a kind of map.

    Figure 1c of ThanoRA (arXiv 2505.18640).

    Args:
        found: of :func:`coadapt.analysis.spectral_entropies`.
        path: of the file.

    Returns:
        The alternative text.
    """
    kinds = by_kind(found.normalised)
    values = [value for of in found.normalised.values() for value in of.values()]
    margin = 0.08 * (max(values) - min(values)) or 0.05
    with page(path, _size(len(kinds), len(found.tasks)), **_grid(len(kinds))) as drawn:
        for panel, (kind, layers) in zip(_used(drawn, len(kinds)), kinds.items(), strict=True):
            for index, task in enumerate(found.tasks):
                color, marker = style(index)
                line = [found.normalised[module][task] for module in layers.values()]
                panel.plot(
                    list(layers), line, color=color, marker=marker, markersize=4, linewidth=1.2
                )
            _layers(panel, kind, list(layers))
            panel.set_ylim(min(values) - margin, max(values) + margin)
        drawn.panels[0].set_ylabel("entropy / ln R")
        drawn.legend(found.tasks)
        drawn.alt = f"Spectral entropy by layer and kind of map, a line a task: {found.reading}."
    return drawn.alt


def draw_overlap(found: Mapping[str, SubspaceOverlap], path: str | Path) -> str:
    """Draw overlaps of tasks' blocks and effective ranks over steps, a line a run.

    Lines are medians over modules and pairs of blocks, bands go from quartile to quartile; what
    random subspaces have is dashed.

    Args:
        found: by the name that a run is to have, such as with and without SPR.
        path: of the file.

    Returns:
        The alternative text.
    """
    if not found:
        raise InputError("found is empty; there is nothing to draw")
    with page(path, (10.6, 3.4), columns=4) as drawn:
        for panel, (key, random, title) in zip(
            drawn.panels,
            (
                ("columns", "random_columns", "column spaces of B"),
                ("rows", "random_rows", "row spaces of A"),
                ("effective_rank", "", "the sum of all blocks"),
                ("added_rank", "", "what training added"),
            ),
            strict=True,
        ):
            known = [
                _over_steps(panel, one, key, index) for index, one in enumerate(found.values())
            ]
            for one in found.values():
                if random:
                    level = middle(getattr(one, random))
                    panel.axhline(level, color=GRAY, linestyle="--", linewidth=1, zorder=0)
            panel.set(title=title, xlabel="step")
            if not any(known):
                panel.text(0.5, 0.5, "zero", ha="center", transform=panel.transAxes)
        for pair in (drawn.panels[:2], drawn.panels[2:]):
            highest = max(panel.get_ylim()[1] for panel in pair)
            for panel in pair:
                panel.set_ylim(0.0, highest)
        drawn.panels[0].set_ylabel("mean squared cosine (dashed: random)")
        drawn.panels[2].set_ylabel("effective rank")
        drawn.legend(list(found))
        told = " ".join(f"{name}: {one.reading}." for name, one in found.items())
        drawn.alt = f"Overlap of tasks' subspaces and effective rank by step. {told}"
    return drawn.alt


def draw_sweeps(found: Sequence[Sweep], path: str | Path) -> str:
    """Draw scores against settings, a panel a setting, a line a recipe.

    Figures 3 and 5 of ThanoRA (arXiv 2505.18640). Values that go by factors are on a logarithmic
    axis; those that are no numbers, or have a 0 among them, are at equal steps.

    Args:
        found: of :func:`coadapt.analysis.sweep`, of one or more settings.
        path: of the file.

    Returns:
        The alternative text.
    """
    if not found:
        raise InputError("found is empty; there is nothing to draw")
    panels: dict[tuple[str, str], list[Sweep]] = {}
    for one in found:
        panels.setdefault((one.key, one.setting), []).append(one)
    labels = list(dict.fromkeys(one.label for one in found))
    shape = _grid(len(panels))
    size = (3.6 * shape["columns"] + 0.6, 2.9 * shape["rows"] + 0.5)
    with page(path, size, **shape) as drawn:
        used = _used(drawn, len(panels))
        for panel, ((key, setting), members) in zip(used, panels.items(), strict=True):
            places = _axis(panel, members)
            for one in members:
                _curve(panel, one, places, labels.index(one.label))
            _baseline(panel, members)
            panel.set(xlabel="rank budget" if key == BUDGET else key, title=setting)
        low = min(panel.get_ylim()[0] for panel in used)
        high = max(panel.get_ylim()[1] for panel in used)
        for panel in used:
            panel.set_ylim(low, high)
        for panel in used[:: shape["columns"]]:
            panel.set_ylabel("mean test score, 95 % interval")
        drawn.legend(labels)
        told = "; ".join(one.reading for one in found)
        drawn.alt = f"Mean test score by setting. {told}."
    return drawn.alt


def _axis(panel: "Axes", members: Sequence[Sweep]) -> dict[float | str, float]:
    """Set the axis of a panel and return where each value is on it."""
    values = list(dict.fromkeys(value for one in members for value in one.values))
    values.sort(key=lambda value: (isinstance(value, str), value))
    told = [value if isinstance(value, str) else f"{value:g}" for value in values]
    numbers = [value for value in values if not isinstance(value, str)]
    steps = len(numbers) < len(values) or 0 in numbers
    places = [float(i) for i in range(len(values))] if steps else [float(v) for v in numbers]
    if not steps and any(one.geometric for one in members):
        panel.set_xscale("log")
    panel.set_xticks(places, told)
    panel.minorticks_off()
    panel.margins(x=0.1)
    return dict(zip(values, places, strict=True))


def _curve(panel: "Axes", one: Sweep, places: Mapping[float | str, float], index: int) -> None:
    points = [(places[point.value], point) for point in one.points if point.value is not None]
    means = [point.mean for _, point in points]
    color, marker = style(index)
    panel.errorbar(
        [x for x, _ in points],
        means,
        yerr=lengths(means, [p.low for _, p in points], [p.high for _, p in points]),
        color=color,
        marker=marker,
        linestyle=_LINES[index % len(_LINES)] if len(one.values) == len(points) else "",
        capsize=3,
    )


def _baseline(panel: "Axes", members: Sequence[Sweep]) -> None:
    base = next((one.baseline for one in members if one.baseline is not None), None)
    if base is None:
        return
    panel.axhline(base.mean, color=GRAY, linestyle="--", linewidth=1, zorder=0)
    if base.low is not None and base.high is not None:
        panel.axhspan(base.low, base.high, color=GRAY, alpha=0.15, linewidth=0, zorder=0)
    panel.annotate(
        base.arm, (1.0, base.mean), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", ha="right", color="0.35",
    )  # fmt: skip


def _over_steps(panel: "Axes", one: SubspaceOverlap, key: str, index: int) -> bool:
    """Draw a median a step with its quartiles, and return whether there was one."""
    color, marker = style(index)
    known = [(step, v[~np.isnan(v)]) for step, v in zip(one.steps, getattr(one, key), strict=True)]
    known = [(step, v) for step, v in known if v.size]
    if not known:
        return False
    x = [step for step, _ in known]
    low, mid, high = np.array([np.quantile(v, (0.25, 0.5, 0.75)) for _, v in known]).T
    line = _LINES[index % len(_LINES)]
    panel.plot(x, mid, color=color, marker=marker, markersize=4, linestyle=line)
    panel.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    return True


def _layers(panel: "Axes", kind: str, layers: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set(title=kind, xlabel="layer")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.set_xlim(min(layers) - 0.6, max(layers) + 0.6)


def _grid(num: int) -> dict[str, int]:
    return {"rows": -(-num // _COLUMNS), "columns": min(num, _COLUMNS)}


def _size(num: int, names: int) -> tuple[float, float]:
    grid = _grid(num)
    width = max(4.2, 3.0 * grid["columns"] + 0.4)
    return width, 2.5 * grid["rows"] + 0.5 + 0.2 * (names // 4)


def _used(drawn: Page, num: int) -> list["Axes"]:
    """Return the panels that are needed; the others are not shown."""
    for panel in drawn.panels[num:]:
        panel.set_axis_off()
    return list(drawn.panels[:num])
