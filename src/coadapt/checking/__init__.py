"""What is wrong or noteworthy about a suite's data, found before anything is trained."""

from coadapt.checking.checked import Checked, Finding, check
from coadapt.checking.estimating import Estimate, estimate

__all__ = ["Checked", "Estimate", "Finding", "check", "estimate"]
