"""What turns text, and pictures, into a model's inputs: its tokenizer and its processor."""

import functools
import logging
from typing import Any

from transformers import AutoProcessor, AutoTokenizer

from coadapt._errors import InputError
from coadapt.assets import resolve_model
from coadapt.backbone import ModelConfig

logger = logging.getLogger(__name__)


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the tokenizer that belongs to the model.

    Raises:
        InputError: if there is none.
    """
    path = resolve_model(config.name)
    try:
        found = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        message = f"no tokenizer could be loaded for model '{config.name}': {error}"
        raise InputError(message) from error
    # Where the files are missing, transformers makes one that knows nothing but special tokens.
    if len(found) <= len(found.all_special_ids):
        raise InputError(f"no tokenizer could be loaded for model '{config.name}': add its files")
    if found.pad_token is None and found.eos_token is not None:
        logger.info(
            "the tokenizer has no padding token; '%s', its end token, pads", found.eos_token
        )
        found.pad_token = found.eos_token
    return found


def load_processor(config: ModelConfig) -> Any:
    """Load what an image-text model reads pictures and prompts by; the same for equal models.

    Raises:
        InputError: if the model has none, or what opens pictures is not installed.
    """
    return _processor(config.name, config.trust_remote_code)


@functools.lru_cache(maxsize=2)
def _processor(name: str, trust_remote_code: bool) -> Any:
    try:
        import PIL  # noqa: F401  # transformers says less where it is not installed
    except ImportError as error:
        raise InputError(
            "pictures are opened by the package pillow, which is not installed: "
            'pip install "coadapt[vision]"'
        ) from error
    try:
        found = AutoProcessor.from_pretrained(
            resolve_model(name), trust_remote_code=trust_remote_code
        )
    # An AttributeError where a part that reads videos lacks what it is made of (torchvision).
    except (OSError, ValueError, ImportError, AttributeError) as error:
        message = f"no processor of pictures could be loaded for model '{name}': {error}"
        raise InputError(message) from error
    if getattr(found, "image_processor", None) is None or not hasattr(found, "image_token"):
        raise InputError(
            f"model '{name}' has no processor that puts pictures into prompts "
            f"(found a {type(found).__name__}); take a model whose processor has an image token"
        )
    return found
