"""Adapters as stock PEFT writes them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel


@torch.no_grad()
def peft_folder(base: Path, folder: Path, auto: Any = AutoModel, **config: Any) -> Path:
    """Write a random adapter of ``base`` as ``auto`` loads it."""
    model = get_peft_model(
        auto.from_pretrained(base), LoraConfig(**{"r": 4, "lora_alpha": 6, **config})
    )
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return folder
