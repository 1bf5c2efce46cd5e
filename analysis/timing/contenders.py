"""What a bench times: policies in our decoding loop, and transformers' own `generate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import StoppingCriteria, StoppingCriteriaList

import eepolicy
from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields, Positive
from eepolicy.logs import only_errors
from eepolicy.prompts import pad_left

#: default policies, with exit depths as shares of full depth
DEFAULT_POLICIES = (
    ("static", 0.8),
    ("static", 0.5),
    ("spark:even", 0.6),
    ("spark:triple", 0.7),
    ("spark:triple", 0.5),
)
#: depths of the default policy that computes confidence and never exits, as shares of full depth
PROBED_DEPTHS = (0.5, 0.65, 0.8)
DRAFT_DEPTH = 0.7  # exit depth of self-speculation, as a share of full depth
MAX_UNVERIFIED = 4  # drafts of self-speculation before a verification
#: options of `generate` with which no id ends a reply.  `min_new_tokens` takes a millisecond a
#: token for large vocabularies
NO_END = {"eos_token_id": -1}
#: logger of transformers that warns of `NO_END` at each call
GENERATION_LOG = "transformers.generation.utils"


@dataclass(frozen=True)
class BenchConfig(CheckedFields):
    """How a bench decodes.

    Attributes:
        max_new_tokens: maximum length of a reply.
        exact_length: every reply has exactly this length.
        rounds: number of trials of each contender on each batch.
        compiled: compile the layers; full depth is timed without compiling as well.
        time_first_token: report TTFT and TPOT.
    """

    max_new_tokens: Positive
    exact_length: bool = False
    rounds: Positive = 2
    compiled: bool = False
    time_first_token: bool = False

    @property
    def lengths(self) -> dict[str, int]:
        """Length options of `generate`."""
        lengths = {"max_new_tokens": self.max_new_tokens}
        if self.exact_length:
            lengths |= NO_END
        return lengths


@dataclass(frozen=True)
class Trial:
    """Times and counts of one batch of replies; nan for what is unknown.

    Attributes:
        seconds: wall time a token: the time of the batch over the tokens of all rows.
        tokens: mean length of a reply.
        layer_calls: layer calls a token.
        readouts: head calls a token.
        prefill_layer_calls: layer calls on the prompts alone, of the batch.
        ttft: seconds until the first tokens of the batch.
        tpot: seconds a token after the first: the remaining time over the remaining tokens of all
            rows.
        roofline_seconds: roofline of `seconds`.
        roofline_tpot: roofline of `tpot`.
        traces: traces of the rows; empty if unknown.
    """

    seconds: float
    tokens: float
    layer_calls: float = np.nan
    readouts: float = np.nan
    prefill_layer_calls: float = np.nan
    ttft: float = np.nan
    tpot: float = np.nan
    roofline_seconds: float = np.nan
    roofline_tpot: float = np.nan
    traces: Sequence[eepolicy.Trace] = ()


@dataclass
class Contender:
    """One decoding method, and its trials.

    Attributes:
        name: name in tables.
        decode: decodes a batch of prompts, (tokens,) each.
        costs_known: a layer call costs what `call_costs` measures; otherwise there is no ideal
            speed-up.
        trials: filled by the bench.
    """

    name: str
    decode: Callable[[list[torch.Tensor]], Trial]
    costs_known: bool = False
    trials: list[Trial] = field(default_factory=list)

    def column(self, name: str) -> NDArray[np.float64]:
        """One attribute of all trials: (trials,)."""
        return np.array([getattr(trial, name) for trial in self.trials])


def policy_contender(
    model: eepolicy.HookedModel,
    policy: str | eepolicy.ExitPolicy,
    config: BenchConfig,
    name: str | None = None,
    **options: Any,
) -> Contender:
    """A policy in our decoding loop.

    Args:
        model: model that decodes.
        policy: policy or its spec string.
        config: lengths, and whether to compile.
        name: name in tables; the policy's if None.
        **options: options of `generate`.
    """
    used: dict[str, Any] = {"compile": config.compiled, "do_sample": False}
    used |= config.lengths | options

    def decode(prompts: list[torch.Tensor]) -> Trial:
        start = time.perf_counter()
        with only_errors(GENERATION_LOG):
            outs = model.generate(prompts, policy, **used)
        seconds = time.perf_counter() - start
        traces = [out.trace for out in outs]
        tokens = sum(map(len, traces))
        return Trial(
            seconds / tokens,
            tokens / len(outs),
            sum(float(t.layer_calls.sum()) for t in traces) / tokens,
            sum(float(t.readouts.sum()) for t in traces) / tokens,
            traces[0].prefill_layer_calls,
            outs[0].ttft,
            traces=traces,
        )

    return Contender(name or str(policy), decode, used["compile"] == config.compiled)


def stock_contender(
    model: eepolicy.HookedModel, name: str, config: BenchConfig, **options: Any
) -> Contender:
    """Transformers' own `generate`, greedy.

    Args:
        model: wrapped model; its stock model decodes.
        name: name in tables.
        config: lengths.
        **options: options of the stock `generate`.
    """
    stock = model.model

    def decode(prompts: list[torch.Tensor]) -> Trial:
        ids, mask = pad_left([p.to(stock.device) for p in prompts], 0)
        start, clock = time.perf_counter(), FirstTokenClock(stock.device)
        with only_errors(GENERATION_LOG):
            out = stock.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([clock]),
                **config.lengths,
                **options,
            )
        replies = out[:, ids.shape[1] :].tolist()
        seconds = time.perf_counter() - start
        ids_of_end = None if config.exact_length else stock.generation_config.eos_token_id
        ends = {*(ids_of_end if isinstance(ids_of_end, list) else [ids_of_end])}
        tokens = sum(
            next((number for number, token in enumerate(reply, 1) if token in ends), len(reply))
            for reply in replies
        )
        return Trial(seconds / tokens, tokens / len(replies), ttft=clock.seconds)

    return Contender(name, decode)


def self_speculation(model: eepolicy.HookedModel, config: BenchConfig) -> Contender:
    """Our lossless self-speculation with the plain lens, as the stock one drafts."""
    drafts = f"both=static@{round(DRAFT_DEPTH * model.depth)}"
    plain = eepolicy.wrap(model.model, model.layout, model.tokenizer)
    options = {"accept": "exact", "max_pending": MAX_UNVERIFIED}
    return policy_contender(plain, drafts, config, f"{drafts}, accept=exact", **options)


def stock_self_speculation(model: eepolicy.HookedModel, config: BenchConfig) -> Contender:
    """Transformers' self-speculation, which decodes one row only."""
    depth = round(DRAFT_DEPTH * model.depth)
    name = f"stock assistant_early_exit={depth}"
    return stock_contender(model, name, config, assistant_early_exit=depth)


