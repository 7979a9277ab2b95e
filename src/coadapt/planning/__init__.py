"""Plans: which task uses which block of the rank axis, each block's rank, and who clusters."""

from coadapt.planning.clustering import (
    ClusterCandidate,
    ClusterChoice,
    Dendrogram,
    Distance,
    agglomerate,
    choose_num_clusters,
    co_clustering,
)
from coadapt.planning.plan import COOPERATIVE, SHARED_BLOCK, Block, Plan, Sharing
from coadapt.planning.ranks import InfeasibleBudget, RankRule, allocate_ranks

__all__ = [
    "COOPERATIVE",
    "SHARED_BLOCK",
    "Block",
    "ClusterCandidate",
    "ClusterChoice",
    "Dendrogram",
    "Distance",
    "InfeasibleBudget",
    "Plan",
    "RankRule",
    "Sharing",
    "agglomerate",
    "allocate_ranks",
    "choose_num_clusters",
    "co_clustering",
]
