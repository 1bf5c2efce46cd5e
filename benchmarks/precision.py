"""Weights in float32, bfloat16 and int8: seconds a token with and without early exits.

    python -m benchmarks.precision [pocket] [--policies full static@6] [--write FILE.md]

All types and policies take turns on each question, one reply at a time, compiled.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import eepolicy
from eepolicy.analysis.stats import bootstrap
from eepolicy.analysis.tables import markdown_table
from eepolicy.heads.int8 import has_int8
from eepolicy.io import write_text

#: type of the weights -> what its layers read
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
POLICIES = ("full", "spark:triple@14", "static@6", "static@4")
BASE = ("float32", "full")
HEADINGS = ("weights", "policy", "ms a token", "speed-up over full depth in float32")

#: (type, policy) -> milliseconds a token of each question
Times = dict[tuple[str, str], list[float]]


def measure(
    models: dict[str, eepolicy.HookedModel],
    policies: Sequence[str],
    prompts: Sequence[Any],
    tokens: int,
    rounds: int,
) -> Times:
    """Time all types and policies in turn.

    Args:
        models: models by type of the weights.
        policies: spec strings.
        prompts: questions.
        tokens: maximum number of tokens of a reply.
        rounds: trials on each question; the median counts.

    Returns:
        Milliseconds a token of each question, by type and policy.
    """
    contenders = [(name, policy) for name in models for policy in policies]
    for prompt in tqdm(prompts, desc="kernels are compiled"):
        for name, policy in contenders:
            models[name].generate(prompt, policy, tokens, compile=True)
    times: Times = {contender: [] for contender in contenders}
    for number, prompt in enumerate(tqdm(prompts, desc="questions")):
        trials: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for trial in range(rounds):
            first = (number + trial) % len(contenders)
            for name, policy in (*contenders[first:], *contenders[:first]):
                start = time.perf_counter()
                out = models[name].generate(prompt, policy, tokens, compile=True)
                seconds = time.perf_counter() - start
                trials[name, policy].append(1000 * seconds / len(out.tokens))
        for contender, values in trials.items():
            times[contender].append(statistics.median(values))
    return times


def rows(times: Times) -> list[list[str]]:
    """Cells of the table of times."""
    table = []
    for (name, policy), values in times.items():
        speedup = bootstrap.ratio(times[BASE], values)
        table.append(
            [
                name,
                f"`{policy}`",
                f"{statistics.mean(values):.2f}",
                speedup.text(),
            ]
        )
    return table


def page(times: Times, args: argparse.Namespace) -> str:
    """The page: settings, command and table."""
    count = len(times[BASE])
    return "\n".join(
        [
            "# Weights in float32, bfloat16 and int8",
            "",
            f"`{args.model}` on a CPU, {count} held-out questions, one reply at a time of up to "
            f"{args.tokens} tokens, compiled, {args.threads} thread(s), torch {torch.__version__}. "
            f"Medians of {args.rounds} trials a question. All types and policies take turns in one "
            "run. Intervals are over questions.",
            "",
            f"    python -m benchmarks.precision {args.model} --policies "
            f"{' '.join(args.policies)} --questions {count} --tokens {args.tokens} --rounds "
            f"{args.rounds} --threads {args.threads}",
            "",
            "With `int8`, the weights of the layers and of the output embedding are integers with "
            "a scale for each row (`eepolicy.load(..., torch.int8)`). Embeddings, norms and all "
            "activations are in float32.",
            "",
            markdown_table(HEADINGS, rows(times)),
        ]
    )


def load(name: str, dtype: torch.dtype, threads: int) -> eepolicy.HookedModel:
    """A model whose weights have a type.

    Raises:
        AssertionError: the weights are of another type.
    """
    model = eepolicy.load(name, dtype, threads=threads)
    assert has_int8(model.model) == (dtype == torch.int8)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="pocket", help="model")
    parser.add_argument("--policies", nargs="+", default=POLICIES, help="spec strings; full first")
    parser.add_argument("--questions", type=int, default=20, help="number of held-out questions")
    parser.add_argument("--tokens", type=int, default=150, help="maximum tokens of a reply")
    parser.add_argument("--rounds", type=int, default=3, help="trials on each question")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--write", type=Path, help="file for the page")
    args = parser.parse_args()
    models = {name: load(args.model, dtype, args.threads) for name, dtype in DTYPES.items()}
    questions = [q["question"] for q in eepolicy.held_out()[: args.questions]]
    text = page(measure(models, args.policies, questions, args.tokens, args.rounds), args)
    print(text)
    if args.write:
        write_text(args.write, text + "\n")


if __name__ == "__main__":
    main()
