"""Planners: from a diagnosis and a rank budget to who shares."""

from typing import TYPE_CHECKING

from coadapt._lazy import lazy_names

if TYPE_CHECKING:
    from coadapt.planners.auto import Advice, advise
    from coadapt.planners.proposing import Proposal, plan, propose, write_plan
    from coadapt.planners.searching import (
        Search,
        SearchConfig,
        candidates_of,
        propose_by_search,
        search,
    )

# A search trains, the other planners need no model library.
_HOME = {
    "Advice": "auto",
    "Proposal": "proposing",
    "Search": "searching",
    "SearchConfig": "searching",
    "advise": "auto",
    "candidates_of": "searching",
    "plan": "proposing",
    "propose": "proposing",
    "propose_by_search": "searching",
    "search": "searching",
    "write_plan": "proposing",
}

__all__ = [
    "Advice",
    "Proposal",
    "Search",
    "SearchConfig",
    "advise",
    "candidates_of",
    "plan",
    "propose",
    "propose_by_search",
    "search",
    "write_plan",
]

__getattr__ = lazy_names(__name__, _HOME)
