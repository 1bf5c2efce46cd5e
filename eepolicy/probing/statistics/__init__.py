"""Statistics of logits, hidden states and attention, and the list of the library's own."""

from eepolicy.probing.statistics.attention_mass import AttentionContext
from eepolicy.probing.statistics.base import Statistic
from eepolicy.probing.statistics.builtin import STATISTICS
from eepolicy.probing.statistics.context import LogitContext, StateContext
from eepolicy.probing.statistics.extras import Extras
from eepolicy.probing.statistics.given_tokens import given_rank, given_recall
from eepolicy.probing.statistics.last_layer import LastLayer

__all__ = [
    "STATISTICS",
    "AttentionContext",
    "Extras",
    "LastLayer",
    "LogitContext",
    "StateContext",
    "Statistic",
    "given_rank",
    "given_recall",
]
