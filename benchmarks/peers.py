"""Decoding against economize: same model, prompts, threads and layers, interleaved in one run.

    pip install economize==0.3.2
    python -m benchmarks.peers FOLDER/SmolLM2-135M-Instruct [--batch 1] [--memory] [--write FILE.md]

Each table has one task with three decoders: economize, eepolicy, and eepolicy compiled.  economize
reads the first token from the full-depth prefill, so our policies run the first position at full
depth as well.  With `--memory` each decoder decodes the prompts once more in a separate process,
which measures its additional peak memory.
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
from eepolicy.analysis.tables import markdown_table
from eepolicy.analysis.timing.contenders import BenchConfig, Contender, Trial, bench_prompts
from eepolicy.analysis.timing.runner import Bench
from eepolicy.analysis.timing.table import LAYER_CALLS, SECONDS, SPEEDUP, cells
from eepolicy.policies import ExitPolicy, Readout, Step

PROMPT = 40  # tokens of a prompt
EXIT = 0.7  # exit depth, as a share of full depth
COLUMNS = (LAYER_CALLS, SECONDS, SPEEDUP)
MEMORY = (
    " Memory is the peak of a separate process that decodes all prompts once, compiling included, "
    "minus its memory with the model loaded."
)


#: prompts, (tokens,) each -> tokens of the replies
Reply = Callable[[list[Tensor]], list[list[int]]]


class Task(NamedTuple):
    """The decoder of economize, and our policy and options for the same layers."""

    theirs: Reply
    policy: str | ExitPolicy
    options: dict[str, Any] = {}  # noqa: RUF012 - default of a named tuple, never changed


@dataclass(frozen=True)
class First(ExitPolicy):
    """The first position of a reply at full depth, then another policy.

    Attributes:
        inner: policy from the second position on.
    """

    inner: ExitPolicy
    on: str = "text"

    def depths(self, step: Step) -> Tensor:
        return torch.where(step.position == 0, step.full_depth, self.inner.depths(step))

    def candidate_depths(self, step: Step) -> tuple[int, ...]:
        return () if bool((step.position == 0).all()) else self.inner.candidate_depths(step)

    def should_exit(self, step: Step, depth: int, readout: Readout) -> Tensor:
        return self.inner.should_exit(step, depth, readout)


@dataclass(frozen=True)
class Decreasing(ExitPolicy):
    """A depth that decreases linearly over the reply (the budget of SkipDecode, arXiv 2307.02628).

    Attributes:
        lowest: last depth.
        tokens: number of tokens after which it is reached.
    """

    lowest: int
    tokens: int
    on: str = "text"

    def depths(self, step: Step) -> Tensor:
        share = ((step.position - 1) / self.tokens).clamp(0, 1)
        return (step.full_depth - share * (step.full_depth - self.lowest)).round().long()


def theirs(
    model: eepolicy.HookedModel, tokens: int, *techniques: Any, decoding: Any = None
) -> Reply:
    """The fastest call of economize, without logits processors and end tokens."""
    import economize

    applied = economize.apply(model.model, *techniques, decoding=decoding)
    return lambda prompts: [r.tokens.tolist() for r in applied.decode_batch(prompts, tokens)]


def peer_contender(reply: Reply) -> Contender:
    """The decoder of economize as a contender of our bench."""

    def decode(prompts: list[Tensor]) -> Trial:
        began = time.perf_counter()
        replies = reply(prompts)
        seconds = time.perf_counter() - began
        tokens = sum(map(len, replies))
        return Trial(seconds / tokens, tokens / len(replies))

    return Contender("economize", decode)


def tasks(model: eepolicy.HookedModel, tokens: int) -> dict[str, Task]:
    """The same layers in both libraries, by description.

    Args:
        model: text model.
        tokens: tokens of a reply.
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
        "every layer": Task(other(), "full"),
        f"{depth} layers (SkipDecode of one depth)": Task(
            other(static), first(f"text=static@{depth}")
        ),
        f"from {full} layers to {third} (SkipDecode)": Task(
            other(fall), First(Decreasing(third, tokens))
        ),
        f"margin > 0.5 from depth {late} on (CALM)": Task(
            other(softmax), first(f"text=margin>0.5@{late}"), filled
        ),
        f"saturation > 0.98 from depth {half} on (CALM)": Task(
            other(state), first(f"text=saturation>0.98@{half - 1}"), filled
        ),
        f"full depth and {depth} alternating": Task(cycle(2, False), f"text=spark:even@{depth}"),
        f"full depth and two of {depth}": Task(cycle(3, False), f"text=spark:triple@{depth}"),
        f"lossless, four drafts of depth {depth}": Task(
            cycle(5, True), f"both=static@{depth}", {"accept": "exact", "max_pending": 4}
        ),
    }


