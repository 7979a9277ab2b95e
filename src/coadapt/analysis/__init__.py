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
from coadapt.analysis.representation_maps import RepresentationMap, representation_map
from coadapt.analysis.sites import SiteComparison, SiteDifference, compare_sites, sites_sheet
from coadapt.analysis.weight_sweeps import Scored, WeightSweep, sweep_sheet, weight_sweep

__all__ = [
    "Alignment",
    "AlignmentReport",
    "HeadSimilarity",
    "RepresentationMap",
    "Scored",
    "SiteComparison",
    "SiteDifference",
    "WeightSweep",
    "alignment_report",
    "alignment_sheet",
    "compare_sites",
    "draw_alignment",
    "draw_heads",
    "draw_maps",
    "draw_sites",
    "draw_sweep",
    "effective_rank",
    "head_similarity",
    "representation_map",
    "similarity_sheet",
    "sites_sheet",
    "start_of",
    "sweep_sheet",
    "weight_sweep",
]
