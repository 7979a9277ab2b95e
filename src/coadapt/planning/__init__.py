"""Plans: which task uses which block of the rank axis, and each block's rank."""

from coadapt.planning.plan import Block, InfeasibleBudget, Plan, Sharing, allocate_ranks

__all__ = ["Block", "InfeasibleBudget", "Plan", "Sharing", "allocate_ranks"]
