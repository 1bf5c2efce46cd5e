"""Decoding times of policies, taken in turns in one run, beside what the machine allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import StoppingCriteria, StoppingCriteriaList

import eepolicy
from eepolicy.analysis.timing.roofline import Machine, Sizes, least_seconds, measure_machine
from eepolicy.compile.executor import CompiledExecutor
from eepolicy.decode.batch import Batch
from eepolicy.errors import EepolicyError
from eepolicy.prompts import pad_left

#: policies that are timed where none are named, and their exit depths as shares of the model's
USUAL = (
    ("static", 0.8),
    ("static", 0.5),
    ("spark:even", 0.6),
    ("spark:triple", 0.7),
    ("spark:triple", 0.5),
)
EARLY = 0.7  # the share, of self-speculation
AHEAD = 4  # drafts of it that may go unjudged
STEPS = 40  # that the cost of a call is the median of


@dataclass
class Turn:
    """What one batch of replies took; nan is what is not known.

    Attributes:
        seconds: a token, of the batch: its time divided by the tokens of all rows.
        tokens: of a reply, on average.
        layer_calls: a token and row.
        readouts: likewise.
        least: seconds a token in which the machine could have done it, see `least_seconds`.
        prefilled: layer calls on the prompts alone, of a batch.
        first: seconds until a batch has its first tokens.
        later: seconds a token behind them.
        least_later: likewise, those in which the machine could have done it.
    """

    seconds: float
    tokens: float
    layer_calls: float = np.nan
    readouts: float = np.nan
    least: float = np.nan
    prefilled: float = np.nan
    first: float = np.nan
    later: float = np.nan
    least_later: float = np.nan


@dataclass
class Way:
    """One way of decoding, and its turns.

    Attributes:
        name: to show.
        decode: a batch of prompts.
        costs_known: a layer call of it costs what `call_costs` measured; otherwise nothing is
            promised.
    """

    name: str
    decode: Callable[..., Turn]
    costs_known: bool = False
    turns: list[Turn] = field(default_factory=list)

    def column(self, what: str) -> NDArray[np.float64]:
        """One figure of all turns: (turns,)."""
        return np.array([getattr(turn, what) for turn in self.turns])


@dataclass
class Bench:
    """Times decoding on one model.

    Args:
        model: that decodes.
        prompts: ids of each, (tokens,).
        max_new_tokens: of a reply.
        exactly: replies do not end before.
        rounds: turns of each way on each batch.
        compiled: with compiled layers, beside full depth without.
        first_token: say apart how long the first token took.
    """

    model: eepolicy.HookedModel
    prompts: Sequence[torch.Tensor]
    max_new_tokens: int
    exactly: bool = False
    rounds: int = 2
    compiled: bool = False
    first_token: bool = False

    @cached_property
    def machine(self) -> Machine:
        """What the device can do, measured once a bench."""
        return measure_machine(self.model)

    @cached_property
    def sizes(self) -> Sizes:
        """What the model's parts read and multiply."""
        return Sizes.of(self.model)

    def run(
        self,
        ways: Sequence[Way],
        rows: int,
        progress: Callable[[Iterable[Any]], Iterator[Any]] = iter,
    ) -> list[dict[str, Any]]:
        """Time ways of decoding in batches of some rows, in turns.

        Args:
            ways: see `ways` and `ours`; the first is what the others are compared with.
            rows: of a batch.
            progress: wraps the turns.

        Returns:
            One record a way.  `ratio` is its speed against the first, turn by turn: quartiles and
            median.  `promised` is the ratio to full depth that its layer calls and head calls
            would give at what each costs on one position a row, beside the prompt's pass, out of
            which the first token comes where the policy neither looks nor exits; `harvest` is the
            measured one as a share of it; `of_limit` the least time the machine allows as a share
            of the measured one.  `ttft` are those until the first tokens, `later_seconds`
            a token behind them, where they were timed, with the speed against the first way and the
            share of the limit there.  What is not known is nan.
        """
        layers = self.model.compiled_executor() if self.compiled else None
        batches = [self.prompts[i : i + rows] for i in range(0, len(self.prompts), rows)]
        for way in ways:
            # what is made once is made now: kernels wherever a block is the first of its kind
            for batch in batches if layers and way.costs_known else batches[:1]:
                self._turn(way, list(batch))
        layer, head = call_costs(self.model, rows, layers, max(map(len, self.prompts)))
        prompt = prompt_seconds(self.model, batches, layers)
        turns = [(turn, batch) for turn in range(self.rounds) for batch in batches]
        for turn, batch in progress(turns):
            for i in range(len(ways)):
                way = ways[(i + turn) % len(ways)]
                way.turns.append(self._turn(way, list(batch)))
        return [
            self._record(way, ways[0], layer, head, prompt)
            | {"rows": rows, "kernels": layers.kernels if layers else 0}
            for way in ways
        ]

    def _turn(self, way: Way, prompts: list[torch.Tensor]) -> Turn:
        _settle(self.model)  # what a reply's end left to do is not of the next way's time
        turn, rows = way.decode(prompts), len(prompts)
        if self.first_token:
            behind = rows * (turn.tokens - 1)
            whole = rows * turn.tokens * turn.seconds
            turn.later = (whole - turn.first) / behind if behind else np.nan
        else:
            turn.first = np.nan
        return turn

    def ways(self, policies: Sequence[str], rows: int, stock: bool = True) -> list[Way]:
        """Full depth and policies.

        Args:
            policies: spec strings.
            rows: of a batch.
            stock: transformers' own `generate` as well, and its self-speculation against ours.
        """
        found = [self.ours("full")]
        if self.compiled:
            found.append(self.ours("full", "full, not compiled", compile=False))
        if stock:
            found.append(self.stock("stock generate"))
        found += [self.ours(policy) for policy in policies]
        if not stock:
            return found
        early = round(EARLY * self.model.depth)
        drafts = f"both=static@{early}"
        name = f"{drafts}, accept=exact"
        bare = eepolicy.wrap(self.model.model, self.model.layout, self.model.tokenizer)
        found.append(self.ours(drafts, name, bare, accept="exact", max_pending=AHEAD))
        if rows == 1:  # the stock one takes a row alone
            name = f"stock assistant_early_exit={early}"
            found.append(self.stock(name, assistant_early_exit=early))
        return found

    def ours(
        self,
        policy: str | eepolicy.ExitPolicy,
        name: str | None = None,
        model: eepolicy.HookedModel | None = None,
        **options: Any,
    ) -> Way:
        """A policy in our loop.

        Args:
            policy: it, or its spec string.
            name: to show; the policy's where none is given.
            model: that decodes, in place of the one at hand.
            **options: of `generate`.
        """
        model = model or self.model
        used: dict[str, Any] = {"compile": self.compiled} | options

        def decode(prompts: list[torch.Tensor]) -> Turn:
            began = time.perf_counter()
            outs = model.generate(prompts, policy, **(self._lengths | used))
            seconds = time.perf_counter() - began
            traces = [out.trace for out in outs]
            tokens = sum(map(len, traces))
            least = least_seconds(traces, [len(p) for p in prompts], self.sizes, self.machine)
            behind = tokens - len(outs)
            return Turn(
                seconds / tokens,
                tokens / len(outs),
                sum(float(t.layer_calls.sum()) for t in traces) / tokens,
                sum(float(t.readouts.sum()) for t in traces) / tokens,
                least.sum() / tokens,
                traces[0].prefill_layer_calls,
                outs[0].ttft,
                least_later=least[1:].sum() / behind if behind else np.nan,
            )

        return Way(name or str(policy), decode, used["compile"] == self.compiled)

    def stock(self, name: str, **options: Any) -> Way:
        """Transformers' own `generate`, greedy.

        Args:
            name: to show.
            **options: of it.
        """
        model = self.model.model

        def decode(prompts: list[torch.Tensor]) -> Turn:
            ids, mask = pad_left([p.to(model.device) for p in prompts], 0)
            began, first = time.perf_counter(), _First(self.model)
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([first]),
                **self._lengths,
                **options,
            )
            replies = out[:, ids.shape[1] :].tolist()
            seconds = time.perf_counter() - began
            end = model.generation_config.eos_token_id
            tokens = sum(r.index(end) + 1 if end in r else len(r) for r in replies)
            return Turn(seconds / tokens, tokens / len(replies), first=first.seconds)

        return Way(name, decode)

    @property
    def _lengths(self) -> dict[str, int]:
        lengths = {"max_new_tokens": self.max_new_tokens}
        return lengths | {"min_new_tokens": self.max_new_tokens} if self.exactly else lengths

    def _record(
        self,
        way: Way,
        baseline: Way,
        layer: float,
        head: float,
        prompt: float,
    ) -> dict[str, Any]:
        seconds = way.column("seconds")
        low, middle, high = np.percentile(baseline.column("seconds") / seconds, [25, 50, 75])
        later = way.column("later")
        calls, readouts = way.column("layer_calls").mean(), way.column("readouts").mean()
        tokens, depth = float(way.column("tokens").mean()), self.model.depth

        def cost(calls: float, readouts: float, prefilled: float) -> float:
            """Of a token.  Where prompts go along with the first one, its calls are theirs."""
            beside = prompt - (depth - prefilled) * layer
            return beside / tokens + calls * layer + readouts * head

        paid = cost(calls, readouts, way.column("prefilled").mean())
        promised = cost(depth, 1, 0) / paid if way.costs_known else np.nan
        return {
            "decoding": way.name,
            "layer_calls": calls,
            "readouts": readouts,
            "seconds": float(np.median(seconds)),
            "ratio": middle,
            "ratio_low": low,
            "ratio_high": high,
            "promised": promised,
            "harvest": middle / promised,
            "least_seconds": float(np.median(way.column("least"))),
            "of_limit": float(np.median(way.column("least") / seconds)),
            "ttft": float(np.median(way.column("first"))),
            "later_seconds": _known_median(later),
            "later_ratio": _known_median(baseline.column("later") / later),
            "later_of_limit": _known_median(way.column("least_later") / later),
            "turns": seconds.tolist(),
            "layer_seconds": layer,
            "head_seconds": head,
            "prompt_seconds": prompt,
        }


