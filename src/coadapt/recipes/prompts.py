"""TA-LoRA and the prompts that it is compared with."""

from coadapt.groups import FastSlow
from coadapt.recipe import Recipe
from coadapt.recipes.row import Row
from coadapt.regularizers import TaskOrthogonality
from coadapt.structures import (
    MultitaskPromptTuning,
    PrefixTuning,
    PromptTuning,
    TaskPrompt,
)

PROMPTS: dict[str, Row] = {
    "ta_lora": Row(
        # Half of the layers, rank 1 and a gate a layer: the paper's summary; the rest is ours.
        recipe=Recipe(
            structure=TaskPrompt(),
            groups=FastSlow(),
            regularizers=(TaskOrthogonality(weight=1e-2),),
        ),
        paper="Task-Adaptive Low-Rank Representation (arXiv 2505.00009), a reconstruction",
        summary="prompts of a shared part and a rank-1 one a task, behind a gate at zero",
    ),
    "prompt_tuning": Row(
        recipe=Recipe(structure=PromptTuning(length=20, start="tokens")),  # section 3.2
        paper="The Power of Scale for Parameter-Efficient Prompt Tuning (arXiv 2104.08691)",
        summary="a prompt for all tasks before the text",
    ),
    "prefix_tuning": Row(
        recipe=Recipe(structure=PrefixTuning(length=10)),  # section 7.2; not section 4.3's MLP
        paper="Prefix-Tuning: Optimizing Continuous Prompts for Generation (arXiv 2101.00190)",
        summary="keys and values for all tasks before those of the text",
    ),
    "multitask_prompt_tuning": Row(
        recipe=Recipe(structure=MultitaskPromptTuning(length=20)),  # rank 1; 100 in the paper
        paper="Multitask Prompt Tuning Enables Parameter-Efficient Transfer (arXiv 2303.02861)",
        summary="a common prompt times a rank-1 matrix a task, before the text",
    ),
}
