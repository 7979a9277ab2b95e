"""Write a small LLaVA of random weights that can learn to see shapes.

    python examples/pictures/make_model.py runs/llava

Without a hub there is no trained image-text model to begin with, so the example trains this one
whole, and then adapts it. 64 x 64 pictures are 64 places; words are the questions' own.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor

from coadapt.assets import read_dataset

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
TASKS = ("vqa_yes_no", "vqa_shape", "vqa_color")
SIZE, PATCH = 64, 8


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return one that knows the words of the questions and answers."""
    pieces = pre_tokenizers.Whitespace()
    rows = [row for name in TASKS for row in read_dataset(name)]
    texts = {row[field] for row in rows for field in ("text", "label")}
    words = sorted({piece for text in texts for piece, _ in pieces.pre_tokenize_str(text)})
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words))}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pieces
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=256,
    )


def save_model(folder: Path, *, width: int = 96, layers: int = 3) -> None:
    """Write the model with its processor."""
    tokenizer = make_tokenizer()
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": SIZE, "width": SIZE}, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    config: Any = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=256,
            initializer_range=0.2,  # a frozen head of small weights could never be sure
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    """Write the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    save_model(parser.parse_args().folder)


if __name__ == "__main__":
    main()
