"""Plug-ins that return the wrong thing, or raise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

import eepolicy
from benchmarks.reliability.cases import Case, legal_reason
from eepolicy.decode.acceptance import AcceptExact
from eepolicy.heads import ExitPredictor
from eepolicy.policies import PolicyState
from eepolicy.probing import Statistic
from eepolicy.testing.models import random_llama

KIND = "results of plug-ins"
NAN = math.nan

PROMPTS = [torch.tensor([1, 7, 30, 12, 2]), torch.tensor([1, 9])]


class OwnError(Exception):
    """What a plug-in raises by itself."""


@dataclass(frozen=True)
class Result:
    """A wrong result of a method, or the error that it raises.

    Attributes:
        label: the result in words.
        value: the result.
        raises: whether the method raises instead.
    """

    label: str
    value: Any
    raises: bool = False

    def method(self) -> Callable[..., Any]:
        """A method with this result."""

        def method(*_: Any, **__: Any) -> Any:
            if self.raises:
                raise OwnError("of its own")
            return self.value

        return method


RAISED = Result("an error of its own", None, raises=True)
#: what no method returns
NEVER = [
    Result("None", None),
    Result("'zz'", "zz"),
    Result("2.5", 2.5),
    Result("an object", object()),
    Result("{}", {}),
    RAISED,
]


def tensors(*values: Any) -> list[Result]:
    """Results that are tensors."""
    return [Result(f"tensor({value})", torch.tensor(value)) for value in values]


#: wrong results of each method of a policy, for two rows and four layers
POLICY = {
    "depths": [
        *NEVER,
        Result("2", 2),
        Result("[2, 2]", [2, 2]),
        *tensors([2], [2, 2, 2], [[2, 2]], [NAN, NAN], [2.7, 2.7], [True, True], [0, 0], [99, 99]),
        *tensors([-1, 2], 2, [2 + 1j, 2 + 0j]),
    ],
    "candidate_depths": [
        *NEVER,
        Result("2", 2),
        *[
            Result(str(v), v)
            for v in ((2.5,), (3, 2), (2, 2), (0,), (99,), (NAN,), ("2",), (True,))
        ],
        *tensors([2.5]),
    ],
    "should_exit": [
        *NEVER,
        Result("True", True),
        Result("[True, True]", [True, True]),
        *tensors([True], [True, True, True], [[True, True]], [NAN, NAN], [1.0, 0.0], [1, 0], True),
    ],
    "begin": [r for r in NEVER if r.label != "None"],
    "update": NEVER,
    "min_depth": [*NEVER, *[Result(str(v), v) for v in (0, -1, 99, NAN, True, "2")]],
    "possible_depths": [r for r in NEVER if r.label not in ("None", "{}")]
    + [Result(str(v), v) for v in (2, (2.5,), ("2",), (NAN,))],
    "predicted_depths": [*NEVER, *[Result(str(v), v) for v in (2, (2.5,), ("2",))]],
    "check": [RAISED],
}
RULE = {
    "accepts": [
        *NEVER,
        Result("True", True),
        *tensors([], [True] * 9, [[True]], [NAN], [1.0], [2]),
    ],
    "replacement_scores": [
        *NEVER,
        *tensors([0.0], [[0.0]]),
        Result("scores of nan", torch.full((60,), NAN)),
        Result("scores of a larger vocabulary", torch.zeros(61)),
        Result("scores of integers", torch.zeros(60, dtype=torch.long)),
    ],
    "begin": [RAISED],
    "next_state": [RAISED],
    "bind": NEVER,
}
SCORES = [
    *NEVER,
    *tensors([0.0], [[0.0]]),
    Result("one id too few", torch.zeros(2, 59)),
    Result("one row too many", torch.zeros(3, 60)),
    Result("nan", torch.full((2, 60), NAN)),
    Result("integers", torch.zeros(2, 60, dtype=torch.long)),
]
#: inputs that are right, with the reason
LEGAL = (
    ("policy.should_exit returns tensor(*1, 0*)", "0 and 1 are truth values"),
    ("policy.update returns None", "the policy keeps nothing more"),
    ("policy.min_depth returns 0", "no layer runs before the drafter's readout"),
    ("statistic.compute returns tensor(*True*", "truth values are numbers"),
)


@dataclass(frozen=True)
class Kept(PolicyState):
    """What the policy keeps.

    Attributes:
        steps: (rows,) number of steps.
    """

    steps: Tensor


class Policy(eepolicy.ExitPolicy):
    """Exits at depth 2 or reads it out."""

    def __repr__(self) -> str:
        return "Policy()"

    def depths(self, step: eepolicy.Step) -> Tensor:
        """Full depth of each row: (rows,)."""
        return torch.full_like(step.phase, step.full_depth)

    def begin(self, rows: int) -> PolicyState | None:
        """A state: (rows,)."""
        return Kept(torch.zeros(rows))

    def candidate_depths(self, step: eepolicy.Step) -> tuple[int, ...]:
        """One candidate."""
        return (2,)

    def should_exit(self, step: eepolicy.Step, depth: int, readout: Any) -> Tensor:
        """Nothing exits: (rows,)."""
        return torch.zeros(len(step.phase), dtype=torch.bool)


class Rule(AcceptExact):
    """Verifies like `exact`."""

    def __repr__(self) -> str:
        return "Rule()"


class Fill(eepolicy.KVFill):
    """Leaves the layers above an exit as the test says."""

    def on_exit(self, batch: Any, block: Any) -> None:
        """Do nothing, which leaves keys and values out."""


class Head(eepolicy.ExitHead):
    """A head with the logits that the test says."""

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        """Zeros: (..., 60)."""
        return hidden.new_zeros(*hidden.shape[:-1], 60)


class Processor(LogitsProcessor):  # type: ignore[misc]
    """A logits processor."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The same scores."""
        return scores


