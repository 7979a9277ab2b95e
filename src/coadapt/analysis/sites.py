"""Where adapters are put: the same arms of studies at several sites."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coadapt._errors import InputError
from coadapt._sheet import Sheet, plus_minus, signed
from coadapt.analysis._studies import read_study, setting_of


@dataclass(frozen=True, kw_only=True)
class SiteDifference:
    """What an arm gains over the baseline at a site.

    Attributes:
        site: the study's ``target_modules``.
        arm: its name in the study.
        mean: of the paired difference over seeds.
        low: 95 % interval; None over one seed.
        high: the same.
        outcome: ``win``, ``tie`` or ``loss``.
        num_seeds: that both were run with.
        trainable: values that the arm trains.
    """

    site: str
    arm: str
    mean: float
    low: float | None
    high: float | None
    outcome: str
    num_seeds: int
    trainable: int


@dataclass(frozen=True, kw_only=True)
class SiteComparison:
    """The same arms at several sites.

    Attributes:
        setting: rows and rank budget, in words.
        baseline: the arm that each is compared with, at its own site.
        sites: their names.
        differences: arm by arm, site by site.
    """

    setting: str
    baseline: str
    sites: tuple[str, ...]
    differences: tuple[SiteDifference, ...]


def compare_sites(studies: Sequence[str | Path]) -> list[SiteComparison]:
    """Return arms' paired differences to the baseline where adapters are put at several sites.

    Table 7 of "Align, Don't Divide" (arXiv 2508.05078): attention against feed-forward maps. The
    studies differ in ``model.target_modules``, which names the sites, and in nothing else of the
    model, their baseline and seeds. Arms are paired with the baseline of their own site, so a
    site that is better for every arm shows no difference: scores are in the studies' own tables.
    A rank trains more values at larger maps.

    Args:
        studies: folders of finished studies, one a site.

    Returns:
        One for each number of rows and budget that all studies have.

    Raises:
        InputError: if a folder is no finished study, or the studies are not of different sites of
            one model.
    """
    if len(studies) < 2:
        raise InputError("sites are compared between two studies or more; give their folders")
    by_site: dict[str, dict[str, Any]] = {}
    first: dict[str, Any] = {}
    for folder in studies:
        about, summary = read_study(folder)
        targets = about["model"]["target_modules"]
        site = targets if isinstance(targets, str) else ", ".join(targets)
        if site in by_site:
            raise InputError(f"{folder}: site '{site}' is another study's too; give one for each")
        first = first or about
        for key in ("model", "baseline", "seeds"):
            if _but_site(about[key]) != _but_site(first[key]):
                raise InputError(
                    f"{folder} has another {key} than {studies[0]}; only target_modules may differ"
                )
        by_site[site] = {setting_of(table): table for table in summary["tables"]}
    settings = list(next(iter(by_site.values())))
    common = [name for name in settings if all(name in tables for tables in by_site.values())]
    if not common:
        raise InputError("the studies have no number of rows and budget in common")
    return [
        _compare(name, {site: tables[name] for site, tables in by_site.items()}) for name in common
    ]


def _compare(setting: str, tables: Mapping[str, dict[str, Any]]) -> SiteComparison:
    arms = {site: {arm["arm"]: arm for arm in t["arms"]} for site, t in tables.items()}
    names = [name for name in next(iter(arms.values())) if all(name in a for a in arms.values())]
    found = [
        _difference(site, arms[site][name])
        for name in names
        for site in tables
        if arms[site][name].get("difference") is not None
    ]
    if not found:
        raise InputError(f"{setting}: no arm was compared with the baseline at any site")
    baseline = next(iter(tables.values()))["baseline"]
    return SiteComparison(
        setting=setting, baseline=baseline, sites=tuple(tables), differences=tuple(found)
    )


def _difference(site: str, arm: dict[str, Any]) -> SiteDifference:
    told = arm["difference"]
    return SiteDifference(
        site=site,
        arm=arm["arm"],
        mean=told["mean"],
        low=told["low"],
        high=told["high"],
        outcome=told["outcome"],
        num_seeds=len(arm["seeds"]),
        trainable=arm["trainable"],
    )


def sites_sheet(found: SiteComparison) -> Sheet:
    """Return the differences, a row an arm and site."""
    seeds = sorted({one.num_seeds for one in found.differences})
    return Sheet(
        title=f"{found.setting}: difference to {found.baseline} at the same site, ± 95 % over "
        f"{' or '.join(map(str, seeds))} seeds",
        columns=("arm", "site", "difference", "", "trained values"),
        rows=tuple(
            (
                one.arm,
                one.site,
                plus_minus(signed(one.mean), one.low, one.high),
                one.outcome,
                f"{one.trainable:,}",
            )
            for one in found.differences
        ),
    )


def _but_site(value: Any) -> Any:
    return {**value, "target_modules": None} if isinstance(value, dict) else value
