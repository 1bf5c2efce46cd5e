"""Wrong values in the fields of public dataclasses: policies, rules, layouts, configs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any, get_type_hints

import torch

import eepolicy
from benchmarks.reliability.cases import Case, legal_reason
from benchmarks.reliability.values import wrong_for
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.rows import Row
from eepolicy.analysis.evaluation.verdict import Margins
from eepolicy.analysis.stats.sequential import UntilDecided
from eepolicy.analysis.studies.policy_search import LossBudget
from eepolicy.analysis.timing.contenders import BenchConfig
from eepolicy.decode.acceptance import (
    AcceptAcoustic,
    AcceptGroups,
    AcceptJoined,
    AcceptRatio,
    AcceptRegret,
    AcceptTolerance,
    AcceptTop,
)
from eepolicy.decode.rebatch import LayerCosts
from eepolicy.fitting import Exits, FitConfig, Generation, PredictorConfig, Questions
from eepolicy.loading import card_named
from eepolicy.probing import Document, Statistic
from eepolicy.prompts import Voice
from eepolicy.testing.models import LAYOUT, random_llama
from eepolicy.workers import WorkerConfig

KIND = "fields of public classes"

#: inputs that are right, with the reason
LEGAL = (
    ("*.threshold = -1", "a statistic can be compared with any finite number"),
    ("*.threshold = *[*][*]*", "a statistic can be compared with any finite number"),
    ("Random.mean_depth = -1", "it is compared with the model when decoding starts"),
    ("Random.mean_depth = *[*][*]*", "it is compared with the model when decoding starts"),
    ("*.seed = -1", "a seed is an integer of 64 bits"),
    ("*.seed = 10[*][*]10", "a seed is an integer of 64 bits"),
    ("Accept*.* = *0*", "any finite number of 0 or more bounds the rule"),
    ("AcceptRegret.* = 2*", "any finite number of 0 or more bounds the rule"),
    ("Accept*.distance = 2*", "any finite number of 0 or more bounds the rule"),
    ("TokenLayout.*_chunk = 10*", "a chunk that never ends, as in a text model"),
    ("TokenLayout.end* = -1", "-1 stands for no id"),
    ("TokenLayout.*s = [[]]", "no ids"),
    ("TokenLayout.*prompt = [[]]", "no ids"),
    ("EarlyExitConfig.record = {}", "the default options of `probe`"),
    ("*learning_rate = *[*][*]*", "a finite number above 0"),
    ("*.weight_decay = *[*][*]*", "a finite number of 0 or more"),
    ("FitConfig.policy = *", "it is read with the depth that is fitted, before any work"),
    ("RunConfig.* = [[{]?", "an empty list or no options"),
    ("Row.* = '*'", "spec strings are read with the options of the comparison, before any work"),
    ("LayerCosts.gather_seconds = -1", "a measured difference may have either sign"),
    ("LayerCosts.*_seconds = *[*][*]*", "a finite number of seconds"),
    ("Statistic.* = '*'", "any text; a name is an identifier"),
    ("ModelCard.sampling = {}", "no options"),
    ("ModelCard.turns = {}", "a model of single questions"),
    ("ModelCard.*s = [[]]", "no tokens"),
    ("ModelCard.rate = *[*][*]*", "any finite number above 0"),
    ("Document.given = {}", "no ids"),
    ("Voice.text = '*'", "any text"),
    ("Voice.units = a*tensor*", "they are compared with the model when a prompt is encoded"),
    ("Generation.sampling = {}", "no options"),
    ("Exits.policy = ''", "full depth"),
    ("Exits.policy = 'zz'", "a spec string, which is read before any reply"),
    ("Exits.digest = '*'", "any text"),
    ("WorkerConfig.ray = 'zz'", "an address, where no cluster is refused when work starts"),
    ("ModelCard.* = '*'", "text; tokens are looked up in the tokenizer when the model is loaded"),
)


def examples() -> list[Any]:
    """One right object of each public dataclass that users make."""
    trace = random_llama().generate(torch.tensor([1, 7, 30]), max_new_tokens=2).trace
    return [
        eepolicy.Static(2),
        eepolicy.SparK("triple", 2),
        eepolicy.Entropy(0.5, 2),
        eepolicy.Confidence(0.5, (2, 3)),
        eepolicy.Margin(0.5, 2),
        eepolicy.Saturation(0.5, 2),
        eepolicy.Patience(2, 2),
        eepolicy.Random(3.0, 2),
        eepolicy.Oracle(1),
        eepolicy.Predictor(0.5, 2),
        eepolicy.Draft(2),
        eepolicy.DynamicDraft(2),
        eepolicy.DriftRefresh(0.3, 2),
        eepolicy.ByModality(eepolicy.FullDepth(), eepolicy.Static(2)),
        AcceptTop(5),
        AcceptRatio(0.3),
        AcceptTolerance(0.2),
        AcceptRegret(8.0),
        AcceptAcoustic(20.0),
        AcceptGroups(20.0),
        AcceptJoined((AcceptTop(5), AcceptRatio(0.3))),
        LAYOUT,
        eepolicy.ChunkClock(LAYOUT),
        eepolicy.EarlyExitConfig(),
        FitConfig(),
        PredictorConfig((1, 2)),
        RunConfig(),
        Row(eepolicy.Static(2)),
        Margins(),
        UntilDecided(),
        BenchConfig(4),
        LossBudget(),
        LayerCosts((1, 2), (0.1, 0.2)),
        Document(torch.arange(4)),
        Statistic(name="zero", description="zero", compute=lambda context: context.top1 * 0),
        card_named("glm-4-voice"),
        trace,
        Voice("Hi.", torch.arange(4)),
        Questions([torch.arange(4)], [torch.arange(4)]),
        Generation(),
        Exits(),
        WorkerConfig(2),
    ]


def cases() -> Iterator[Case]:
    """Each field of each example with each wrong value."""
    for example in examples():
        cls: Any = type(example)
        parameters = inspect.signature(cls).parameters
        hints = get_type_hints(cls, include_extras=True)
        if cls is eepolicy.EarlyExitConfig:  # its own `__init__` takes spec strings as well
            hints = get_type_hints(cls.__init__, include_extras=True)
        right = {f.name: getattr(example, f.name) for f in fields(example) if f.name in parameters}
        for name in right:
            for wrong in wrong_for(hints[name]):
                label = f"{cls.__name__}.{name} = {wrong.label}"
                run = partial(cls, **right | {name: wrong.value})
                yield Case(KIND, label, run, legal_reason(label, LEGAL))
