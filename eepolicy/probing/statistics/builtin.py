"""The statistics that come with the library.  A new one is a function and an entry here."""

from __future__ import annotations

from eepolicy.probing.statistics import (
    attention_mass,
    distribution,
    divergence,
    hidden_states,
    modality_mass,
)
from eepolicy.probing.statistics.base import Statistic

_ALL = (
    Statistic(
        name="top1",
        description="most probable token",
        compute=distribution.top1,
        integer=True,
        average="none",
    ),
    Statistic(name="entropy", description="entropy", compute=distribution.entropy, unit="nats"),
    Statistic(
        name="confidence",
        description="probability of the most probable token",
        compute=distribution.confidence,
    ),
    Statistic(
        name="margin",
        description="highest minus second highest probability",
        compute=distribution.margin,
    ),
    Statistic(
        name="rank_last",
        description="rank of the last layer's top token",
        compute=distribution.rank_last,
        compares_with="last",
        integer=True,
        average="median",
    ),
    Statistic(
        name="probability_last",
        description="probability of the last layer's top token",
        compute=distribution.probability_last,
        compares_with="last",
    ),
    Statistic(
        name="rank_next",
        description="rank of the token that follows",
        compute=distribution.rank_next,
        compares_with="next",
        integer=True,
        average="median",
    ),
    Statistic(
        name="probability_next",
        description="probability of the token that follows",
        compute=distribution.probability_next,
        compares_with="next",
    ),
    Statistic(
        name="kl",
        description="KL divergence from the last layer",
        compute=divergence.kl,
        unit="nats",
        compares_with="last",
    ),
    Statistic(
        name="kl_reverse",
        description="KL divergence to the last layer",
        compute=divergence.kl_reverse,
        unit="nats",
        compares_with="last",
        needs_last_logs=True,
    ),
    Statistic(
        name="js",
        description="Jensen-Shannon divergence from the last layer",
        compute=divergence.js,
        unit="nats",
        compares_with="last",
    ),
    Statistic(
        name="cosine_last",
        description="cosine with the last layer's hidden state",
        compute=hidden_states.cosine_last,
        compares_with="last",
        of_states=True,
    ),
    Statistic(
        name="norm_last",
        description="norm of the hidden state over the last layer's",
        compute=hidden_states.norm_last,
        compares_with="last",
        of_states=True,
    ),
    Statistic(
        name="cosine_previous",
        description="cosine with the previous layer's hidden state",
        compute=hidden_states.cosine_previous,
        compares_with="previous",
        of_states=True,
    ),
    Statistic(
        name="norm_previous",
        description="norm of the hidden state over the previous layer's",
        compute=hidden_states.norm_previous,
        compares_with="previous",
        of_states=True,
    ),
    Statistic(
        name="text_mass",
        description="probability of the text ids",
        compute=modality_mass.text_mass,
        by_default=False,
    ),
    Statistic(
        name="speech_mass",
        description="probability of the speech ids",
        compute=modality_mass.speech_mass,
        by_default=False,
    ),
    Statistic(
        name="js_deeper",
        description="Jensen-Shannon divergence from the next deeper depth",
        compute=divergence.js_deeper,
        unit="nats",
        compares_with="deeper",
        by_default=False,
    ),
    Statistic(
        name="attention_text",
        description="attention on text positions",
        compute=attention_mass.attention_text,
        of_attention=True,
        by_default=False,
    ),
    Statistic(
        name="attention_speech",
        description="attention on speech positions",
        compute=attention_mass.attention_speech,
        of_attention=True,
        by_default=False,
    ),
)

#: the statistics by name
STATISTICS = {statistic.name: statistic for statistic in _ALL}
