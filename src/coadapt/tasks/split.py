"""Who is in which split: a hash of the normalised text decides, so every task agrees."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, get_args

import numpy as np

from coadapt._errors import InputError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, kw_only=True)
class SplitFractions:
    """Shares of the texts that are held out of training; both lie in [0, 1), as does their sum."""

    validation: float = 0.15
    test: float = 0.25

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or not self.validation + self.test < 1:
            raise InputError(
                f"split fractions validation={self.validation}, test={self.test}: "
                f"give two numbers from 0 whose sum is below 1"
            )


def normalize(text: str) -> str:
    """Return the form in which texts count as equal: compatibility, case, white space folded.

    The folding is Unicode's compatibility caseless matching (definition D146), then NFKC.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFD", text)
    for _ in range(2):
        folded = unicodedata.normalize("NFKD", folded.casefold())
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def text_key(texts: Sequence[str]) -> bytes:
    """Return a key that rows share whose texts (one, or a pair) are equal when normalised."""
    # A control character that `normalize` never leaves keeps ("a b", "c") and ("a", "b c") apart.
    joined = "\x1f".join(normalize(text) for text in texts)
    return blake2b(joined.encode(), digest_size=16).digest()


def split_of(key: bytes, fractions: SplitFractions, seed: int) -> Split:
    """Return the split of a `text_key`; it depends on nothing else, not even the task."""
    digest = blake2b(key, digest_size=8, salt=(seed % 2**64).to_bytes(8, "big")).digest()
    position = int.from_bytes(digest, "big") / 2**64
    if position < fractions.test:
        return "test"
    if position < fractions.test + fractions.validation:
        return "validation"
    return "train"


def generator(*key: str | int) -> np.random.Generator:
    """Return a generator that is a function of the key alone, on every machine."""
    digest = blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
