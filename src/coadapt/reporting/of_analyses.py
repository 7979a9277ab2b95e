"""What a report shows of a run's inside: what lies in its folder ``analysis``."""

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from coadapt._errors import InputError
from coadapt._files import read_json
from coadapt._folders import ANALYSIS
from coadapt._sheet import Sheet
from coadapt.reporting import parts
from coadapt.reporting.by_layer import lines
from coadapt.reporting.parts import Part


def looking_inside(run: Path) -> list[Part]:
    """Return charts of what `coadapt.analysis` has measured of a run, and pictures that lie there.

    Raises:
        InputError: if a file is not what it says it is.
    """
    found: list[Part] = []
    for file in sorted((run / ANALYSIS).glob("*.json")):
        plain = read_json(file)
        if not isinstance(plain, dict) or plain.get("kind") not in _KINDS:
            continue  # a diagnosis has sections of its own
        try:
            found += _KINDS[plain["kind"]](run.name, plain)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"{file} is no whole {plain['kind']}: {error!r}") from error
    return [*found, *_pictures(run)]


def _heads(run: str, plain: Mapping[str, Any]) -> list[Part]:
    """Return mean cosines between heads, over the layers and by kind of map."""
    what = "heads B_i" if plain["compared"] == "B" else "experts' products B_i A_i"
    title = f"{run}: mean cosine between {plain['num_heads']} {what}"
    told = {"as they are": plain["raw"], "what training added": plain["moved"]}
    panels = [{"title": name, "series": lines(_by_map(values))} for name, values in told.items()]
    medians = {name: _median(values) for name, values in told.items()}
    alt = f"{title}. Medians: {'; '.join(f'{name} {m}' for name, m in medians.items())}."
    maps = {name: _by_map(values) for name, values in told.items()}
    kinds = list(dict.fromkeys(_map_of(module) for module in plain["raw"]))
    rows = [("all maps", *medians.values(), str(len(plain["raw"])))]
    for kind in kinds:
        cells = (_median(dict(found.get(kind, []))) for found in maps.values())
        number = sum(_map_of(module) == kind for module in plain["raw"])
        rows.append((kind, *cells, str(number)))
    notes = (
        "Heads that start at random points of their own are unlike because they were drawn so, "
        "heads that start at zero and get the same gradients are alike because they must be: "
        "what training added tells. A cosine sees neither sizes nor a router.",
        *plain["notes"],
    )
    columns = ("map", "median cosine as they are", "of what training added", "maps")
    sheet = Sheet(title=f"{title}, by kind of map", columns=columns, rows=tuple(rows), notes=notes)
    chart = parts.chart("lines", title, alt, panels=panels, x_title="layer")
    drawn = any(panel["series"] for panel in panels)
    return [*([chart] if drawn else []), parts.table(sheet)]


def _map_of(module: str) -> str:
    return module.rpartition(".")[2]


def _by_map(values: Mapping[str, float | None]) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for module, value in values.items():
        if value is not None:
            found.setdefault(_map_of(module), []).append((module, value))
    return found


def _median(values: Mapping[str, float | None]) -> str:
    known = [value for value in values.values() if value is not None]
    return f"{median(known):.2f}" if known else "-"


def _map(run: str, plain: Mapping[str, Any]) -> list[Part]:
    """Return rows of tasks as points, and the tasks' centres."""
    groups = [{"name": task, "points": points} for task, points in plain["points"].items()]
    number = sum(len(group["points"]) for group in groups)
    shares = plain["explained"]
    if shares is None:
        axes = {"x_title": "t-SNE: distances mean little", "y_title": ""}
        caption = "Near neighbours stay near; distances between clusters and their sizes mean "
        caption += "little, and another seed gives another picture."
    else:
        one, other = (f"{100 * share:.0f} %" for share in shares)
        axes = {"x_title": f"component 1 ({one})", "y_title": f"component 2 ({other})"}
        caption = f"The two directions of the largest variance, {100 * sum(shares):.0f} % of it: "
        caption += "what is apart here is apart, what lies together may be apart in the rest."
    title = f"{run}: {plain['split']} rows of each task by what the adapters' A makes of them"
    modules = len(plain["modules"])
    alt = f"{title}, {number} rows, {modules} adapted maps. {caption} The table has the centres."
    chart = parts.chart("scatter", title, alt, groups=groups, caption=caption, equal=True, **axes)
    return [chart, parts.table(_centres(run, groups))]


def _centres(run: str, groups: list[dict[str, Any]]) -> Sheet:
    rows = []
    for group in groups:
        points = np.array(group["points"], dtype=np.float64).reshape(-1, 2)
        x, y = points.mean(axis=0)
        spread = float(np.sqrt(((points - (x, y)) ** 2).sum(axis=1).mean()))
        rows.append((group["name"], str(len(points)), f"{x:.2f}", f"{y:.2f}", f"{spread:.2f}"))
    columns = ("task", "rows", "centre, first axis", "second axis", "distance from it")
    title = f"{run}: centres of the tasks' rows, and their root mean square distance from it"
    return Sheet(title=title, columns=columns, rows=tuple(rows))


_KINDS = {"head_similarity": _heads, "representation_map": _map}


def _pictures(run: Path) -> list[Part]:
    """Return what was drawn of a run by `coadapt.analysis`."""
    found = []
    for file in sorted((run / ANALYSIS).glob("*.svg")):
        svg = file.read_text(encoding="utf-8")
        named = re.search(r"<title>(.*?)</title>", svg, re.DOTALL)
        alt = named[1].strip() if named else file.stem
        found.append(parts.picture(f"{run.name}: {file.stem.replace('_', ' ')}", alt, svg))
    return found
