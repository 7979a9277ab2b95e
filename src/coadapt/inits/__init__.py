"""How adapters start; one init, one file."""

from coadapt.inits.base import AbstractInit
from coadapt.inits.default import Default
from coadapt.inits.r_lora import RLora, RLoraCode

Init = Default | RLora | RLoraCode

__all__ = ["AbstractInit", "Default", "Init", "RLora", "RLoraCode"]
