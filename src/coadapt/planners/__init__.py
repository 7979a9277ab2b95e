"""Planners: from a diagnosis and a rank budget to who shares."""

from coadapt.planners.auto import Advice, advise
from coadapt.planners.proposing import Proposal, plan, propose, write_plan
from coadapt.planners.searching import (
    Search,
    SearchConfig,
    candidates_of,
    propose_by_search,
    search,
)

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
