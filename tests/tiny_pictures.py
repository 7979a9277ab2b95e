"""A tiny image-text model of random weights, and rows with pictures of one colour."""

import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor

from tests.tiny_language import make_tokenizer, write_jsonl

CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PLACES = 16  # tokens of a picture
COLOURS = ("red", "green", "blue")


def save_llava(folder: Path) -> Path:
    """Write a LLaVA with a CLIP tower and a Llama, its processor and its tokenizer."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": 32, "width": 32}, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    tower = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    words = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.3,
    )
    config: Any = LlavaConfig(
        vision_config=tower,
        text_config=words,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture_suite(folder: Path, rows: int = 40) -> dict[str, Any]:
    """Write pictures and three tasks on them, one of each kind that shows pictures."""
    rng = random.Random(0)
    written = []
    for index in range(rows):
        colour = COLOURS[index % 3]
        image = Image.new("RGB", (20, 16), colour)
        image.putpixel((rng.randrange(20), rng.randrange(16)), (index, index, index))
        image.save(folder / f"{index}.png")
        row = {"image": f"{index}.png", "q": f"Which, {index}?", "colour": colour}
        written.append({**row, "options": list(COLOURS[:2] if index % 3 < 2 else COLOURS[1:])})
    data = str(write_jsonl(folder / "rows.jsonl", written))
    shared = {"data": data, "prompt": "{q}\nAnswer:", "image": "image", "label": "colour"}
    return {
        "tasks": {
            "name": {"kind": "classification", **shared},
            "pick": {"kind": "choice", "options": "options", **shared},
            "say": {"kind": "generation", "generation": {"max_new_tokens": 4}, **shared},
        }
    }
