"""What trained runs look like inside: heads, representations and their alignment."""

from coadapt.analysis._representations import start_of
from coadapt.analysis.alignment import (
    Alignment,
    AlignmentReport,
    alignment_report,
    alignment_sheet,
    effective_rank,
)
from coadapt.analysis.figures import (
    draw_alignment,
    draw_heads,
    draw_maps,
    draw_sites,
    draw_sweep,
)
from coadapt.analysis.head_similarities import HeadSimilarity, head_similarity, similarity_sheet
from coadapt.analysis.looking import Looked, look_into
from coadapt.analysis.rank_allocations import (
    RankAllocation,
    SpectralEntropies,
    allocation_sheet,
    entropies_sheet,
    rank_allocation,
    spectral_entropies,
)
from coadapt.analysis.representation_maps import RepresentationMap, representation_map
from coadapt.analysis.sites import SiteComparison, SiteDifference, compare_sites, sites_sheet
from coadapt.analysis.subspaces import SubspaceOverlap, overlap_sheet, subspace_overlap
from coadapt.analysis.sweeps import Sweep, SweepPoint, sweep, sweeps_sheet
from coadapt.analysis.thanora_figures import (
    draw_entropies,
    draw_overlap,
    draw_ranks,
    draw_sweeps,
)
from coadapt.analysis.weight_sweeps import Scored, WeightSweep, sweep_sheet, weight_sweep

__all__ = [
    "Alignment",
    "AlignmentReport",
    "HeadSimilarity",
    "Looked",
    "RankAllocation",
    "RepresentationMap",
    "Scored",
    "SiteComparison",
    "SiteDifference",
    "SpectralEntropies",
    "SubspaceOverlap",
    "Sweep",
    "SweepPoint",
    "WeightSweep",
    "alignment_report",
    "alignment_sheet",
    "allocation_sheet",
    "compare_sites",
    "draw_alignment",
    "draw_entropies",
    "draw_heads",
    "draw_maps",
    "draw_overlap",
    "draw_ranks",
    "draw_sites",
    "draw_sweep",
    "draw_sweeps",
    "effective_rank",
    "entropies_sheet",
    "head_similarity",
    "look_into",
    "overlap_sheet",
    "rank_allocation",
    "representation_map",
    "similarity_sheet",
    "sites_sheet",
    "spectral_entropies",
    "start_of",
    "subspace_overlap",
    "sweep",
    "sweep_sheet",
    "sweeps_sheet",
    "weight_sweep",
]
