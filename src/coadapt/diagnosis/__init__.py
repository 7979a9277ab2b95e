"""Diagnosis: how tasks relate, measured before or after training."""

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
