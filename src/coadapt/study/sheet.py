"""How a study's numbers are written in its tables."""

from typing import Any

from coadapt._sheet import missing, plus_minus, signed

MARK = {"win": " +", "loss": " -", "tie": ""}


def short_names(table: dict[str, Any]) -> dict[str, str]:
    """Return the arms' names without the budget that the heading tells."""
    end = f"-R{table['budget']}"
    return {arm["arm"]: arm["arm"].removesuffix(end) for arm in table["arms"]}


def num_seeds(table: dict[str, Any]) -> str:
    """Return how many seeds a table's arms were run with."""
    return " or ".join(str(n) for n in sorted({len(arm["seeds"]) for arm in table["arms"]}))


def difference(arm: dict[str, Any]) -> list[str]:
    """Return an arm's difference to the baseline, its interval over rows, p and outcomes."""
    found = arm.get("difference")
    if found is None:
        return [""] * 4
    rows = found["rows"]
    return [
        plus_minus(signed(found["mean"]), found["low"], found["high"]) + MARK[found["outcome"]],
        f"{signed(rows[0])} {signed(rows[1])}" if rows else "-",
        "-" if missing(found["p_holm"]) else f"{found['p_holm']:.3f}",
        f"{arm['win']}/{arm['tie']}/{arm['loss']}",
    ]
