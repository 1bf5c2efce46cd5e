"""probe(): one teacher-forced pass, every layer read out, the logits dropped as soon as used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eepolicy.compile.executor import CompiledExecutor
from eepolicy.compile.onednn import wide_products
from eepolicy.decode.batch import Batch
from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.heads.fingerprint import digest, fingerprint
from eepolicy.heads.fitted import FittedHead
from eepolicy.hooked import HookedModel
from eepolicy.probing.documents import LABELS, Document, Inputs, documents
from eepolicy.probing.result import ProbeResult
from eepolicy.probing.statistics import (
    AGAINST_LAST,
    OF_STATES,
    STATISTICS,
    WHOLE,
    Last,
    Run,
    compare_states,
    measure,
)
from eepolicy.probing.store import Columns, Folder, Memory

#: tokens that go through the layers together
BLOCK = 256
#: logits that are held at once, bytes; of each kind, and there are up to three.  An array of more
#: than 32 MB is given back to the system, and its pages are faulted in anew at each depth: of 192
#: rows a product takes 1.15 times as long, per row, as of 128
LOGITS = 2**25
#: logits that statistics are taken of at once on a CPU, bytes: small enough for its caches
CACHED = 2**21

Depths = Sequence[int] | Literal["all"] | None


@torch.no_grad()
def probe(
    model: HookedModel,
    inputs: Inputs,
    *,
    depths: Depths = None,
    heads: ExitHead | None = None,
    statistics: Iterable[str] | None = None,
    top_k: int = 0,
    hidden_states: Depths = None,
    distributions: Depths = None,
    dtype: torch.dtype = torch.float32,
    attention_mask: Tensor | None = None,
    save: str | Path | None = None,
    compile: bool = False,
    progress: Callable[[Iterator[Document]], Iterable[Document]] = iter,
) -> ProbeResult:
    """Read layers out, at every token of some documents, with the documents as history.

    Memory holds the keys and values of one document, a few logits, and the statistics; with `save`
    these go to disk, and a run that was stopped goes on where it was.

    Args:
        model: whose layers are probed.
        inputs: text, ids (tokens,) or (rows, tokens), what `generate` gave, a `Document`, or any
            iterable of these.  Of what was generated, the reply is probed: a readout for each of
            its tokens, where it was predicted; of anything else every token.
        depths: to read out; all of them where none are given, or all at which the heads were
            fitted.  Full depth is always among them.
        heads: the exit heads; the model's own where none are given, `model.lens` for the plain one.
        statistics: names of `STATISTICS`; all of them where none are given.
        top_k: keep so many of the likeliest tokens.
        hidden_states: depths whose hidden states are kept.
        distributions: depths whose log-probabilities are kept, over the whole vocabulary.
        dtype: in which hidden states and distributions are kept: float32 or float16, whose highest
            number is 65,504.
        attention_mask: (rows, tokens) of ids that are padded, 0 where they are.
        save: a folder to write to, which is then mapped into memory.
        compile: run the layers and take the statistics by code that `torch.compile` makes of them,
            which takes seconds at the first call; the numbers are the same but for rounding.
        progress: wraps the documents, to show them.

    Returns:
        Labelled statistics, (depths, tokens).

    Raises:
        EepolicyError: inputs, depths or names that do not fit, nothing to probe, or a folder that
            holds something else.

    Examples:
        >>> model = eepolicy.load("pocket")
        >>> out = model.generate("What color is snow?")
        >>> result = eepolicy.probe(model, out, statistics=["entropy", "top1"])
        >>> result.entropy.shape == (20, len(out.tokens))
        True
    """
    plan = Plan.of(model, depths, heads, statistics, top_k, hidden_states, distributions, dtype)
    store = Memory() if save is None else Folder(save, plan.identity(model))
    layers = model._compiled() if compile else None
    number = -1
    for number, document in enumerate(progress(documents(model, inputs, attention_mask))):
        if store.skip(document.tokens.cpu().numpy(), document.prompt):
            continue
        columns = _read_out(model, document, plan, layers)
        labels = document.labels(model.layout, model.depth)
        columns |= dict(zip(LABELS, labels, strict=True))
        columns["document"] = np.full(labels.shape[1], number)
        store.add(columns)
    if number < 0:
        raise EepolicyError("there is nothing to probe")
    store.finish()
    return plan.result(model, store.columns())


@dataclass(frozen=True)
class Plan:
    """What is read out and kept; see `probe`."""

    heads: ExitHead
    depths: tuple[int, ...]
    statistics: frozenset[str]
    top_k: int
    hidden_states: tuple[int, ...]
    distributions: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        model: HookedModel,
        depths: Depths = None,
        heads: ExitHead | None = None,
        statistics: Iterable[str] | None = None,
        top_k: int = 0,
        hidden_states: Depths = None,
        distributions: Depths = None,
        dtype: torch.dtype = torch.float32,
    ) -> Plan:
        """What was asked for, checked.

        Raises:
            EepolicyError: it does not fit the model.
        """
        asked = (
            statistics
            if isinstance(statistics, str)
            else tuple(STATISTICS if statistics is None else statistics)
        )
        if dtype not in (torch.float16, torch.float32, torch.float64):
            raise EepolicyError(f"what is kept is float16, float32 or float64; got {dtype}")
        if isinstance(asked, str) or not {*asked} <= {*STATISTICS}:
            raise EepolicyError(
                f"statistics are a list of some of {', '.join(STATISTICS)}; got {asked!r}"
            )
        if not 0 <= top_k <= model.model.config.vocab_size:
            raise EepolicyError(
                f"top_k is 0 to the vocabulary of {model.model.config.vocab_size}; got {top_k}"
            )
        kept, reading = _depths(distributions, model), heads or model.heads
        if depths is None:
            depths = reading.depths if isinstance(reading, FittedHead) else "all"
        read = {*_depths(depths, model), *kept, model.depth}
        if isinstance(reading, FittedHead):
            for depth in sorted(read - {model.depth}):
                reading.at(depth)
        return cls(
            reading,
            tuple(sorted(read)),
            frozenset(asked),
            top_k,
            _depths(hidden_states, model),
            kept,
            dtype,
        )

    def states(self, full_depth: int) -> set[int]:
        """Depths whose hidden states are looked at, 0 being the embedding."""
        looked = {*self.depths, *self.hidden_states, full_depth}
        if self.statistics & {"cosine_previous", "norm_previous"}:
            looked |= {depth - 1 for depth in self.depths}
        return looked

    def identity(self, model: HookedModel) -> dict[str, Any]:
        """What the readouts depend on, as JSON."""
        return {
            "model": fingerprint(model.model) | {"dtype": str(model.model.dtype)},
            "heads": digest(self.heads),
            "depths": self.depths,
            "statistics": sorted(self.statistics),
            "top_k": self.top_k,
            "hidden_states": self.hidden_states,
            "distributions": self.distributions,
            "dtype": str(self.dtype),
        }

    def result(self, model: HookedModel, columns: Columns) -> ProbeResult:
        """The columns as a result."""
        return ProbeResult(
            np.array(self.depths),
            columns,
            model.depth,
            model.model.config.vocab_size,
            self.hidden_states,
            self.distributions,
            model.tokenizer,
        )


def _depths(asked: Depths, model: HookedModel) -> tuple[int, ...]:
    """Depths that were asked for, rising.

    Raises:
        EepolicyError: the model does not have them.
    """
    if asked is None:
        return ()
    if asked == "all":
        return tuple(range(1, model.depth + 1))
    if isinstance(asked, str):
        raise EepolicyError(f"depths are numbers, or 'all'; got {asked!r}")
    found = tuple(sorted({int(d) for d in asked}))
    if any(not 1 <= d <= model.depth for d in found):
        raise EepolicyError(f"the model has depths 1 to {model.depth}; got {list(asked)}")
    return found


def _read_out(
    model: HookedModel, document: Document, plan: Plan, layers: CompiledExecutor | None
) -> Columns:
    """The readouts of one document, (readouts, ...) each."""
    start, end = document.span
    device = model.model.device
    ids = document.tokens.to(device)
    following = torch.cat([ids[1:], ids.new_tensor([-1])])
    batch = Batch(model, [0], end, layers=layers)
    run = layers.run if layers else None
    parts: list[dict[str, Tensor]] = []
    looked = plan.states(model.depth)
    for first in range(0, end, BLOCK):
        past = min(first + BLOCK, end)
        block = batch.enter_block(ids[None, first:past])
        skipped = max(start - first, 0)  # positions of the prompt need no readout
        states: dict[int, Tensor] = {0: block.hidden[0, skipped:]}
        for depth in range(1, model.depth + 1):
            batch.run(block, depth)
            if depth in looked:
                states[depth] = block.hidden[0, skipped:]
        if past > start:
            parts.append(read_states(model, states, following[first + skipped : past], plan, run))
    return {
        name: torch.cat([part[name] for part in parts]).numpy()
        for name in (parts[0] if parts else ())
    }


def read_states(
    model: HookedModel,
    states: dict[int, Tensor],
    following: Tensor,
    plan: Plan,
    run: Run | None = None,
) -> dict[str, Tensor]:
    """Statistics of hidden states, by name, on the host.

    Args:
        model: whose heads read them.
        states: by depth, (readouts, width) each; without full depth, what compares with it is nan.
        following: (readouts,) ids that follow, -1 where nothing does.
        plan: what is read out and kept.
        run: compiles what is done to logits, see `measure`.

    Returns:
        (readouts, depths) each, or (readouts, kept depths, ...).
    """
    rows, full = len(following), model.depth
    vocabulary = model.model.config.vocab_size
    wide = torch.promote_types(model.model.dtype, torch.float32)
    found: dict[str, Tensor] = {}
    for name in plan.statistics:
        kind = torch.int64 if name in WHOLE else torch.float32
        found[name] = torch.full(
            (rows, len(plan.depths)), -1 if name in WHOLE else torch.nan, dtype=kind
        )
    if plan.top_k:
        shape = (rows, len(plan.depths), plan.top_k)
        found["top_tokens"] = torch.full(shape, -1)
        found["top_probabilities"] = torch.full(shape, torch.nan)
    if plan.distributions:
        shape = (rows, len(plan.distributions), vocabulary)
        found["distributions"] = torch.full(shape, torch.nan, dtype=plan.dtype)
    if plan.hidden_states:
        none = torch.full_like(next(iter(states.values())), torch.nan)
        kept = [states.get(d, none).to("cpu", plan.dtype) for d in plan.hidden_states]
        found["hidden_states"] = torch.stack(kept, 1)
    for place, depth in enumerate(plan.depths):
        if depth in states and plan.statistics & {*OF_STATES}:
            others_of = (("last", states.get(full)), ("previous", states.get(depth - 1)))
            for name, others in others_of:
                pair = compare_states(states[depth], others)
                for statistic, values in zip((f"cosine_{name}", f"norm_{name}"), pair, strict=True):
                    if statistic in plan.statistics:
                        found[statistic][:, place] = values
    if not (plan.statistics - {*OF_STATES} or plan.top_k or plan.distributions):
        return found
    parts = -(-rows // max(1, LOGITS // (4 * vocabulary)))
    chunk = -(-rows // parts)  # of even size: a small rest would use the processor badly
    for first in range(0, rows, chunk):
        part = slice(first, min(first + chunk, rows))
        last = None
        for depth in sorted(plan.depths, reverse=True):  # the last layer first
            if depth not in states:
                continue
            head = model.lens if depth == full else plan.heads
            with wide_products():
                logits = head.logits(states[depth][part], depth).to(wide)
            if logits.shape[-1] != vocabulary:
                raise EepolicyError(
                    f"{head!r} reads out {logits.shape[-1]} of the model's {vocabulary} tokens; "
                    "statistics are over all of them"
                )
            if depth == full and _compares(plan):
                last = Last.of(logits, plan.statistics)
            place = plan.depths.index(depth)
            if plan.distributions and depth in plan.distributions:
                logs = logits.log_softmax(-1).to(plan.dtype)
                found["distributions"][part, plan.distributions.index(depth)] = logs.cpu()
            if plan.top_k:
                best = logits.topk(plan.top_k, -1)
                shares = (best.values - logits.logsumexp(-1, keepdim=True)).exp()
                found["top_tokens"][part, place] = best.indices.cpu()
                found["top_probabilities"][part, place] = shares.to("cpu", torch.float32)
            for some in _slices(logits):
                at = slice(first + some.start, first + some.stop)
                against = last[some] if last else None
                row = measure(logits[some], against, following[at], plan.statistics, run)
                for name, values in row.items():
                    found[name][at, place] = values.to("cpu", found[name].dtype)
            del logits  # or the next depth's would lie beside them, in memory that is not cached
    return found


def _compares(plan: Plan) -> bool:
    return bool(plan.statistics & {*AGAINST_LAST})


def _slices(logits: Tensor) -> Iterator[slice]:
    """Rows whose statistics are taken together."""
    rows = len(logits)
    step = max(1, CACHED // (4 * logits.shape[1])) if logits.device.type == "cpu" else rows
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
