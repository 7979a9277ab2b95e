"""One adapter, one a task, one a group of tasks, and what brackets them."""

from coadapt.recipe import Recipe
from coadapt.recipes.row import Row
from coadapt.structures import (
    Bank,
    Frozen,
    Full,
    Single,
)

_CR = "Capacity and Redundancy Trade-offs in Multi-Task Learning (OpenReview bRxdN43ItK)"

SHARING: dict[str, Row] = {
    "full": Row(
        recipe=Recipe(structure=Full()),
        paper="Multitask Learning (Caruana, 1997)",
        summary="every weight of the backbone, all tasks together",
    ),
    "frozen": Row(
        recipe=Recipe(structure=Frozen()),
        paper="How transferable are features in deep neural networks? (arXiv 1411.1792)",
        summary="heads on a frozen backbone",
    ),
    "lora": Row(
        # scale 2: the method sheets' reading where a paper leaves alpha open; dropout not stated.
        recipe=Recipe(structure=Single(scale=2.0), sharing="shared"),
        paper="LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685)",
        summary="one LoRA for all tasks",
    ),
    "private": Row(
        recipe=Recipe(structure=Bank(scale=2.0), sharing="private"),
        paper=_CR,  # section 6, regime K = T
        summary="one LoRA a task, the rank budget split",
    ),
    "clustered": Row(
        recipe=Recipe(structure=Bank(scale=2.0), sharing="clustered"),
        paper=_CR,  # section 6, regime 1 < K < T
        summary="one LoRA a cluster of tasks, by a plan",
    ),
    "shared_private": Row(
        recipe=Recipe(structure=Bank(scale=2.0), sharing="shared_private"),
        paper=_CR,  # section 5, equation 8: Z = (Z_s, Z_t)
        summary="a common LoRA plus one a task",
    ),
}
