"""Times decoding methods in interleaved trials of one run, against the roofline of the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import eepolicy
from eepolicy.analysis.timing.call_costs import CallCosts, call_costs, prefill_seconds
from eepolicy.analysis.timing.contenders import (
    BenchConfig,
    Contender,
    Trial,
    policy_contender,
    self_speculation,
    stock_contender,
    stock_self_speculation,
    synchronize,
)
from eepolicy.analysis.timing.roofline import Roofline


@dataclass
class Bench:
    """Times decoding on one model.

    Args:
        model: model that decodes.
        prompts: ids of each prompt, (tokens,).
        config: how to decode.
    """

    model: eepolicy.HookedModel
    prompts: Sequence[torch.Tensor]
    config: BenchConfig

    @cached_property
    def roofline(self) -> Roofline:
        """The roofline of the device, measured once for each bench."""
        return Roofline.measure(self.model)

    def policy(
        self, policy: str | eepolicy.ExitPolicy, name: str | None = None, **options: Any
    ) -> Contender:
        """A policy in our decoding loop; see `policy_contender`."""
        return policy_contender(self.model, policy, self.config, name, **options)

    def stock(self, name: str, **options: Any) -> Contender:
        """Transformers' own `generate`; see `stock_contender`."""
        return stock_contender(self.model, name, self.config, **options)

    def contenders(self, policies: Sequence[str], rows: int, stock: bool = True) -> list[Contender]:
        """Full depth first, then the policies.

        Args:
            policies: spec strings.
            rows: number of rows in a batch.
            stock: time transformers' own `generate` as well, and its self-speculation next to ours.
        """
        contenders = [self.policy("full")]
        if self.config.compiled:
            contenders.append(self.policy("full", "full, not compiled", compile=False))
        if stock:
            contenders.append(self.stock("stock generate"))
        contenders += [self.policy(policy) for policy in policies]
        if stock:
            contenders.append(self_speculation(self.model, self.config))
        if stock and rows == 1:
            contenders.append(stock_self_speculation(self.model, self.config))
        return contenders

    def run(
        self,
        contenders: Sequence[Contender],
        rows: int,
        progress: Callable[[Iterable[Any]], Iterator[Any]] = iter,
    ) -> list[dict[str, Any]]:
        """Time contenders in batches of some rows, in interleaved trials.

        Args:
            contenders: decoding methods; the others are compared with the first.
            rows: number of rows in a batch.
            progress: wraps (round, batch), to show progress.

        Returns:
            One record for each contender; nan for what is unknown.  `speedup` is its speed over the
            first contender's, trial by trial: median, and quartiles `speedup_low` and
            `speedup_high`.  `ideal_speedup` is the speed-up over full depth if every layer call and
            head call cost what it costs on one position a row, plus the prefill; the prefill gives
            the first token if the policy runs it at full depth.  `efficiency` is `speedup` over
            `ideal_speedup`.  `roofline_share` is the roofline over the measured time.  `ttft` and
            `tpot` are there if the config asks for them, with `tpot_speedup` and
            `tpot_roofline_share`.
        """
        executor = self.model.compiled_executor() if self.config.compiled else None
        batches = [self.prompts[i : i + rows] for i in range(0, len(self.prompts), rows)]
        for contender in contenders:
            # warm up: compile every kernel before the first trial
            for batch in batches if executor and contender.costs_known else batches[:1]:
                self._trial(contender, list(batch))
        layer, head = call_costs(self.model, rows, executor, max(map(len, self.prompts)))
        costs = CallCosts(layer, head, prefill_seconds(self.model, batches, executor))
        work = [(number, batch) for number in range(self.config.rounds) for batch in batches]
        for number, batch in progress(work):
            for i in range(len(contenders)):
                contender = contenders[(i + number) % len(contenders)]
                contender.trials.append(self._trial(contender, list(batch)))
        kernels = executor.kernels if executor else 0
        return [
            self._record(contender, contenders[0], costs) | {"rows": rows, "kernels": kernels}
            for contender in contenders
        ]

    def _trial(self, contender: Contender, prompts: list[torch.Tensor]) -> Trial:
        synchronize(self.model.device)  # unfinished work must not count for the next trial
        trial, rows = contender.decode(prompts), len(prompts)
        remaining = rows * (trial.tokens - 1)
        if trial.traces:
            seconds = self.roofline.step_seconds(trial.traces, [len(p) for p in prompts])
            trial = replace(
                trial,
                roofline_seconds=seconds.sum() / (rows * trial.tokens),
                roofline_tpot=seconds[1:].sum() / remaining if remaining else np.nan,
                traces=(),
            )
        if not self.config.time_first_token:
            return replace(trial, ttft=np.nan)
        total = rows * trial.tokens * trial.seconds
        return replace(trial, tpot=(total - trial.ttft) / remaining if remaining else np.nan)

    def _record(
        self, contender: Contender, baseline: Contender, costs: CallCosts
    ) -> dict[str, Any]:
        seconds, tpot = contender.column("seconds"), contender.column("tpot")
        low, middle, high = np.percentile(baseline.column("seconds") / seconds, [25, 50, 75])
        calls, readouts = (
            contender.column("layer_calls").mean(),
            contender.column("readouts").mean(),
        )
        tokens, depth = float(contender.column("tokens").mean()), self.model.depth
        ideal = np.nan
        if contender.costs_known:
            prefilled = contender.column("prefill_layer_calls").mean()
            own = costs.token_seconds(calls, readouts, prefilled, tokens, depth)
            ideal = costs.token_seconds(depth, 1, 0, tokens, depth) / own
        return {
            "decoding": contender.name,
            "layer_calls": calls,
            "readouts": readouts,
            "seconds": float(np.median(seconds)),
            "speedup": middle,
            "speedup_low": low,
            "speedup_high": high,
            "ideal_speedup": ideal,
            "efficiency": middle / ideal,
            "roofline_seconds": float(np.median(contender.column("roofline_seconds"))),
            "roofline_share": float(np.median(contender.column("roofline_seconds") / seconds)),
            "ttft": float(np.median(contender.column("ttft"))),
            "tpot": _known_median(tpot),
            "tpot_speedup": _known_median(baseline.column("tpot") / tpot),
            "tpot_roofline_share": _known_median(contender.column("roofline_tpot") / tpot),
            "trials": seconds.tolist(),
            "layer_seconds": costs.layer,
            "head_seconds": costs.head,
            "prefill_seconds": costs.prefill,
        }


def _known_median(values: NDArray[np.float64]) -> float:
    """The median without nan; nan if there is nothing else."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else np.nan
