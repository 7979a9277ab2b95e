"""`Single` with the default scale and place is PEFT's LoRA."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel

from coadapt.backbone import pool
from coadapt.planning import Plan
from coadapt.structures import Single
from tests.small import MIXED, NAMES, blocks_of, make_batch, make_model, randomize

# PEFT asks transformers for a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LORA_ALPHA, R = 12, 4
FACTORS = {"A": "lora_A", "B": "lora_B"}


@pytest.fixture(params=["attention", "all-linear"])
def pair(request, tiny_bert):
    """A model of ours and one of PEFT's around equal backbones, with equal weights."""
    targets = request.param
    structure = Single(scale=LORA_ALPHA / R)
    ours = make_model(tiny_bert, structure, Plan.shared(NAMES, R), target_modules=targets)
    randomize(ours, std=0.1).eval()
    # By name: PEFT's own "all-linear" looks for heads of models that have one.
    names = list(ours.attached.layers)
    options = {"r": R, "lora_alpha": LORA_ALPHA, "lora_dropout": 0.0, "target_modules": names}
    attention = ours.backbone.config._attn_implementation
    base = AutoModel.from_pretrained(
        tiny_bert, add_pooling_layer=False, attn_implementation=attention
    )
    theirs = get_peft_model(base, LoraConfig(**options)).eval()
    with torch.no_grad():
        for name, factor in blocks_of(ours).items():
            theirs_of(theirs, name).copy_(factor)
    return ours, theirs


def theirs_of(peft_model, name: str) -> torch.nn.Parameter:
    """Return PEFT's parameter for our ``block/module/A``."""
    _, module, factor = name.split("/")
    layer = peft_model.get_submodule(f"base_model.model.{module}")
    return getattr(layer, FACTORS[factor])["default"].weight


def test_default_targets_are_pefts(tiny_bert):
    ours = make_model(tiny_bert, Single(), Plan.shared(NAMES, R))
    theirs = get_peft_model(AutoModel.from_pretrained(tiny_bert), LoraConfig(r=R))
    found = {
        name.removeprefix("base_model.model.")
        for name, module in theirs.named_modules()
        if hasattr(module, "lora_A")
    }
    assert set(ours.attached.layers) == found


def losses(pair, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The same loss on both: our heads on either backbone's pooled output."""
    ours, theirs = pair
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    mine = ours(**batch)
    pooled = pool(theirs(**inputs), batch["attention_mask"], "mean")
    ours.route.set(batch["task_ids"])
    outputs = ours.heads(pooled, ours.route)
    rows = ours.heads.row_losses(outputs, batch["labels"], batch["task_ids"])
    counts = torch.bincount(batch["task_ids"])
    weights = 1 / (counts[batch["task_ids"]] * len(counts))
    return mine["loss"], (rows * weights).sum()


def test_forward_and_gradient_are_pefts(pair):
    ours, theirs = pair
    batch = make_batch(MIXED)
    mine, exact = losses(pair, batch)
    torch.testing.assert_close(mine, exact, rtol=1e-6, atol=1e-6)
    mine.backward()
    exact.backward()
    for name, factor in blocks_of(ours).items():
        assert factor.grad is not None
        assert factor.grad.abs().max() > 1e-3, name
        torch.testing.assert_close(factor.grad, theirs_of(theirs, name).grad, rtol=1e-4, atol=1e-6)


def test_ten_adamw_steps_are_pefts(pair):
    ours, theirs = pair
    names = list(blocks_of(ours))
    factors = [list(blocks_of(ours).values()), [theirs_of(theirs, name) for name in names]]
    start = [factor.detach().clone() for factor in factors[0]]
    ours.heads.requires_grad_(False)
    optimizers = [torch.optim.AdamW(f, lr=1e-3, weight_decay=0.1, eps=1e-6) for f in factors]
    for step in range(10):
        both = losses(pair, make_batch(MIXED, seed=step))
        for loss, optimizer in zip(both, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for mine, exact in zip(*factors, strict=True):
            torch.testing.assert_close(mine, exact, rtol=0, atol=1e-6)
    for before, after in zip(start, factors[0], strict=True):
        assert (after - before).abs().max() > 3e-3  # all of them were trained
