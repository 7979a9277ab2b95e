"""The errors that are the user's to mend, and the hint that helps to mend them."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave cannot be used; the message names the place and what would do."""


class TrainingDiverged(RuntimeError):
    """A loss or a weight is no finite number; the last checkpoint is from before."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` or the list of what is known, to end a message with."""
    known = [str(k) for k in known]
    close = get_close_matches(str(name), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
