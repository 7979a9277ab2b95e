"""What leaves coadapt: stock PEFT folders, or complete stock transformers models.

Everything here is made from what each layer folds to (of DoRA its factors and magnitudes) and the
heads; nothing knows the block layout.
"""

from coadapt.exporting.adapters import export_peft
from coadapt.exporting.merged import export_merged
from coadapt.exporting.pushing import check_repo, push_export
from coadapt.exporting.report import ExportReport, Finding
from coadapt.exporting.verify import verify_peft

__all__ = [
    "ExportReport",
    "Finding",
    "check_repo",
    "export_merged",
    "export_peft",
    "push_export",
    "verify_peft",
]
