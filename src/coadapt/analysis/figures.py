"""Pictures of heads, representations, alignment and studies, with a text for those who cannot see.

Each function writes one file, SVG or PNG, the same bytes for the same numbers, and returns its
alternative text; an SVG holds it too.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from coadapt._errors import InputError
from coadapt._sheet import missing
from coadapt.analysis._drawing import COLORS, GRAY, boxes, diagonal, lengths, page, style
from coadapt.analysis.alignment import MEASURES, AlignmentReport
from coadapt.analysis.head_similarities import HeadSimilarity
from coadapt.analysis.representation_maps import RepresentationMap
from coadapt.analysis.sites import SiteComparison
from coadapt.analysis.weight_sweeps import WeightSweep

_LAYERS = 5  # that a task's points are drawn in, so that no task covers another


def draw_heads(found: Mapping[str, HeadSimilarity], path: str | Path) -> str:
    """Draw the cosines between heads by kind of module, a box a run.

    Figure 2 of "Align, Don't Divide" (arXiv 2508.05078), with what training added below it.

    Args:
        found: by the name that a run is to have.
        path: of the file.

    Returns:
        The alternative text.
    """
    _refuse_nothing(found)
    kinds = list(dict.fromkeys(_kind(m) for one in found.values() for m in one.raw))
    width = min(14.0, max(4.5, 1.6 + 0.5 * len(kinds) * len(found)))
    with page(path, (width, 5.2), rows=2) as drawn:
        top, bottom = drawn.panels
        for panel, told, values in (
            (top, "heads as they are", [one.raw for one in found.values()]),
            (bottom, "what training added to them", [one.moved for one in found.values()]),
        ):
            for index, by_module in enumerate(values):
                groups = [_known(by_module, kind) for kind in kinds]
                boxes(panel, groups, index, len(found))
            known = [value for by_module in values for value in _known(by_module)]
            panel.axhline(0.0, color=GRAY, linewidth=0.8, zorder=0)
            panel.set(ylabel="mean cosine", title=told, xlim=(-0.6, len(kinds) - 0.4))
            panel.set_ylim(min([-0.05, *(value - 0.05 for value in known)]), 1.05)
            panel.set_xticks(range(len(kinds)), kinds)
            for edge in range(1, len(kinds)):
                panel.axvline(edge - 0.5, color="0.9", linewidth=0.8, zorder=0)
            if not known:
                panel.text(
                    0.5, 0.5, "zero: no cosine", ha="center", va="center", transform=panel.transAxes
                )
        drawn.legend(list(found))
        told = "; ".join(
            f"{name} {_median(one.raw)}, of what training added {_median(one.moved)}"
            for name, one in found.items()
        )
        drawn.alt = f"Mean cosine between heads by kind of module. Medians: {told}."
    return drawn.alt


def draw_maps(found: Mapping[str, RepresentationMap], path: str | Path) -> str:
    """Draw maps of representations side by side, a color and a shape a task.

    Figure 5 of "Align, Don't Divide" (arXiv 2508.05078), where it is t-SNE.

    Args:
        found: maps of the same tasks, by the name that each is to have.
        path: of the file.

    Returns:
        The alternative text.
    """
    _refuse_nothing(found)
    first = next(iter(found.values()))
    tasks = first.tasks
    if any(one.tasks != tasks for one in found.values()):
        raise InputError("found: the maps are of different tasks; draw them apart")
    with page(path, (3.6 * len(found) + 0.4, 4.1), columns=len(found)) as drawn:
        for panel, (name, one) in zip(drawn.panels, found.items(), strict=True):
            for layer, index in product(range(_LAYERS), range(len(tasks))):
                color, marker = style(index)
                mine = one.points[one.task_ids == index][layer::_LAYERS]
                panel.scatter(*mine.T, s=18, color=color, marker=marker, alpha=0.7, linewidth=0)
            panel.set_title(name)
            if one.explained is None:
                panel.set(xticks=[], yticks=[], xlabel="t-SNE: distances mean little")
            else:
                one_share, other_share = (f"{100 * share:.0f} %" for share in one.explained)
                panel.set(
                    xlabel=f"component 1 ({one_share})", ylabel=f"component 2 ({other_share})"
                )
            panel.set_aspect("equal", adjustable="datalim")
        drawn.legend(tasks)
        method = "t-SNE" if first.explained is None else "Principal components"
        drawn.alt = (
            f"{method} of rows' representations by task, in {' and '.join(found)}. "
            f"{len(first.points)} rows of {', '.join(tasks)}."
        )
    return drawn.alt


def draw_alignment(found: AlignmentReport, path: str | Path) -> str:
    """Draw the four numbers of each module, after against before; on the line nothing changed.

    Args:
        found: of :func:`coadapt.analysis.alignment_report`.
        path: of the file.

    Returns:
        The alternative text.
    """
    kinds = list(dict.fromkeys(_kind(module) for module in found.before))
    names = [Path(run).name for run in found.runs]
    before, after = (
        f"{when}: {name}" for when, name in zip(("before", "after"), names, strict=True)
    )
    with page(path, (11.0, 3.3), columns=len(MEASURES)) as drawn:
        for panel, (key, told) in zip(drawn.panels, MEASURES.items(), strict=True):
            pairs = [
                (_kind(module), getattr(one, key), getattr(found.after[module], key))
                for module, one in found.before.items()
            ]
            for index, kind in enumerate(kinds):
                color, marker = style(index)
                mine = np.array([pair[1:] for pair in pairs if pair[0] == kind])
                panel.scatter(*mine.T, s=20, color=color, marker=marker, alpha=0.85, linewidth=0)
            diagonal(panel, [pair[1:] for pair in pairs], log=key in ("kl", "mmd"))
            panel.set(title=told, xlabel=before)
        drawn.panels[0].set_ylabel(after)
        drawn.legend(kinds)
        drawn.alt = (
            f"Distances between tasks, and norm and effective rank of their representations, in "
            f"{len(found.before)} modules; {before}, {after}. {found.reading}."
        )
    return drawn.alt


def draw_sweep(found: Sequence[WeightSweep], path: str | Path) -> str:
    """Draw scores against a regularizer's weight, a panel a setting.

    Figure 3 of "Align, Don't Divide" (arXiv 2508.05078).

    Args:
        found: of :func:`coadapt.analysis.weight_sweep`.
        path: of the file.

    Returns:
        The alternative text.
    """
    _refuse_nothing(found)
    with page(path, (3.8 * len(found) + 0.6, 3.4), columns=len(found)) as drawn:
        for panel, one in zip(drawn.panels, found, strict=True):
            weights = sorted({point.weight or 0.0 for point in one.points})
            # At equal steps: weights are chosen by factors, and 0 has no place on a log axis.
            x = [weights.index(point.weight or 0.0) for point in one.points]
            means = [point.mean for point in one.points]
            errors = lengths(means, [p.low for p in one.points], [p.high for p in one.points])
            line = "-" if len(set(x)) == len(x) else ""
            panel.errorbar(
                x, means, yerr=errors, color=COLORS[0], marker="o", linestyle=line, capsize=3
            )
            if (base := one.baseline) is not None:
                panel.axhline(base.mean, color=COLORS[1], linestyle="--", linewidth=1, zorder=0)
                if base.low is not None and base.high is not None:
                    panel.axhspan(base.low, base.high, color=COLORS[1], alpha=0.12, zorder=0)
                panel.annotate(
                    base.arm, (1.0, base.mean), xycoords=("axes fraction", "data"),
                    xytext=(0, 3), textcoords="offset points", ha="right", color=COLORS[1],
                )  # fmt: skip
            panel.set_xticks(range(len(weights)), [f"{weight:g}" for weight in weights])
            panel.set(xlabel=f"weight of {one.kind}", title=one.setting)
            panel.margins(x=0.1)
        drawn.panels[0].set_ylabel("mean test score, 95 % interval")
        told = "; ".join(
            f"{one.setting}: "
            + ", ".join(f"{point.mean:.3f} at {point.weight:g}" for point in one.points)
            for one in found
        )
        drawn.alt = f"Mean test score by the weight of {found[0].kind}. {told}."
    return drawn.alt


def draw_sites(found: SiteComparison, path: str | Path) -> str:
    """Draw arms' paired differences to the baseline, a shape a site.

    Table 7 of "Align, Don't Divide" (arXiv 2508.05078), with intervals.

    Args:
        found: of :func:`coadapt.analysis.compare_sites`.
        path: of the file.

    Returns:
        The alternative text.
    """
    arms = list(dict.fromkeys(one.arm for one in found.differences))
    with page(path, (6.4, 1.6 + 0.5 * len(arms))) as drawn:
        (panel,) = drawn.panels
        for index, site in enumerate(found.sites):
            mine = [one for one in found.differences if one.site == site]
            means = [one.mean for one in mine]
            color, marker = style(index)
            offset = 0.4 * (index / (len(found.sites) - 1) - 0.5)
            panel.errorbar(
                means,
                [arms.index(one.arm) + offset for one in mine],
                xerr=lengths(means, [one.low for one in mine], [one.high for one in mine]),
                color=color,
                marker=marker,
                linestyle="",
                capsize=3,
            )
        panel.axvline(0.0, color=GRAY, linewidth=0.8, zorder=0)
        panel.set_yticks(range(len(arms)), arms)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.set(
            xlabel=f"difference to {found.baseline} at the same site, 95 % interval",
            title=found.setting,
        )
        drawn.legend(found.sites)
        told = "; ".join(
            f"{one.arm} at {one.site} {one.mean:+.3f} ({one.outcome})" for one in found.differences
        )
        drawn.alt = f"Differences to {found.baseline} by site, {found.setting}: {told}."
    return drawn.alt


def _refuse_nothing(found: Mapping | Sequence) -> None:
    if not found:
        raise InputError("found is empty; there is nothing to draw")


def _kind(module: str) -> str:
    """Return the last part of a module's name, which is the same in every layer."""
    return module.rpartition(".")[2]


def _known(values: Mapping[str, float], kind: str | None = None) -> list[float]:
    return [
        value
        for module, value in values.items()
        if not missing(value) and kind in (None, _kind(module))
    ]


def _median(values: Mapping[str, float]) -> str:
    known = _known(values)
    return f"{np.median(known):.2f}" if known else "none (zero)"
