"""Decoding times, taken in turns in one run.

    python -m benchmarks.decode [--prompts 8] [--rounds 3]

Full depth through our loop against the stock `generate`, and each policy against full depth: the
seconds a token, the ratio prompt by prompt, its median and its quartiles.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np
import torch

import eepolicy

POLICIES = ("full", "static@16", "spark:even@12", "spark:triple@14", "static@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = eepolicy.load("pocket")
    per_token: dict[str, list[float]] = defaultdict(list)
    calls: dict[str, list[float]] = defaultdict(list)

    def stock(prompt: torch.Tensor) -> float:
        began = time.perf_counter()
        out = model.model.generate(
            prompt[None], attention_mask=torch.ones_like(prompt)[None], do_sample=False
        )
        return (time.perf_counter() - began) / (out.shape[1] - len(prompt))

    questions = [q["question"] for q in eepolicy.held_out("test")[: args.prompts]]
    stock(model.encode(questions[0]))
    model.generate(questions[0])
    for _ in range(args.rounds):
        for question in questions:
            per_token["stock generate"].append(stock(model.encode(question)))
            for policy in POLICIES:
                out = model.generate(question, policy)
                per_token[policy].append(out.seconds / len(out.tokens))
                calls[policy].append(out.trace.layer_calls.sum() / len(out.tokens))
    print(
        "policy | layer calls a token | ms a token | speed against full depth, median [quartiles]"
    )
    full = np.array(per_token["full"])
    for name, seconds in per_token.items():
        ratio = full / np.array(seconds)
        low, middle, high = np.percentile(ratio, [25, 50, 75])
        depth = f"{np.mean(calls[name]):.2f}" if name in calls else f"{model.depth}"
        ms = 1e3 * np.median(seconds)
        print(f"{name} | {depth} | {ms:.2f} | {middle:.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main()