class Criterion(StoppingCriteria):  # type: ignore[misc]
    """A stopping criterion."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """No row stops."""
        return torch.zeros(len(input_ids), dtype=torch.bool)


def with_method(cls: type, name: str, result: Result) -> Any:
    """An object of a class whose method has a wrong result."""
    return type(cls.__name__, (cls,), {name: result.method()})()


def cases() -> Iterator[Case]:
    """Each method of each kind of plug-in with each wrong result."""
    for label, run, result in _runs():
        own = OwnError if result.raises else None
        yield Case(KIND, label, run, legal_reason(label, LEGAL), own)


def _runs() -> Iterator[tuple[str, Callable[[], object], Result]]:
    model = random_llama(dtype=torch.float32)
    generate = partial(model.generate, PROMPTS, max_new_tokens=4)

    def each(kind: str, cls: type, table: dict[str, list[Result]], run: Any) -> Iterator[Any]:
        for method, results in table.items():
            for result in results:
                text = "raises" if result.raises else "returns"
                label = f"{kind}.{method} {text} {result.label}"
                yield label, partial(run, cls, method, result), result

    def policy(cls: type, method: str, result: Result) -> object:
        return generate(with_method(cls, method, result))

    def rule(cls: type, method: str, result: Result) -> object:
        return generate("both=static@1", accept=with_method(cls, method, result), max_pending=2)

    def fill(cls: type, method: str, result: Result) -> object:
        return generate("both=static@2", fill=with_method(cls, method, result))

    def head(cls: type, method: str, result: Result) -> object:
        hooked = random_llama(dtype=torch.float32)
        hooked.heads = with_method(cls, method, result)
        return hooked.generate(PROMPTS, "both=static@2", max_new_tokens=3)

    def processor(cls: type, method: str, result: Result) -> object:
        return generate(logits_processor=[with_method(cls, method, result)])

    def criterion(cls: type, method: str, result: Result) -> object:
        return generate(stopping_criteria=[with_method(cls, method, result)])

    def statistic(cls: type, method: str, result: Result) -> object:
        own = Statistic(name="own", description="own", compute=result.method())
        return eepolicy.probe(model, PROMPTS[0], statistics=[own])

    def vocoder(cls: type, method: str, result: Result) -> object:
        hooked = random_llama(dtype=torch.float32)
        hooked.vocoder = with_method(cls, method, result)
        return hooked.generate(PROMPTS[0], max_new_tokens=8).audio

    def predictor(cls: type, method: str, result: Result) -> object:
        hooked = random_llama(dtype=torch.float32)
        hooked.predictor = ExitPredictor([2], 32)
        object.__setattr__(hooked.predictor, method, result.method())
        return hooked.generate(PROMPTS, eepolicy.Predictor(0.5, (2,), on="both"), max_new_tokens=3)

    values = [*NEVER, *tensors([0.5], [[0.5, 0.5]], [True] * 5, [0.5 + 1j] * 5)]
    waves = [*NEVER, *tensors([[0.5, 0.5]], [NAN, 0.0], [1, 2])]
    probabilities = [*NEVER, *tensors([0.5], [[0.5, 0.5]], [NAN, NAN])]
    yield from each("policy", Policy, POLICY, policy)
    yield from each("acceptance rule", Rule, RULE, rule)
    yield from each("fill", Fill, {"on_exit": [Result("None", None), RAISED]}, fill)
    yield from each("exit head", Head, {"logits": SCORES}, head)
    yield from each("logits processor", Processor, {"__call__": SCORES}, processor)
    criteria = [*NEVER, *tensors([[False]], [False] * 3, [NAN])]
    yield from each("stopping criterion", Criterion, {"__call__": criteria}, criterion)
    yield from each("statistic", object, {"compute": values}, statistic)
    yield from each("vocoder", object, {"decode": waves}, vocoder)
    yield from each("exit predictor", object, {"probability": probabilities}, predictor)
