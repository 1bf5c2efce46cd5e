"""What a token costs: kernels of layers, catch-ups and readouts, and the rest.

    python -m benchmarks.token_costs [--policies full static@6] [--rows 1 8] [--write FILE.md]

Compiled, on a CPU.  The parts are timed inside the same replies as the whole.  The first step of a
batch, which runs the prompts, is left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import eepolicy
from eepolicy.analysis.tables import markdown_table
from eepolicy.compile.executor import CompiledExecutor
from eepolicy.compile.kernel_cache import DirectCall
from eepolicy.compile.native import NativeLibrary
from eepolicy.decode.sampling import Sampler
from eepolicy.decode.session import DecodeSession
from eepolicy.model.backbone import Backbone

QUESTION = "What is the capital of France?"
POLICIES = ("full", "static@10", "static@8", "static@6", "static@4")
TOKENS = 200
#: columns of the blocks whose full pass is timed, after so many columns
BLOCKS, CONTEXT = (1, 2, 4, 6, 8, 12, 16), 200
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
ONE, SEVERAL, READ, WALL, REST = "one position", "catch-ups", "readout", "wall", "rest"
ROWS, CALLS = "rows", "layer calls"
HEADINGS = (ROWS, CALLS, WALL, ONE, SEVERAL, READ, REST)


class Clock:
    """Seconds by part of a step, since the first step of a batch.

    Args:
        now: clock, in seconds.

    Attributes:
        seconds: seconds by part.
        steps: number of steps.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = 0
        self._part = READ

    def timed(self, part: str | None, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time counts for a part; None for the part of the running kernel."""

        def run(*args: Any, **kwargs: Any) -> Any:
            began = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part or self._part] += self.now() - began

        return run

    def step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`DecodeSession.step`, timed from the second step on."""

        def run(session: DecodeSession) -> None:
            before, began = self.seconds.copy(), self.now()
            first = not session.ttft
            function(session)
            if first:
                self.seconds = before
            else:
                self.seconds[WALL] += self.now() - began
                self.steps += 1

        return run

    def kernels(self, function: Callable[..., Any], layers: bool) -> Callable[..., Any]:
        """A function that runs kernels, whose part depends on the hidden states."""

        def run(executor: Any, *args: Any, **kwargs: Any) -> Any:
            hidden = next(a for a in args if isinstance(a, Tensor))
            self._part = READ if not layers else ONE if hidden.shape[1] == 1 else SEVERAL
            return function(executor, *args, **kwargs)

        return run


@contextmanager
def measured(now: Callable[[], float]) -> Iterator[Clock]:
    """Time the parts of each step of the replies inside."""
    clock = Clock(now)
    with ExitStack() as stack:
        for owner, name, wrapped in (
            (NativeLibrary, "run", clock.timed(None, NativeLibrary.run)),
            (DirectCall, "run_kernel", clock.timed(None, DirectCall.run_kernel)),
            (CompiledExecutor, "run_layers", clock.kernels(CompiledExecutor.run_layers, True)),
            (CompiledExecutor, "logits", clock.kernels(CompiledExecutor.logits, False)),
            (Backbone, "embed", clock.timed(READ, Backbone.embed)),
            (Sampler, "process", clock.timed(READ, Sampler.process)),
            (Sampler, "next_tokens", clock.timed(READ, Sampler.next_tokens)),
            (DecodeSession, "step", clock.step(DecodeSession.step)),
        ):
            stack.enter_context(patch.object(owner, name, wrapped))
        yield clock


def measure_policy(
    model: eepolicy.HookedModel, policy: str, rows: int, now: Callable[[], float]
) -> dict[str, float]:
    """Milliseconds a step by part, of one batch.

    Returns:
        By part, and layer calls a token after the first, and mean number of rows of a step.
    """
    questions = [QUESTION] if rows == 1 else [q["question"] for q in eepolicy.held_out()[:rows]]
    with measured(now) as clock:
        outs = model.generate(questions, policy, max_new_tokens=TOKENS, compile=True)
    parts = {part: 1e3 * seconds / clock.steps for part, seconds in clock.seconds.items()}
    calls = [float(count) for out in outs for count in out.trace.layer_calls[1:]]
    return parts | {CALLS: statistics.mean(calls), ROWS: len(calls) / clock.steps}


def measure_blocks(
    model: eepolicy.HookedModel, rounds: int, now: Callable[[], float]
) -> dict[int, float]:
    """Milliseconds of a pass of a block through all layers, by its number of columns."""
    executor = CompiledExecutor(model)
    executor.check()
    capacity = CONTEXT + max(BLOCKS)
    cache = executor.open_cache(1, capacity)
    seconds: dict[int, list[float]] = {width: [] for width in BLOCKS}
    rotations = model.rotations(capacity)

    def run(start: int, width: int) -> float:
        own = {
            kind: tuple(part[:, start : start + width] for part in rotation)
            for kind, rotation in rotations.items()
        }
        masks = model.block_masks(width, start)
        hidden = torch.randn(1, width, model.width)
        cache.set_slots(slice(0, 1), start, start + width)
        began = now()
        executor.run_layers(0, model.depth, hidden, own, masks, cache)
        return now() - began

    with torch.no_grad():
        run(0, CONTEXT)
        for _ in range(rounds * 10):
            for width in BLOCKS:
                seconds[width].append(run(CONTEXT, width))
    return {width: 1e3 * statistics.median(times[3:]) for width, times in seconds.items()}


def table(
    model: eepolicy.HookedModel,
    policies: Sequence[str],
    rows: int,
    rounds: int,
    now: Callable[[], float],
) -> str:
    """Measure all policies, interleaved."""
    for policy in policies:
        measure_policy(model, policy, rows, now)
    runs: dict[str, list[dict[str, float]]] = {policy: [] for policy in policies}
    for _ in range(rounds):
        for policy in policies:
            runs[policy].append(measure_policy(model, policy, rows, now))
    lines = []
    for policy, batches in runs.items():
        for parts in batches:
            parts[REST] = parts[WALL] - sum(parts.get(part, 0.0) for part in (ONE, SEVERAL, READ))
        median = {
            part: statistics.median(parts.get(part, 0.0) for parts in batches) for part in HEADINGS
        }
        lines.append([f"`{policy}`", *(f"{number:.2f}" for number in median.values())])
    return markdown_table(["", *HEADINGS], lines)


def block_table(model: eepolicy.HookedModel, rounds: int, now: Callable[[], float]) -> str:
    """Measure blocks of several columns."""
    blocks = measure_blocks(model, rounds, now)
    return markdown_table(
        ["columns", "ms", "over one column"],
        [
            [str(width), f"{ms:.2f}", f"{ms / blocks[min(BLOCKS)]:.2f}"]
            for width, ms in blocks.items()
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8], help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=5, help="batches of each policy")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: where other processes take turns"
    )
    parser.add_argument("--write", type=Path, help="write the page to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, now = eepolicy.load("pocket"), CLOCKS[args.clock]
    page = [
        "# What a token costs",
        "",
        f"The pocket model, compiled, {args.threads} thread(s), torch {torch.__version__}. Medians "
        f"of {args.rounds} batches of replies of up to {TOKENS} tokens each, interleaved; the "
        "first step, which runs the prompts, is left out.",
        "",
        f"    python -m benchmarks.token_costs --policies {' '.join(args.policies)} --rows "
        f"{' '.join(map(str, args.rows))} --rounds {args.rounds} --threads {args.threads} --clock "
        f"{args.clock}",
        "",
        "Milliseconds a step. A step gives one token to each row that has not ended. *Rows*: mean "
        "number of such rows. *Layer calls*: for each token. *One position*: layers that run one "
        "column of some rows. *Catch-ups*: layers that run several columns. *Readout*: embedding, "
        "exit heads, output embedding, sampling. *Rest*: Python around all these.",
    ]
    for rows in args.rows:
        title = "One row" if rows == 1 else f"{rows} rows"
        page += ["", f"## {title}", "", table(model, args.policies, rows, args.rounds, now)]
    page += [
        "",
        "## Several columns",
        "",
        f"A pass of a block through all layers, one row, after {CONTEXT} columns.",
        "",
        block_table(model, args.rounds, now),
    ]
    print("\n".join(page))
    if args.write:
        args.write.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
