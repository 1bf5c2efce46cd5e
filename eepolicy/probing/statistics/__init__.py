"""Statistics of logits and hidden states, and the list of those that come with the library."""

from eepolicy.probing.statistics.base import Statistic
from eepolicy.probing.statistics.builtin import STATISTICS
from eepolicy.probing.statistics.context import LogitContext, StateContext
from eepolicy.probing.statistics.last_layer import LastLayer

__all__ = ["STATISTICS", "LastLayer", "LogitContext", "StateContext", "Statistic"]
