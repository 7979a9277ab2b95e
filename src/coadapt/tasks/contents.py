"""What rows hold, before and after their labels are read, and when two of them are the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from coadapt.tasks.answers import Message
from coadapt.tasks.pictures import Picture
from coadapt.tasks.split import text_key


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The rows of one task and split.

    Args:
        texts: the (first) text of each row, or what is said in its conversation.
        pairs: the second text of each row, or None if the task has one text.
        labels: class ids or options' positions as int64, values as float64, or tuples of
            admissible answers; shape (N,).
        options: each row's options, or None if the task is no choice.
        conversations: each row's turns up to the answer, or None if the text is all there is.
        pictures: each row's picture, or None if the task has none.
    """

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: np.ndarray
    options: tuple[tuple[str, ...], ...] | None = None
    conversations: tuple[tuple[Message, ...], ...] | None = None
    pictures: tuple[Picture | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def key(self, index: int) -> bytes:
        """Return what two rows share that read the same."""
        texts = (self.texts[index], *((self.pairs[index],) if self.pairs else ()))
        return row_key(texts, self.pictures[index] if self.pictures else None)


class Content(NamedTuple):
    """What a row holds before its label is read."""

    texts: tuple[str, ...]
    options: tuple[str, ...] = ()
    conversation: tuple[Message, ...] = ()
    picture: Picture | None = None

    @property
    def key(self) -> bytes:
        """What two rows share that read the same."""
        return row_key(self.texts, self.picture)

    @property
    def split_key(self) -> bytes:
        """What two rows share that are in one split: a picture, where there is one, or texts."""
        return self.key if self.picture is None else self.picture.digest


def row_key(texts: Sequence[str], picture: Picture | None) -> bytes:
    """Return a key that rows share whose texts and picture are equal."""
    return text_key(texts) + (b"" if picture is None else picture.digest)
