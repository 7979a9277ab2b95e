"""What a score may be trusted to say: intervals, paired differences, chance among partitions."""

from coadapt._stats.mantel import MantelResult, PairBenefit, mantel, pair_benefit
from coadapt._stats.paired import (
    Difference,
    Outcome,
    holm,
    outcome,
    paired_bootstrap,
    paired_bootstrap_mean,
    paired_difference,
    seeds_needed,
)
from coadapt._stats.partitions import (
    null_z,
    num_partitions,
    partitions_of,
    random_partitions,
    rank_p_value,
    regret,
)
from coadapt._stats.resampling import bootstrap, bootstrap_mean, interval, mean_interval

__all__ = [
    "Difference",
    "MantelResult",
    "Outcome",
    "PairBenefit",
    "bootstrap",
    "bootstrap_mean",
    "holm",
    "interval",
    "mantel",
    "mean_interval",
    "null_z",
    "num_partitions",
    "outcome",
    "pair_benefit",
    "paired_bootstrap",
    "paired_bootstrap_mean",
    "paired_difference",
    "partitions_of",
    "random_partitions",
    "rank_p_value",
    "regret",
    "seeds_needed",
]