def _known_median(numbers: NDArray[np.float64]) -> float:
    """The median of those that are known; nan where none is."""
    known = numbers[~np.isnan(numbers)]
    return float(np.median(known)) if len(known) else np.nan


def usual_policies(model: eepolicy.HookedModel) -> list[str]:
    """Policies to time where none are named, at depths that the model has.

    The last one looks at three depths and exits at none, which is what looking costs.
    """
    on = "" if model.layout.has_speech else "text="
    found = [f"{on}{policy}@{round(share * model.depth)}" for policy, share in USUAL]
    looks = ",".join(str(round(share * model.depth)) for share in (0.5, 0.65, 0.8))
    return [*found, f"{on}confidence>1.0@[{looks}]"]


def prompts_of(
    model: eepolicy.HookedModel, questions: Sequence[str], tokens: int | None = None
) -> list[torch.Tensor]:
    """Questions as ids, (tokens,) each.

    Args:
        model: that is asked.
        questions: in text.
        tokens: of each prompt, which is repeated and cut from the left for it; as long as it is
            where none is given.
    """
    prompts = [model.encode(question) for question in questions]
    if tokens is None:
        return prompts
    if tokens < 1:
        raise EepolicyError(f"a prompt has one token or more; got {tokens}")
    return [p.repeat(-(-tokens // len(p)))[-tokens:] for p in prompts]


@torch.no_grad()
def call_costs(
    model: eepolicy.HookedModel,
    rows: int,
    layers: CompiledExecutor | None,
    tokens: int,
    steps: int = STEPS,
) -> tuple[float, float]:
    """Seconds of a layer call on one position a row, and of a head call, `tokens` columns in."""
    of_layers, of_heads = [], []
    first, behind = model.layout.speech if model.layout.has_speech else model.layout.text
    ids = torch.randint(first, behind, (rows, tokens + steps)).to(model.model.device)
    batch = Batch(model, [0] * rows, ids.shape[1], executor=layers)
    batch.prefill(ids[:, :tokens])
    for column in range(tokens, ids.shape[1]):
        block = batch.begin_step(ids[:, column : column + 1], list(range(rows)))
        began = time.perf_counter()
        batch.run(block, model.depth)
        _settle(model)
        of_layers.append((time.perf_counter() - began) / model.depth)
        began = time.perf_counter()
        batch.read(block.hidden[:, -1], model.depth - 1).argmax(-1)
        _settle(model)
        of_heads.append(time.perf_counter() - began)
    return float(np.median(of_layers)), float(np.median(of_heads))


@torch.no_grad()
def prompt_seconds(
    model: eepolicy.HookedModel,
    batches: Sequence[Sequence[torch.Tensor]],
    layers: CompiledExecutor | None,
    rounds: int = 5,
) -> float:
    """Seconds of the pass of a batch of prompts, on average.

    Args:
        model: that decodes.
        batches: the prompts of each, (tokens,).
        layers: compiled, in place of the model's own.
        rounds: that each batch takes the median of.
    """
    medians = []
    for prompts in batches:
        ids, mask = pad_left([p.to(model.model.device) for p in prompts], 0)
        padding = (mask == 0).sum(1).tolist()
        taken = []
        for _ in range(rounds):
            batch = Batch(model, padding, ids.shape[1], executor=layers)
            began = time.perf_counter()
            batch.prefill(ids)
            _settle(model)
            taken.append(time.perf_counter() - began)
        medians.append(float(np.median(taken)))
    return float(np.mean(medians))


class _First(StoppingCriteria):  # type: ignore[misc] # it has no types
    """Ends nothing, but notes how long it took until it was first asked, behind the first tokens.

    The stock self-speculation asks behind its first round.
    """

    def __init__(self, model: eepolicy.HookedModel) -> None:
        self.model, self.began, self.seconds = model, time.perf_counter(), np.nan

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        if np.isnan(self.seconds):
            _settle(self.model)
            self.seconds = time.perf_counter() - self.began
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _settle(model: eepolicy.HookedModel) -> None:
    """Wait until the device has done what it was told."""
    if model.model.device.type == "cuda":
        torch.cuda.synchronize(model.model.device)


#: a figure of a record: as it is shown
SHOWN: dict[str, Callable[[dict[str, Any]], str]] = {
    "layer_calls": lambda r: f"{r['layer_calls']:.2f}",
    "readouts": lambda r: f"{r['readouts']:.2f}",
    "seconds": lambda r: f"{1e3 * r['seconds']:.2f}",
    "ratio": lambda r: f"{r['ratio']:.2f} [{r['ratio_low']:.2f}, {r['ratio_high']:.2f}]",
    "promised": lambda r: f"{r['promised']:.2f}",
    "harvest": lambda r: f"{r['harvest']:.2f}",
    "least_seconds": lambda r: f"{1e3 * r['least_seconds']:.2f}",
    "of_limit": lambda r: f"{100 * r['of_limit']:.0f} %",
    "ttft": lambda r: f"{1e3 * r['ttft']:.1f}",
    "later_seconds": lambda r: f"{1e3 * r['later_seconds']:.2f}",
    "later_ratio": lambda r: f"{r['later_ratio']:.2f}",
    "later_of_limit": lambda r: f"{100 * r['later_of_limit']:.0f} %",
}
#: the figures of `eepolicy bench`: their headings
HEADINGS = {
    "layer_calls": "layer calls a token",
    "seconds": "ms a token",
    "ratio": "speed against `full`, median [quartiles]",
    "promised": "promised",
    "harvest": "harvest",
    "least_seconds": "limit, ms",
    "of_limit": "share of it",
    "ttft": "first token, ms",
    "later_seconds": "ms a token behind it",
    "later_ratio": "speed behind it",
    "later_of_limit": "share of the limit behind it",
}


def headings(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Those of the figures that any record has."""
    return {f: h for f, h in HEADINGS.items() if not all(np.isnan(r[f]) for r in records)}


def cells(record: dict[str, Any], figures: Iterable[str]) -> list[str]:
    """A way's name and its figures as they are shown, a dash for what is not known."""
    shown = [SHOWN[figure](record) for figure in figures]
    return [record["decoding"], *("–" if "nan" in cell else cell for cell in shown)]


def pipes(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    headings = list(headings)
    lines = (headings, ["---"] * len(headings), *rows)
    return [f"| {' | '.join(line)} |" for line in lines]


def markdown(records: Sequence[dict[str, Any]]) -> list[str]:
    """The table of one batch size, with what a call costs in front of it."""
    first = records[0]
    layer, head, prompt = (1e3 * first[f"{n}_seconds"] for n in ("layer", "head", "prompt"))
    costs = f"{layer:.3f} ms, a head call {head:.3f}, the pass of a batch's prompts {prompt:.1f}"
    made = f"  {first['kernels']} kernels so far." if first["kernels"] else ""
    found = headings(records)
    rows = [[f"`{name}`", *more] for name, *more in (cells(r, found) for r in records)]
    return [
        f"A layer call costs {costs} ms.{made}",
        "",
        *pipes(["decoding", *found.values()], rows),
    ]