def default_policies(model: eepolicy.HookedModel) -> list[str]:
    """Spec strings of the policies that a bench times by default, at depths of the model.

    The first ones exit at the branches of the model, if it has some. The last one reads out three
    depths and never exits: it shows the cost of the readouts.
    """
    prefix = "" if model.layout.has_speech else "text="
    depths = ",".join(str(round(share * model.depth)) for share in PROBED_DEPTHS)
    return [
        *(f"{prefix}static@{depth}" for depth in sorted(model.branches, reverse=True) if depth),
        *(f"{prefix}{name}@{round(share * model.depth)}" for name, share in DEFAULT_POLICIES),
        f"{prefix}confidence>1.0@[{depths}]",
    ]


def bench_prompts(
    model: eepolicy.HookedModel, questions: Sequence[str], tokens: int | None = None
) -> list[torch.Tensor]:
    """Questions as prompts, (tokens,) each.

    Args:
        model: model whose prompt format is used.
        questions: questions in text.
        tokens: exact length of each prompt: it is repeated, and cut at the left.  Its own length
            if None.

    Raises:
        EepolicyError: the length is below 1.
    """
    prompts = [model.encode(question) for question in questions]
    if tokens is None:
        return prompts
    if tokens < 1:
        raise EepolicyError(f"a prompt has one token or more; got {tokens}")
    return [p.repeat(-(-tokens // len(p)))[-tokens:] for p in prompts]


class FirstTokenClock(StoppingCriteria):  # type: ignore[misc] # it has no types
    """Never stops; records the time of its first call, which is after the first tokens.

    The stock self-speculation calls it after its first round.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.start, self.seconds = device, time.perf_counter(), np.nan

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        if np.isnan(self.seconds):
            synchronize(self.device)
            self.seconds = time.perf_counter() - self.start
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