def contenders(bench: Bench, task: Task) -> list[Contender]:
    """The decoders economize, eepolicy, and eepolicy compiled on one task."""
    reply, policy, options = task
    return [
        peer_contender(reply),
        bench.policy(policy, "eepolicy", **options),
        bench.policy(policy, "eepolicy, compiled", compile=True, **options),
    ]


def bench_of(args: argparse.Namespace) -> Bench:
    """The model and its prompts."""
    loaded = eepolicy.load(args.model)
    model = eepolicy.wrap(loaded.model, loaded.layout, loaded.tokenizer)
    questions = [q["question"] for q in eepolicy.held_out("test")[: args.prompts]]
    config = BenchConfig(args.tokens, exact_length=True, rounds=args.rounds)
    return Bench(model, bench_prompts(model, questions, PROMPT), config)


def worker(args: argparse.Namespace) -> None:
    """Serve one contender; `--contender` is the index of the task and of the contender."""
    bench = bench_of(args)
    task, index = map(int, args.contender.split(","))
    contender = contenders(bench, [*tasks(bench.model, args.tokens).values()][task])[index]
    with torch.no_grad():
        bench.model.model(bench.prompts[0][None])  # reads the weights into memory

    def decode() -> None:
        for start in range(0, len(bench.prompts), args.batch):
            contender.decode(list(bench.prompts[start : start + args.batch]))

    processes.serve(decode)


def memory(args: argparse.Namespace, task: int, index: int) -> float:
    """Additional peak memory of a contender in a separate process, in MB.

    Args:
        args: command line.
        task: index of the task.
        index: index of the contender.
    """
    names = ("tokens", "prompts", "batch", "threads")
    options = [o for n in names for o in (f"--{n}", getattr(args, n))]
    which = ("--contender", f"{task},{index}")
    process = processes.start("benchmarks.peers", args.model, *which, *options)
    megabytes = processes.run_trial(process)["megabytes"]
    processes.stop(process)
    return megabytes


def table(records: Sequence[dict[str, Any]]) -> str:
    """Contenders of one task; with a column of memory if it was measured."""
    headings = ["", *(column.heading for column in COLUMNS)]
    rows = [cells(record, COLUMNS) for record in records]
    if all("memory" in record for record in records):
        headings.append("memory, MB")
        rows = [[*row, f"{r['memory']:.0f}"] for row, r in zip(rows, records, strict=True)]
    return markdown_table(headings, rows)


def introduction(args: argparse.Namespace, depth: int) -> list[str]:
    """Title, settings and command of the page."""
    name = Path(args.model).name
    return [
        f"# Decoding {args.batch} row{'s' * (args.batch > 1)}: eepolicy against economize",
        "",
        f"`{name}`, {depth} layers, {args.prompts} prompts of {PROMPT} tokens, {args.tokens} "
        f"tokens a reply, batch {args.batch}, {args.rounds} rounds, {args.threads} thread(s), "
        f"float32, torch {torch.__version__}, economize {version('economize')}. The trials of a "
        "table are interleaved in one run, on the same prompts, and run the same layers on the "
        "newest position. Speed-ups are over economize." + (MEMORY if args.memory else ""),
        "",
        f"    python -m benchmarks.peers {args.model} --prompts {args.prompts} --tokens "
        f"{args.tokens} --rounds {args.rounds} --batch {args.batch} --threads {args.threads}"
        + (" --memory" if args.memory else ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a text model")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a reply")
    parser.add_argument("--prompts", type=int, default=4, help="number of prompts")
    parser.add_argument("--rounds", type=int, default=3, help="trials of each decoder")
    parser.add_argument("--batch", type=int, default=1, help="rows in a batch")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--memory", action="store_true", help="measure the memory of each decoder")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="write the page to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.contender:
        worker(args)
        return
    bench = bench_of(args)
    page = introduction(args, bench.model.depth)
    for number, (title, task) in enumerate(tasks(bench.model, args.tokens).items()):
        records = bench.run(contenders(bench, task), args.batch)
        if args.memory:
            for index, record in enumerate(records):
                record["memory"] = memory(args, number, index)
        part = ["", f"## {title[0].upper()}{title[1:]}", "", table(records)]
        page += part
        print("\n".join(part), flush=True)
    if args.write:
        args.write.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
