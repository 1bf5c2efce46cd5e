"""What some choices of decoding cost and bring, one changed at a time, in turns in one run.

    python -m benchmarks.choices [--prompts 8] [--rounds 2] [--threads 1] [--write FILE.md]

Rows at mixed depths (coming along, waiting, leaving keys and values behind), looking at three
depths, speech read out over its own ids, and the fills; each with the layers as they are and
compiled.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from inspect import getdoc
from pathlib import Path
from typing import Any

import torch

import eepolicy
from eepolicy.analysis.timing.runner import Bench, Way, cells, pipes, prompts_of

ROWS = 8
#: where rows part: some exit where they are sure, some by the clock of their own chunks
MIXED = ("entropy<1.0@10", "entropy<4.0@[3]", "spark:triple@10", "spark:even@3")
ASKED = 30  # questions that are answered with and without text among the ids of speech


def batches(bench: Bench) -> dict[str, list[Way]]:
    """Rows that have exited come along always, or unless parting saves a fifth, or wait.

    Those that leave keys and values behind never go up, so that their tokens may be other ones.
    """
    shares: dict[str, Any] = {"always": 0.0, "unless parting saves a fifth": "measured"}
    return {
        policy: [
            *(bench.ours(policy, f"come along {s}", rebatch=a) for s, a in shares.items()),
            bench.ours(policy, "wait"),
            bench.ours(policy, "leave keys and values behind", fill="propagate"),
        ]
        for policy in MIXED
    }


def looks(bench: Bench) -> dict[str, list[Way]]:
    """A policy that looks at three depths and exits at none."""
    return {"full": [bench.ours(p) for p in ("full", "confidence>1.0@[10,13,16]")]}


def narrow(bench: Bench) -> dict[str, list[Way]]:
    """Speech read out over all ids, and over its own."""
    return {
        policy: [
            bench.ours(policy, "all ids"),
            bench.ours(policy, "the ids of speech", restrict_vocab=True),
        ]
        for policy in ("full", "static@10")
    }


def fills(bench: Bench) -> dict[str, list[Way]]:
    """What becomes of missing keys and values."""
    ways = ("catch_up", "propagate", "mask")
    return {
        policy: [bench.ours(policy, way, fill=way) for way in ways]
        for policy in ("spark:triple@10", "static@10")
    }


#: heading: its ways, rows of a batch
CHOICES = {
    "Rows at mixed depths, batch 8": (batches, ROWS),
    "Looking at three depths": (looks, 1),
    "Speech over its own ids": (narrow, 1),
    "Fills": (fills, 1),
}


def table(policy: str, records: Sequence[dict[str, Any]]) -> list[str]:
    """Ways of one policy, against the first of them."""
    rows = [cells(r, ("layer_calls", "readouts", "seconds", "ratio")) for r in records]
    headings = ["", "layer calls a token", "head calls", "ms a token", "speed, median [quartiles]"]
    head = f"A head call took {1e3 * records[0]['head_seconds']:.2f} ms."
    return ["", f"`{policy}`. {head}", "", *pipes(headings, rows)]


def same_tokens(model: eepolicy.HookedModel, prompts: Sequence[torch.Tensor]) -> str:
    """How often reading speech out over its own ids changes a reply."""
    same, units = 0, 0
    for prompt in prompts:
        plain, other = (
            model.generate(prompt, "spark:triple@10", restrict_vocab=n) for n in (False, True)
        )
        same += plain.tokens.tolist() == other.tokens.tolist()
        units += len(plain.units)
    return (
        f"Of {len(prompts)} replies of `spark:triple@10`, {units} units, {same} are the same token "
        "for token."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path, help="write the page here as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = eepolicy.load("pocket")
    questions = [q["question"] for q in eepolicy.held_out("test")]
    prompts = prompts_of(model, questions[: args.prompts])
    page = [
        "# Choices and their costs",
        "",
        f"The pocket model, {args.prompts} held-out questions, {args.rounds} rounds, "
        f"{args.threads} thread(s), torch {torch.__version__}. The ways of a table take turns on "
        "the same questions; speed is against its first row.",
        "",
        f"    python -m benchmarks.choices --prompts {args.prompts} --rounds {args.rounds} "
        f"--threads {args.threads}",
    ]
    for heading, (choice, rows) in CHOICES.items():
        for compiled in (False, True):
            page += [
                "",
                f"## {heading}{', compiled' if compiled else ''}",
                "",
                getdoc(choice) or "",
            ]
            bench = Bench(model, prompts, 400, rounds=args.rounds, compiled=compiled)
            for policy, ways in choice(bench).items():
                page += table(policy, bench.run(ways, rows))
                print("\n".join(page[-8:]), flush=True)
        if choice is narrow:
            asked = prompts_of(model, questions[:ASKED])
            page += ["", same_tokens(model, asked)]
    if args.write:
        args.write.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
