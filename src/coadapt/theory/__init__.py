"""What sharing can give: capacity, redundancy and residual coupling, in closed form."""

from coadapt.theory.alignment_bounds import (
    AlignmentBound,
    alignment_bound,
    confidence_term,
    kl_to_mean_bound,
    risk_gap,
    squared_mmd_to_mean,
)
from coadapt.theory.bounds import (
    average_bound,
    cr_bound,
    fano_error,
    linear_capacity_bound,
    log_loss_bound,
    shared_private_bound,
    subset_bounds,
)
from coadapt.theory.bridge import (
    gradient_tc,
    gradient_tc_second_order,
    natural_gradient_cosine,
    pairwise_gradient_tc,
)
from coadapt.theory.capacity import (
    capacity_proxy,
    capacity_upper_bound,
    delta_capacity,
    rank_power_bound,
    spectral_bound,
    unit_snr_noise,
    water_filling,
)
from coadapt.theory.clustering import ClusteringGap, clustering_gap
from coadapt.theory.correlation import conditional_covariance, total_correlation
from coadapt.theory.counts import (
    CountedCorrelation,
    contingency_table,
    total_correlation_counts,
)
from coadapt.theory.linear_gaussian import LinearGaussian

__all__ = [
    "AlignmentBound",
    "ClusteringGap",
    "CountedCorrelation",
    "LinearGaussian",
    "alignment_bound",
    "average_bound",
    "capacity_proxy",
    "capacity_upper_bound",
    "clustering_gap",
    "conditional_covariance",
    "confidence_term",
    "contingency_table",
    "cr_bound",
    "delta_capacity",
    "fano_error",
    "gradient_tc",
    "gradient_tc_second_order",
    "kl_to_mean_bound",
    "linear_capacity_bound",
    "log_loss_bound",
    "natural_gradient_cosine",
    "pairwise_gradient_tc",
    "rank_power_bound",
    "risk_gap",
    "shared_private_bound",
    "spectral_bound",
    "squared_mmd_to_mean",
    "subset_bounds",
    "total_correlation",
    "total_correlation_counts",
    "unit_snr_noise",
    "water_filling",
]
