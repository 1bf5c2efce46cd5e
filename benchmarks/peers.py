"""Decoding beside economize: the same model, prompts, threads and layers, in turns in one run.

    pip install economize==0.3.2
    python -m benchmarks.peers FOLDER/SmolLM2-135M-Instruct [--batch 1] [--memory] [--write FILE.md]

Each table holds one kind of work: its decoder, ours, and ours compiled.  economize reads the first
token out of the prompt's full-depth pass, so our policies run the first position at full depth too.
With `--memory` each way then decodes the prompts once more in a process of its own, which says the
most memory that it takes beside the model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import eepolicy
from benchmarks import processes
from eepolicy.analysis.timing.roofline import Machine
from eepolicy.analysis.timing.runner import Bench, Turn, Way, cells, pipes, prompts_of
from eepolicy.policies import ExitPolicy, Readout, Step

PROMPT = 40  # tokens
EXIT = 0.7  # of the depth
MEMORY = (
    " Memory is the most that a process of a way's own held while it decoded all prompts once, "
    "compiling included, less what it held with the model loaded."
)


#: prompts, (tokens,) each, to the tokens of their replies
Reply = Callable[[list[Tensor]], list[list[int]]]


class Work(NamedTuple):
    """Their decoder, our policy, our options."""

    theirs: Reply
    policy: str | ExitPolicy
    options: dict[str, Any] = {}  # noqa: RUF012 - a named tuple's default, never written to


@dataclass(frozen=True)
class First(ExitPolicy):
    """The first position of a reply at full depth, then another policy."""

    inner: ExitPolicy
    on: str = "text"

    def depths(self, step: Step) -> Tensor:
        return torch.where(step.position == 0, step.full_depth, self.inner.depths(step))

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        return () if bool((step.position == 0).all()) else self.inner.candidate_depths(step)

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        return self.inner.should_exit(step, depth, readout)


@dataclass(frozen=True)
class Falling(ExitPolicy):
    """A depth that falls from full to a least one over some tokens, as SkipDecode's budget does."""

    least: int
    over: int
    on: str = "text"

    def depths(self, step: Step) -> Tensor:
        share = ((step.position - 1) / self.over).clamp(0, 1)
        return (step.full_depth - share * (step.full_depth - self.least)).round().long()


def theirs(
    model: eepolicy.HookedModel, tokens: int, *techniques: Any, decoding: Any = None
) -> Reply:
    """Their leanest call: without processors and ends."""
    import economize

    applied = economize.apply(model.model, *techniques, decoding=decoding)
    return lambda prompts: [r.tokens.tolist() for r in applied.decode_batch(prompts, tokens)]


def timed(reply: Reply) -> Way:
    """Their decoder, beside ours."""

    def decode(prompts: list[Tensor]) -> Turn:
        began = time.perf_counter()
        replies = reply(prompts)
        seconds = time.perf_counter() - began
        tokens = sum(map(len, replies))
        return Turn(seconds / tokens, tokens / len(replies))

    return Way("economize", decode)


def works(model: eepolicy.HookedModel, tokens: int) -> dict[str, Work]:
    """The same work in both libraries, by what it is.

    Args:
        model: of text alone.
        tokens: of a reply.
    """
    from economize import DecodeConfig
    from economize.techniques.dynamic_depth import CalmConfig, SkipDecodeConfig
    from economize.techniques.early_exit import EarlyExitConfig

    full, depth = model.depth, round(EXIT * model.depth)
    third, late, half = round(full / 3), round(0.8 * full), full // 2
    static = SkipDecodeConfig(max_layers=depth, min_layers=depth, skip="top")
    fall = SkipDecodeConfig(max_layers=full, min_layers=third, warmup=0, decay=tokens, skip="top")
    softmax = CalmConfig(confidence="softmax", threshold=0.5, min_layer=late)
    state = CalmConfig(confidence="state", threshold=0.98, min_layer=half)
    early = EarlyExitConfig(exit_layer=depth, head="shared")

    def other(*techniques: Any) -> Reply:
        return theirs(model, tokens, *techniques)

    def cycle(length: int, lossless: bool) -> Reply:
        config = DecodeConfig(cycle_length=length, lossless=lossless)
        return theirs(model, tokens, early, decoding=config)

    def first(spec: str) -> ExitPolicy:
        return First(eepolicy.parse_policy(spec))

    filled = {"fill": "propagate"}
    return {
        "every layer": Work(other(), "full"),
        f"{depth} layers (SkipDecode of one depth)": Work(
            other(static), first(f"text=static@{depth}")
        ),
        f"from {full} layers to {third} (SkipDecode)": Work(
            other(fall), First(Falling(third, tokens))
        ),
        f"margin > 0.5 from depth {late} on (CALM)": Work(
            other(softmax), first(f"text=margin>0.5@{late}"), filled
        ),
        f"saturation > 0.98 from depth {half} on (CALM)": Work(
            other(state), first(f"text=saturation>0.98@{half - 1}"), filled
        ),
        f"full depth and {depth} in turn": Work(cycle(2, False), f"text=spark:even@{depth}"),
        f"full depth and two of {depth}": Work(cycle(3, False), f"text=spark:triple@{depth}"),
        f"lossless, four drafts of depth {depth}": Work(
            cycle(5, True), f"both=static@{depth}", {"accept": "exact", "max_pending": 4}
        ),
    }


