"""Adapt one foundation model to many tasks at once."""

from coadapt._version import __version__

__all__ = ["__version__"]
