"""Reports: what a run, some runs beside each other, or a study came to, on one page."""

from coadapt.reporting.collecting import collect
from coadapt.reporting.rendering import render, write_report

__all__ = ["collect", "render", "write_report"]
