"""First files for data that are there: what they seem to hold, as YAML to be read and mended."""

from coadapt.drafting.guessing import Guess, guess, guess_all
from coadapt.drafting.writing import write_files

__all__ = ["Guess", "guess", "guess_all", "write_files"]
