"""What a report shows of a trained run's diagnosis: coupling of errors, capacity of adapters."""

from typing import Any

import numpy as np

from coadapt._sheet import Sheet
from coadapt.diagnosis.measures import Diagnosis, TableMeasure
from coadapt.reporting import parts
from coadapt.reporting.by_layer import lines
from coadapt.reporting.pairs import heat
from coadapt.reporting.parts import Part

SHOWN = 0.05  # of a p-value by permutation
_ESTIMATES = {
    "delta_hat": "of the labels of tasks on the same texts",
    "delta_partial": "the same where not every text has every task's label",
    "delta_teacher": "with a teacher's predictions in the place of labels",
    "placebo": "of two teachers, which should be about 0",
    "null_alignment": "of rows that have nothing to do with each other; what chance looks like",
}
_TOLD = 14  # blocks that a chart's legend has room for
_LOOKS = {"win": "more than chance gives", "tie": "no more than chance gives"}


def is_of_run(found: Diagnosis) -> bool:
    """Return whether a diagnosis is of a trained run, whose heads have temperatures."""
    return "temperature" in found.by_task


def coupling(found: Diagnosis) -> list[Part]:
    """Return the estimates of residual coupling, by pair too, and the heads' temperatures."""
    told: list[Part] = []
    if (table := found.tables.get("coupling")) is not None:
        told += [_estimates(table), _estimates_table(table)]
        # Of two tasks the one number is in the table.
        many = [name for name, pair in found.pairs.items() if np.isfinite(pair.values).sum() > 4]
        told += [heat(found, name, tree=False) for name in many]
    heads = found.by_task["temperature"]
    rows = tuple((t, f"{v:.2f}") for t, v in zip(found.tasks, heads.values, strict=True))
    sheet = Sheet(
        title=heads.title, columns=("task", "temperature"), rows=rows, notes=(heads.reading,)
    )
    return [*told, parts.table(sheet)]


def _named(table: TableMeasure) -> list[dict[str, Any]]:
    return [
        {"name": name, **dict(zip(table.columns, map(float, row), strict=True))}
        for name, row in zip(table.rows, table.values, strict=True)
    ]


def _estimates(table: TableMeasure) -> Part:
    rows = [
        {
            **{key: one[key] for key in ("name", "value", "low", "high")},
            "mark": "win" if one["p"] < SHOWN else "tie",
        }
        for one in _named(table)
    ]
    told = "; ".join(
        f"{row['name']} {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}), "
        f"{_LOOKS[row['mark']]}"
        for row in rows
    )
    return parts.chart(
        "intervals",
        table.title,
        f"{table.title}: {told}.",
        rows=rows,
        looks=_LOOKS,
        x_title="nats, less the bias (95 % interval)",
    )


def _estimates_table(table: TableMeasure) -> Part:
    rows = tuple(
        (
            one["name"],
            f"{one['value']:.3f}",
            f"{one['low']:.3f} to {one['high']:.3f}",
            f"{one['p']:.3f}",
            f"{one['bias']:.3f}",
            f"{one['rows']:.0f}",
        )
        for one in _named(table)
    )
    columns = ("estimate", "nats", "95 % interval", "p", "bias taken off", "rows")
    notes = [table.reading]
    notes += [
        f"{kind}: {what}."
        for kind, what in _ESTIMATES.items()
        if any(name.startswith(f"{kind}:") for name in table.rows)
    ]
    return parts.table(Sheet(title=table.title, columns=columns, rows=rows, notes=tuple(notes)))


def capacity(found: Diagnosis) -> list[Part]:
    """Return capacities over the layers, summed by block, and beside their bounds."""
    if "capacity" not in found.tables:
        return []
    proxy, update = found.tables["capacity"], found.tables["update"]
    panels = [
        {"title": title, "series": lines(_by_block(table))}
        for title, table in (("capacity proxy", proxy), ("capacity of the update", update))
    ]
    title = "capacity by layer and block, mean over the layer's maps, nats"
    told = "; ".join(
        f"{panel['title']}: "
        + ", ".join(
            f"{s['name']} {min(s['y']):.2f} to {max(s['y']):.2f}" for s in panel["series"][:_TOLD]
        )
        for panel in panels
    )
    more = len(proxy.columns) - _TOLD
    rest = f" {more} further blocks are in the table." if more > 0 else ""
    alt = f"{title}. {told}.{rest}"
    drawn = parts.chart("lines", title, alt, panels=panels, x_title="layer", caption=rest.strip())
    return [drawn, _totals(found), _bounds(found.tables["bounds"])]


def _by_block(table: TableMeasure) -> dict[str, list[tuple[str, float]]]:
    return {
        block: list(zip(table.rows, table.values[:, index].tolist(), strict=True))
        for index, block in enumerate(table.columns)
    }


def _totals(found: Diagnosis) -> Part:
    proxy, update, sweep = (found.tables[name] for name in ("capacity", "update", "sweep"))
    rows = tuple(
        (
            block,
            f"{update.values[:, index].sum():.1f}",
            *(f"{value:.1f}" for value in sweep.values[:, index]),
        )
        for index, block in enumerate(proxy.columns)
    )
    columns = ("block", "update", *(f"proxy at {noise}" for noise in sweep.rows))
    notes = (
        *(f"{table.title}: {table.reading}." for table in (proxy, update)),
        "The noise sets the scale of a proxy: compare blocks within a column only.",
    )
    title = f"capacity summed over {len(proxy.rows)} adapted maps, nats"
    return parts.table(Sheet(title=title, columns=columns, rows=rows, notes=notes))


def _bounds(table: TableMeasure) -> Part:
    sums = table.values.sum(axis=0)
    shares = [f"{100 * value / sums[0]:.0f} %" if sums[0] else "-" for value in sums]
    rows = tuple(
        (name, f"{value:.1f}", share)
        for name, value, share in zip(table.columns, sums, shares, strict=True)
    )
    columns = ("summed over the maps", "nats", "of the proxy")
    return parts.table(Sheet(title=table.title, columns=columns, rows=rows, notes=(table.reading,)))
