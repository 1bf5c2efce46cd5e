"""Layer-wise analysis: every layer read out, at the price of the head."""

from eepolicy.probing.documents import Document
from eepolicy.probing.result import ProbeResult
from eepolicy.probing.run import probe
from eepolicy.probing.statistics import STATISTICS

__all__ = ["STATISTICS", "Document", "ProbeResult", "probe"]