def ways_of(bench: Bench, work: Work) -> list[Way]:
    """One kind of work in theirs, ours, and ours compiled."""
    other, policy, options = work
    return [
        timed(other),
        bench.ours(policy, "eepolicy", **options),
        bench.ours(policy, "eepolicy, compiled", compile=True, **options),
    ]


def bench_of(args: argparse.Namespace) -> Bench:
    """The model and its prompts."""
    loaded = eepolicy.load(args.model)
    model = eepolicy.wrap(loaded.model, loaded.layout, loaded.tokenizer)
    questions = [q["question"] for q in eepolicy.held_out("test")[: args.prompts]]
    return Bench(model, prompts_of(model, questions, PROMPT), args.tokens, True, args.rounds)


def worker(args: argparse.Namespace) -> None:
    """Decode the prompts in one way whenever it is asked for; the way is `work,index`."""
    bench = bench_of(args)
    bench.machine = Machine(1.0, 1.0)  # measuring it would take memory of its own
    work, index = map(int, args.way.split(","))
    way = ways_of(bench, [*works(bench.model, args.tokens).values()][work])[index]
    with torch.no_grad():
        bench.model.model(bench.prompts[0][None])  # the weights are in memory now

    def decode() -> None:
        for start in range(0, len(bench.prompts), args.batch):
            way.decode(list(bench.prompts[start : start + args.batch]))

    processes.serve(decode)


def memory(args: argparse.Namespace, work: int, index: int) -> float:
    """Megabytes that a way takes beside the model, in a process of its own.

    Args:
        args: of the command line.
        work: its place among the kinds of work.
        index: the way's place among those of the work.
    """
    names = ("tokens", "prompts", "batch", "threads")
    options = [o for n in names for o in (f"--{n}", getattr(args, n))]
    process = processes.start("benchmarks.peers", args.model, "--way", f"{work},{index}", *options)
    found = processes.turn(process)["megabytes"]
    processes.stop(process)
    return found


def table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Ways of one kind of work, against economize; `memory` is shown where it was measured."""
    rows = [cells(r, ("layer_calls", "seconds", "ratio")) for r in records]
    headings = ["", "layer calls a token", "ms a token", "speed, median [quartiles]"]
    if all("memory" in r for r in records):
        headings.append("memory, MB")
        rows = [[*row, f"{r['memory']:.0f}"] for row, r in zip(rows, records, strict=True)]
    return pipes(headings, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a text model")
    parser.add_argument("--tokens", type=int, default=32, help="of a reply")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="of each way, measured apart")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="write the page here as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.way:
        worker(args)
        return
    bench = bench_of(args)
    model = bench.model
    name = Path(args.model).name
    page = [
        "# Decoding beside economize",
        "",
        f"`{name}`, {model.depth} layers, {args.prompts} prompts of {PROMPT} tokens, {args.tokens} "
        f"tokens a reply, batch {args.batch}, {args.rounds} rounds, {args.threads} thread(s), "
        f"float32, torch {torch.__version__}, economize {version('economize')}. Each table is one "
        "kind of work; its ways take turns on the same prompts in one run, and run the same layers "
        "on the newest position. Speed is against economize." + (MEMORY if args.memory else ""),
        "",
        f"    python -m benchmarks.peers {name} --prompts {args.prompts} --tokens {args.tokens} "
        f"--rounds {args.rounds} --batch {args.batch} --threads {args.threads}"
        + (" --memory" if args.memory else ""),
    ]
    for place, (title, work) in enumerate(works(model, args.tokens).items()):
        records = bench.run(ways_of(bench, work), args.batch)
        if args.memory:
            for index, record in enumerate(records):
                record["memory"] = memory(args, place, index)
        part = ["", f"## {title[0].upper()}{title[1:]}", "", *table(records)]
        page += part
        print("\n".join(part), flush=True)
    if args.write:
        args.write.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
