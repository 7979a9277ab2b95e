"""Diagnosis: how tasks relate, measured before or after training."""

from typing import TYPE_CHECKING

from coadapt._lazy import lazy_names

if TYPE_CHECKING:
    from coadapt.diagnosis.diagnosing import DiagnosisConfig, diagnose, examine
    from coadapt.diagnosis.measures import (
        Diagnosis,
        PairMeasure,
        TableMeasure,
        TaskMeasure,
        load_diagnosis,
    )
    from coadapt.diagnosis.of_adapters import diagnose_adapters
    from coadapt.diagnosis.trained import RunDiagnosisConfig, diagnose_run

# To read a diagnosis, and to plan by it, takes no model library.
_HOME = {
    "Diagnosis": "measures",
    "DiagnosisConfig": "diagnosing",
    "PairMeasure": "measures",
    "RunDiagnosisConfig": "trained",
    "TableMeasure": "measures",
    "TaskMeasure": "measures",
    "diagnose": "diagnosing",
    "diagnose_adapters": "of_adapters",
    "diagnose_run": "trained",
    "examine": "diagnosing",
    "load_diagnosis": "measures",
}

__all__ = [
    "Diagnosis",
    "DiagnosisConfig",
    "PairMeasure",
    "RunDiagnosisConfig",
    "TableMeasure",
    "TaskMeasure",
    "diagnose",
    "diagnose_adapters",
    "diagnose_run",
    "examine",
    "load_diagnosis",
]

__getattr__ = lazy_names(__name__, _HOME)
