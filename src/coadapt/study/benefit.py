"""Whether tasks that a diagnosis finds alike are those that gain by sharing."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from coadapt._errors import InputError
from coadapt._files import read_json, write_text
from coadapt._folders import SUMMARY
from coadapt._sheet import Sheet, signed
from coadapt._stats import mantel, pair_benefit
from coadapt.diagnosis import Diagnosis

_NUM_PERMUTATIONS = 9999


def relate(
    study: str | Path, found: Diagnosis, *, measure: str = "similarity", seed: int = 0
) -> list[dict[str, Any]]:
    r"""Relate the benefit of sharing, over a study's partitions, to a similarity, pair by pair.

    .. math:: \Delta_{ij} = \operatorname{mean}(a_p \mid i, j \text{ together})
        - \operatorname{mean}(a_p \mid \text{apart})

    over the partitions p that the study ran, the proposed one among them, with a_p the mean test
    score over all tasks (Khan, section S4.1), or, ``local``, over tasks i and j. The p-values are
    Mantel's, by permuting the tasks: pairs are not independent.

    Args:
        study: the folder of a study with random partitions.
        found: a diagnosis of its tasks.
        measure: which of its measures by pair.
        seed: of sampled permutations.

    Returns:
        For each table of the study and plan with random partitions: ``plan``, ``rows``, ``budget``,
        ``pairs``, and for ``all`` and ``local`` a ``pearson`` and a ``spearman`` correlation.

    Raises:
        InputError: if the folder holds no such study, or the diagnosis lacks one of its tasks.
    """
    if not (Path(study) / SUMMARY).is_file():
        raise InputError(
            f"{study} holds no {SUMMARY}: it is no study, or one that has not finished; "
            "`coadapt study FILE --output DIR --resume` ends it"
        )
    summary = read_json(Path(study) / SUMMARY)
    values = found.pair(measure).values
    related = []
    for table in summary["tables"]:
        names = table["tasks"]
        missing = [task for task in names if task not in found.tasks]
        if missing and table["partitions"]:
            raise InputError(f"the diagnosis is not about {', '.join(missing)}, tasks of {study}")
        for plan in table["partitions"]:
            places = [found.tasks.index(task) for task in names]
            related.append(
                {
                    "plan": plan["plan"],
                    "rows": table["rows"],
                    "budget": table["budget"],
                    "measure": measure,
                    **_relate(plan["drawn"], names, values[np.ix_(places, places)], seed),
                }
            )
    if not related:
        raise InputError(
            f"{study} has no random partitions; give the study a plan of kind 'random' (plans: "
            "NAME: {kind: random, like: PLAN, count: N})"
        )
    return related


def _relate(
    drawn: Sequence[Mapping[str, Any]], names: Sequence[str], similarity: np.ndarray, seed: int
) -> dict[str, Any]:
    clusters = [partition["clusters"] for partition in drawn]
    scores = np.array([[partition["scores"][task] for task in names] for partition in drawn])
    benefits = {
        kind: pair_benefit(clusters, scores, names, local=kind == "local")
        for kind in ("all", "local")
    }
    correlations: dict[str, Any] = {}
    for kind, benefit in benefits.items():
        correlations[kind] = {}
        for method in ("pearson", "spearman"):
            try:
                result = mantel(
                    similarity,
                    benefit.benefit,
                    method=method,
                    num_permutations=_NUM_PERMUTATIONS,
                    generator=np.random.default_rng(seed),
                )
            except ValueError as error:  # too few pairs, or no spread
                correlations[kind][method] = {"error": str(error)}
                continue
            correlations[kind][method] = asdict(result)
    return {
        "partitions": len(drawn),
        "pairs": [
            {
                "tasks": [names[i], names[j]],
                "similarity": float(similarity[i, j]),
                "benefit": _number(benefits["all"].benefit[i, j]),
                "local": _number(benefits["local"].benefit[i, j]),
                "together": int(benefits["all"].together[i, j]),
                "apart": int(benefits["all"].apart[i, j]),
            }
            for i, j in combinations(range(len(names)), 2)
        ],
        "correlations": correlations,
    }


def benefit_sheet(related: Mapping[str, Any]) -> Sheet:
    """Return the pairs, most alike first, and the correlations below."""
    pairs = sorted(related["pairs"], key=lambda pair: -pair["similarity"])
    notes = []
    for kind, said in (("all", "mean over all tasks"), ("local", "mean of the two tasks")):
        for method, found in related["correlations"][kind].items():
            told = found.get("error") or (
                f"{found['correlation']:+.2f}, p = {found['p_value']:.3f} (Mantel, "
                f"{found['num_permutations']} orders{' = all' if found['exact'] else ''}, "
                f"{found['num_pairs']} pairs)"
            )
            notes.append(f"{method}, {said}: {told}")
    where = f"{related['rows']} rows, " if related["rows"] else ""
    return Sheet(
        title=f"{where}{related['plan']}: benefit of sharing by pair, over "
        f"{related['partitions']} partitions",
        columns=("pair", related["measure"], "benefit", "to the two", "together", "apart"),
        rows=tuple(
            (
                ", ".join(pair["tasks"]),
                f"{pair['similarity']:.2f}",
                signed(pair["benefit"]),
                signed(pair["local"]),
                str(pair["together"]),
                str(pair["apart"]),
            )
            for pair in pairs
        ),
        notes=tuple(notes),
    )


def draw_benefit(related: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw benefit against similarity, a panel a plan, as SVG.

    Args:
        related: of :func:`relate`.
        path: of the file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "coadapt", "font.size": 9}):
        figure = Figure(figsize=(4.6 * len(related), 3.6), layout="constrained")
        panels = figure.subplots(1, len(related), squeeze=False)[0]
        for panel, one in zip(panels, related, strict=True):
            known = [pair for pair in one["pairs"] if pair["benefit"] is not None]
            x = [pair["similarity"] for pair in known]
            panel.axhline(0.0, color="0.7", linewidth=0.8)
            panel.scatter(x, [p["benefit"] for p in known], color="#0072b2", label="all tasks")
            panel.scatter(
                x, [p["local"] for p in known], color="#d55e00", marker="^", label="the two"
            )
            best = max(known, key=lambda pair: pair["similarity"], default=None)
            if best is not None:
                panel.annotate(
                    ", ".join(best["tasks"]),
                    (best["similarity"], best["benefit"]),
                    textcoords="offset points",
                    xytext=(-4, 6),
                    ha="right",
                )
            where = f"{one['rows']} rows, " if one["rows"] else ""
            panel.set(
                xlabel=one["measure"],
                ylabel="score together less apart",
                title=f"{where}{one['plan']}",
            )
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
    write_text(Path(path), text + "\n")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
