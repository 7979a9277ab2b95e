"""Align-LoRA and the systems that its paper compares."""

from dataclasses import replace

from coadapt.groups import Uniform
from coadapt.inits import RLora, RLoraCode
from coadapt.lora_hub import LoraHub
from coadapt.recipe import Recipe
from coadapt.recipes.row import Row
from coadapt.regularizers import AlignKL, AlignMMD, LoadBalance
from coadapt.structures import (
    Bank,
    Experts,
    Heads,
    Mixture,
    RoutedHeads,
    Single,
)

_ALIGN = "Align, Don't Divide: Revisiting the LoRA Architecture (arXiv 2508.05078)"
_HYDRA = "HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning (arXiv 2404.19245)"
_R_LORA = "R-LoRA: Randomized Multi-Head LoRA for Efficient Multi-Task Learning (arXiv 2502.15455)"

# Five heads, alpha = 32 and r = 4 under rank-stabilised scaling, alpha / sqrt(r), dropout of A x:
# the authors' code. A router at zero makes "the base model's function at start" true.
_R_HEADS = RoutedHeads(scale=16.0, dropout=0.1, num_heads=5, router_init="zero")
_M_HEADS = Heads(scale=16.0, dropout=0.1, num_heads=5)


ALIGN_LORA: dict[str, Row] = {
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
        # The authors' template: alpha 32, r = 16, dropout 0.05, two of eight; their balance.
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
    "hydra_lora_3b1a": Row(
        # ThanoRA's rows of HydraLoRA: three and four heads over one A; the rest as published.
        recipe=Recipe(
            structure=RoutedHeads(scale=8.0, dropout=0.05, num_heads=3), sharing="shared"
        ),
        paper=_HYDRA,
        summary="HydraLoRA with three heads",
    ),
    "hydra_lora_4b1a": Row(
        recipe=Recipe(
            structure=RoutedHeads(scale=8.0, dropout=0.05, num_heads=4), sharing="shared"
        ),
        paper=_HYDRA,
        summary="HydraLoRA with four heads",
    ),
}
