"""A reader of PEFT LoRA folders that knows what a server knows: one r, one alpha, A and B."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D


@torch.no_grad()
def apply_naively(model: nn.Module, folder: Path) -> nn.Module:
    """Add ``lora_alpha / r * B A`` to the weights that the keys name; every key has to be one."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    for key, A in tensors.items():
        name, _, rest = key.removeprefix("base_model.model.").partition(".lora_")
        assert rest in ("A.weight", "B.weight"), key
        if rest == "A.weight":
            assert A.shape[0] == config["r"], "a server makes room for r ranks"
            update = scale * tensors[key.replace("lora_A", "lora_B")] @ A
            module = model.get_submodule(name)
            module.weight += update.T if isinstance(module, Conv1D) else update
    return model.eval()
