"""A published method is a row of parts."""

from dataclasses import dataclass, field, replace
from typing import Any

from coadapt._errors import InputError, nearest
from coadapt.balancing import Balancing, CAGrad, GradNorm, PCGrad, Uncertainty, UPGrad
from coadapt.config import LATER
from coadapt.groups import Uniform
from coadapt.inits import Default, Init, RLora, RLoraCode
from coadapt.lora_hub import LoraHub
from coadapt.planning import Sharing
from coadapt.regularizers import AlignKL, AlignMMD, LoadBalance, Need, Regularizer
from coadapt.structures import (
    Bank,
    Experts,
    Frozen,
    Full,
    Heads,
    Mixture,
    RoutedHeads,
    Single,
    Structure,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained and how; who shares is the plan's matter.

    Args:
        structure: the shape of what is trained.
        init: how its factors start.
        groups: how parameters are divided for the optimizer.
        regularizers: terms that are added to the loss.
        balancing: how the tasks' losses become one step; their mean if None.
        compose: after training each task is served by a composition of the tasks' adapters.
        sharing: the kind of plan made from a rank budget when none is given. ``clustered`` has no
            such default: which tasks belong together is what a plan says.
    """

    structure: Structure
    init: Init = Default()
    groups: Uniform = Uniform()
    regularizers: tuple[Regularizer, ...] = field(default=(), metadata=LATER)
    balancing: Balancing | None = field(default=None, metadata=LATER)
    compose: LoraHub | None = field(default=None, metadata=LATER)
    sharing: Sharing | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        if self.compose is not None and self.structure.kind != "bank":
            raise InputError(
                f"compose: LoRAHub composes one LoRA a task, which structure "
                f"'{self.structure.kind}' does not have; take 'bank'"
            )
        kinds = [part.kind for part in self.regularizers]
        for part in self.regularizers:
            if kinds.count(part.kind) > 1:
                raise InputError(f"regularizer '{part.kind}' is given twice")
            if not self.structure.divides:
                raise InputError(
                    f"regularizer '{part.kind}' looks at adapters, and structure "
                    f"'{self.structure.kind}' has none"
                )
            if part.needs is Need.ROUTING and self.structure.depends_on != "token":
                raise InputError(
                    f"regularizer '{part.kind}' balances a router, and structure "
                    f"'{self.structure.kind}' has none; take 'routed_heads', 'experts' or 'mixture'"
                )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A named recipe with where it comes from."""

    recipe: Recipe
    paper: str
    summary: str


_ALIGN = "Align, Don't Divide: Revisiting the LoRA Architecture (arXiv 2508.05078)"
_HYDRA = "HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning (arXiv 2404.19245)"
_R_LORA = "R-LoRA: Randomized Multi-Head LoRA for Efficient Multi-Task Learning (arXiv 2502.15455)"

# Five heads, alpha = 32 and r = 4 under rank-stabilised scaling, alpha / sqrt(r), dropout of A x:
# the authors' code. A router at zero makes "the base model's function at start" true.
_R_HEADS = RoutedHeads(scale=16.0, dropout=0.1, num_heads=5, router_init="zero")
_M_HEADS = Heads(scale=16.0, dropout=0.1, num_heads=5)

_CR = "Capacity and Redundancy Trade-offs in Multi-Task Learning (OpenReview bRxdN43ItK)"


def _balanced(balancing: Balancing, paper: str, summary: str) -> Row:
    recipe = Recipe(structure=Single(scale=2.0), balancing=balancing, sharing="shared")
    return Row(recipe=recipe, paper=paper, summary=summary)


RECIPES: dict[str, Row] = {
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
    "lora_multi_sample_dropout": Row(
        # Ours: what M-LoRA is but for its heads. One B in the place of five that get the same
        # gradient, their masks' mean, and five times the rate, as a sum of five moves under Adam.
        recipe=Recipe(
            structure=Single(scale=16.0, dropout=0.1, dropout_samples=5),
            init=RLora(),
            groups=Uniform(b_rate=5.0),
            sharing="shared",
        ),
        paper=_ALIGN,  # a control for section 3.1; multi-sample dropout: arXiv 1905.09788
        summary="one LoRA, the mean of five dropout masks, B at five times the rate",
    ),
    "hydra_lora": Row(
        # The authors' script: alpha 32, r = 4, dropout 0.05, four heads.
        recipe=Recipe(
            structure=RoutedHeads(scale=8.0, dropout=0.05, num_heads=4), sharing="shared"
        ),
        paper=_HYDRA,
        summary="heads over one A, weighted by a router a token",
    ),
    "hydra_lora_no_router": Row(
        # As in R-LoRA's copy of the code: one mask for all heads, which so stay equal.
        recipe=Recipe(
            structure=Heads(scale=8.0, dropout=0.05, num_heads=4, common_mask=True),
            sharing="shared",
        ),
        paper=_ALIGN,  # table 1, "w/o router"
        summary="heads over one A, added up; they stay equal",
    ),
    "r_lora": Row(
        # The start: table 1, gamma = 64.
        recipe=Recipe(structure=_R_HEADS, init=RLora(), sharing="shared"),
        paper=_R_LORA,
        summary="HydraLoRA with random heads and a dropout mask each",
    ),
    "r_lora_code": Row(
        recipe=Recipe(
            structure=replace(_R_HEADS, router_init="kaiming"), init=RLoraCode(), sharing="shared"
        ),
        paper=_R_LORA,
        summary="R-LoRA with the start that its published code makes",
    ),
    "m_lora": Row(
        # Section 3.1 and appendix B: R-LoRA without its router; no code is published.
        recipe=Recipe(structure=_M_HEADS, init=RLora(), sharing="shared"),
        paper=_ALIGN,
        summary="R-LoRA without a router, the heads added up",
    ),
    "m_lora_mean": Row(
        recipe=Recipe(
            structure=replace(_M_HEADS, reduction="mean"), init=RLora(), sharing="shared"
        ),
        paper=_ALIGN,  # section 3.3: "simple averaging"
        summary="R-LoRA without a router, the heads averaged",
    ),
    "lora_moe": Row(
        # The authors' script: alpha 32, r = 4, dropout 0.05, eight experts, balance off.
        recipe=Recipe(structure=Experts(scale=8.0, dropout=0.05, num_experts=8), sharing="shared"),
        paper="LoRAMoE: Alleviating World Knowledge Forgetting (arXiv 2312.09979)",
        summary="whole LoRAs, weighted by a router a token",
    ),
    "mix_lora": Row(
        # The authors' template: alpha 32, r = 16, dropout 0.05, two of eight experts, and the
        # default of their configuration for the balance.
        recipe=Recipe(
            structure=Mixture(scale=2.0, dropout=0.05, num_experts=8, top_k=2),
            regularizers=(LoadBalance(weight=0.001),),
            sharing="shared",
        ),
        paper="MixLoRA: Mixture of Experts on LoRA (arXiv 2404.15159)",
        summary="whole feed-forwards with LoRAs, a token through two of eight",
    ),
    "lora_hub": Row(
        # Forty evaluations on five rows, |w| at 0.05, within 1.5: the authors' code.
        recipe=Recipe(structure=Bank(scale=2.0), compose=LoraHub(), sharing="private"),
        paper="LoraHub: Efficient Cross-Task Generalization (arXiv 2307.13269)",
        summary="one LoRA a task, then each task by a weighted sum of the others'",
    ),
    "align_kl": Row(
        # lambda: appendix K; alpha 32 and r = 8, dropout 0.1: the authors' train.py.
        recipe=Recipe(
            structure=Single(scale=4.0, dropout=0.1),
            regularizers=(AlignKL(weight=0.1),),
            sharing="shared",
        ),
        paper=_ALIGN,
        summary="one LoRA, tasks' representations drawn together by KL",
    ),
    "align_mmd": Row(
        recipe=Recipe(
            structure=Single(scale=4.0, dropout=0.1),
            regularizers=(AlignMMD(weight=0.15),),
            sharing="shared",
        ),
        paper=_ALIGN,
        summary="one LoRA, tasks' representations drawn together by MMD",
    ),
    "r_lora+align": Row(
        recipe=Recipe(
            structure=_R_HEADS,
            init=RLora(),
            regularizers=(AlignKL(weight=0.1),),
            sharing="shared",
        ),
        paper=_ALIGN,  # appendix I, table 9
        summary="R-LoRA with alignment by KL",
    ),
    "m_lora+align": Row(
        recipe=Recipe(
            structure=_M_HEADS,
            init=RLora(),
            regularizers=(AlignKL(weight=0.1),),
            sharing="shared",
        ),
        paper=_ALIGN,
        summary="M-LoRA with alignment by KL",
    ),
    "lora+pcgrad": _balanced(
        PCGrad(),
        "Gradient Surgery for Multi-Task Learning (arXiv 2001.06782)",
        "one LoRA, conflicting parts of the tasks' gradients projected away",
    ),
    "lora+upgrad": _balanced(
        UPGrad(),
        "Jacobian Descent for Multi-Objective Optimization (arXiv 2406.16232)",
        "one LoRA, a direction that points against no task's gradient",
    ),
    "lora+cagrad": _balanced(
        CAGrad(),  # c = 0.5: section 5
        "Conflict-Averse Gradient Descent for Multi-task Learning (arXiv 2110.14048)",
        "one LoRA, near the mean gradient the best for the task it helps least",
    ),
    "lora+grad_norm": _balanced(
        GradNorm(),  # alpha = 1.5: section 5
        "GradNorm: Gradient Normalization for Adaptive Loss Balancing (arXiv 1711.02257)",
        "one LoRA, tasks weighted to gradients of comparable size",
    ),
    "lora+uncertainty": _balanced(
        Uncertainty(),
        "Multi-Task Learning Using Uncertainty to Weigh Losses (arXiv 1705.07115)",
        "one LoRA, tasks weighted by a learned uncertainty",
    ),
}


def find_recipe(recipe: "str | Recipe") -> Recipe:
    """Return the recipe of that name, or the recipe itself.

    Raises:
        InputError: if no row has the name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise InputError(f"no recipe is named '{recipe}'{nearest(recipe, RECIPES)}")
    return RECIPES[recipe].recipe


def list_methods() -> list[dict[str, Any]]:
    """Return a row a recipe: name, paper, summary, depends_on, ships_as, mergeable."""
    return [
        {
            "name": name,
            "paper": row.paper,
            "summary": row.summary,
            "depends_on": row.recipe.structure.depends_on,
            "ships_as": row.recipe.structure.ships_as,
            "mergeable": row.recipe.structure.mergeable,
        }
        for name, row in RECIPES.items()
    ]
