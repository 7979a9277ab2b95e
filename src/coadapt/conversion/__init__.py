"""Taking over what was made elsewhere: LLaMA-Factory's training files, and PEFT adapters."""

from coadapt.conversion.adapters import import_adapters
from coadapt.conversion.llama_factory import Conversion, convert, write_conversion

__all__ = ["Conversion", "convert", "import_adapters", "write_conversion"]
