"""Pictures of rows: read from files or bytes when a batch needs them, and told apart by content."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coadapt._errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """A picture that opens.

    Attributes:
        source: its file, or the bytes of one.
        digest: of the bytes: pictures with the same are the same.
    """

    source: Path | bytes = field(repr=False)
    digest: bytes

    def open(self) -> "Image":
        """Return it in RGB."""
        from PIL import Image

        raw = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        with Image.open(raw) as image:
            return image.convert("RGB")


def read_picture(value: Any, column: str) -> Picture | None:
    """Return the picture that a row's field holds; None where it holds none.

    Args:
        value: a path, the bytes of a file, or a mapping with either (``bytes``, ``path``), as
            Hugging Face's data sets and Parquet files have pictures.
        column: for the error message.

    Raises:
        InputError: if it is none of these or does not open, naming it; or if the package that opens
            pictures is not installed.
    """
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or value.get("path")
    if value is None or value in ("", b""):
        return None
    if not isinstance(value, (str, bytes)):
        raise InputError(f"column '{column}' holds {value!r}; give the path of a picture")
    name = f"'{value}'" if isinstance(value, str) else f"a picture of {len(value):,} bytes"
    source = Path(value) if isinstance(value, str) else value
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError(
            "pictures are opened by the package pillow, which is not installed: "
            'pip install "coadapt[vision]"'
        ) from error
    try:
        raw = source.read_bytes() if isinstance(source, Path) else source
        with Image.open(io.BytesIO(raw)) as image:
            image.verify()
    except FileNotFoundError as error:
        raise InputError(
            f"column '{column}': there is no picture {name}; check the path"
        ) from error
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise InputError(f"column '{column}': {name} does not open ({error})") from error
    return Picture(source, blake2b(raw, digest_size=16).digest())


class Pixels:
    """What an image-text model's processor makes of pictures, when a batch is put together.

    Args:
        processor: of transformers, with an ``image_processor``.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def prompt(self, turns: Sequence[tuple[str, str]], *, chat: bool) -> str:
        """Return the text of a conversation, with the picture before what the user says first.

        Raises:
            InputError: if it is no single question and there is no chat, or no chat template.
        """
        if not chat:
            if [role for role, _ in turns if role != "system"] != ["user"]:
                raise InputError("a conversation needs the chat template; set model.chat to true")
            text = "\n\n".join(content for _, content in turns)
            return f"{self.processor.image_token}\n{text}"
        if self.processor.chat_template is None:
            raise InputError(
                "model.chat is true, but the processor has no chat template; set model.chat to "
                "false, or take an instruction-tuned model"
            )
        messages = [
            {"role": role, "content": [{"type": "text", "text": content}]}
            for role, content in turns
        ]
        first = next(message for message in messages if message["role"] == "user")
        first["content"].insert(0, {"type": "image"})
        return self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )

    def prompt_ids(self, prompt: str, picture: Picture, *, special: bool) -> list[int]:
        """Return a prompt's tokens, with as many for the picture as the model makes of it."""
        made = self.processor(text=[prompt], images=[picture.open()], add_special_tokens=special)
        return list(made["input_ids"][0])

    def __call__(self, pictures: Sequence[Picture]) -> "dict[str, Tensor]":
        """Return the model's inputs for the pictures, ``pixel_values`` and what goes with them."""
        made = self.processor.image_processor(
            images=[picture.open() for picture in pictures], return_tensors="pt"
        )
        return dict(made)


def pixel_inputs(items: Sequence[Mapping[str, Any]]) -> "dict[str, Tensor]":
    """Return a batch's pictures as a model takes them; nothing if no row has one.

    Args:
        items: encoded rows, of which some have a ``picture`` and the ``pixels`` that read it.
    """
    shown = [item for item in items if "picture" in item]
    return shown[0]["pixels"]([item["picture"] for item in shown]) if shown else {}
