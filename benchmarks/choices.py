"""Cost and benefit of single decoding options, in interleaved trials of one run.

    python -m benchmarks.choices [--prompts 8] [--rounds 2] [--threads 1] [--write FILE.md]

The options are rebatching of rows at mixed depths, readouts at three depths, the restricted
vocabulary for speech, and the fills; each with and without compiled layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from inspect import getdoc
from pathlib import Path
from typing import Any

import torch

import eepolicy
from eepolicy.analysis.tables import markdown_table
from eepolicy.analysis.timing.contenders import BenchConfig, Contender, bench_prompts
from eepolicy.analysis.timing.runner import Bench
from eepolicy.analysis.timing.table import LAYER_CALLS, READOUTS, SECONDS, SPEEDUP, cells

BATCH = 8
MAX_NEW_TOKENS = 400
#: policies under which rows have different depths: by entropy, or by the phase of their chunks
MIXED = ("entropy<1.0@10", "entropy<4.0@[3]", "spark:triple@10", "spark:even@3")
VOCAB_PROMPTS = 30  # questions answered with and without the restricted vocabulary
COLUMNS = (LAYER_CALLS, READOUTS, SECONDS, SPEEDUP)

Choice = Callable[[Bench], dict[str, list[Contender]]]


def rebatching(bench: Bench) -> dict[str, list[Contender]]:
    """Exited rows stay in the batch always, or unless leaving saves a fifth (`auto`), or never.

    The fill `propagate` never computes missing layers, so its tokens may differ.
    """
    return {
        policy: [
            *(
                bench.policy(policy, f"rebatch={rebatch}", rebatch=rebatch)
                for rebatch in ("always", "auto", "never")
            ),
            bench.policy(policy, "propagate", fill="propagate"),
        ]
        for policy in MIXED
    }


def readouts(bench: Bench) -> dict[str, list[Contender]]:
    """A policy that reads out three depths and never exits."""
    return {"full": [bench.policy(p) for p in ("full", "confidence>1.0@[10,13,16]")]}


def restricted_vocabulary(bench: Bench) -> dict[str, list[Contender]]:
    """Speech read out over all ids, and over the ids of speech alone (`restrict_vocab`)."""
    return {
        policy: [
            bench.policy(policy, "all ids"),
            bench.policy(policy, "ids of speech", restrict_vocab=True),
        ]
        for policy in ("full", "static@10")
    }


def fills(bench: Bench) -> dict[str, list[Contender]]:
    """How the keys and values above an exit are filled."""
    return {
        policy: [
            bench.policy(policy, fill, fill=fill) for fill in ("catch_up", "propagate", "mask")
        ]
        for policy in ("spark:triple@10", "static@10")
    }


#: heading -> contenders by policy, rows in a batch
CHOICES: dict[str, tuple[Choice, int]] = {
    "Rows at mixed depths, batch 8": (rebatching, BATCH),
    "Readouts at three depths": (readouts, 1),
    "Restricted vocabulary": (restricted_vocabulary, 1),
    "Fills": (fills, 1),
}


def table(policy: str, records: Sequence[dict[str, Any]]) -> list[str]:
    """Contenders of one policy, against the first of them."""
    head = f"A head call takes {1e3 * records[0]['head_seconds']:.2f} ms."
    headings = ["", *(column.heading for column in COLUMNS)]
    return [
        "",
        f"`{policy}`. {head}",
        "",
        markdown_table(headings, [cells(record, COLUMNS) for record in records]),
    ]


def same_tokens(model: eepolicy.HookedModel, prompts: Sequence[torch.Tensor]) -> str:
    """How often the restricted vocabulary changes a reply."""
    same, units = 0, 0
    for prompt in prompts:
        whole, restricted = (
            model.generate(prompt, "spark:triple@10", restrict_vocab=n) for n in (False, True)
        )
        same += whole.tokens.tolist() == restricted.tokens.tolist()
        units += len(whole.units)
    return (
        f"Of {len(prompts)} replies of `spark:triple@10` ({units} units), {same} are identical "
        "with both."
    )


def measure_choice(
    model: eepolicy.HookedModel, prompts: Sequence[torch.Tensor], heading: str, config: BenchConfig
) -> list[str]:
    """Time the contenders of one choice, and format the section."""
    choice, rows = CHOICES[heading]
    title = f"## {heading}{', compiled' if config.compiled else ''}"
    lines = ["", title, "", getdoc(choice) or ""]
    bench = Bench(model, prompts, config)
    for policy, contenders in choice(bench).items():
        lines += table(policy, bench.run(contenders, rows))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8, help="number of held-out questions")
    parser.add_argument("--rounds", type=int, default=2, help="trials of each option")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--write", type=Path, help="write the page to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = eepolicy.load("pocket")
    questions = [q["question"] for q in eepolicy.held_out("test")]
    prompts = bench_prompts(model, questions[: args.prompts])
    page = [
        "# Decoding options",
        "",
        f"The pocket model, {args.prompts} held-out questions, {args.rounds} rounds, "
        f"{args.threads} thread(s), torch {torch.__version__}. The trials of a table are "
        "interleaved, on the same questions; speed-ups are over its first row.",
        "",
        f"    python -m benchmarks.choices --prompts {args.prompts} --rounds {args.rounds} "
        f"--threads {args.threads}",
    ]
    for heading, (choice, _) in CHOICES.items():
        for compiled in (False, True):
            config = BenchConfig(MAX_NEW_TOKENS, rounds=args.rounds, compiled=compiled)
            section = measure_choice(model, prompts, heading, config)
            page += section
            print("\n".join(section), flush=True)
        if choice is restricted_vocabulary:
            page += ["", same_tokens(model, bench_prompts(model, questions[:VOCAB_PROMPTS]))]
    if args.write:
        args.write.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
