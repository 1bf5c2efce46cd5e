"""Decoding times, taken in turns in one run.

    python -m benchmarks.decode [--model FOLDER] [--prompts 8] [--rounds 3] [--batch 1 8]
        [--compile] [--write docs/benchmarks.md]

Full depth through our loop against the stock `generate`, each policy against full depth, and
lossless self-speculation against transformers' own: milliseconds a token, the ratio turn by turn
with its median and quartiles, and the harvest: the speed-up that was measured, divided by the one
that the layer calls and head calls promise at the cost of each in the same run.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import eepolicy
from eepolicy.decode.batch import Batch
from eepolicy.model.compiled import CompiledLayers

#: policies, and their exit depths as shares of the model's
POLICIES = (
    ("static", 0.8),
    ("static", 0.5),
    ("spark:even", 0.6),
    ("spark:triple", 0.7),
    ("spark:triple", 0.5),
)
EXIT = 0.7  # of the self-speculation
AHEAD = 4  # drafts that may go unjudged


@dataclass
class Timed:
    """One way of decoding: seconds, tokens, layer calls and head calls of each turn."""

    name: str
    decode: Callable[[Sequence[str]], tuple[float, int, float, float]]


def ours(model: eepolicy.HookedModel, policy: str, **options: Any) -> Callable:
    """Our loop: layer and head calls a token and row, as in the traces."""

    def decode(questions: Sequence[str]) -> tuple[float, int, float, float]:
        began = time.perf_counter()
        outs = model.generate(list(questions), policy, **options)
        seconds = time.perf_counter() - began
        tokens = sum(len(out.tokens) for out in outs)
        calls = sum(float(out.trace.layer_calls.sum()) for out in outs)
        heads = sum(float(out.trace.readouts.sum()) for out in outs)
        return seconds, tokens, calls / tokens, heads / tokens

    return decode


def stock(model: eepolicy.HookedModel, **options: Any) -> Callable:
    """Transformers' own `generate`."""

    def decode(questions: Sequence[str]) -> tuple[float, int, float, float]:
        prompts = [model.encode(q) for q in questions]
        width = max(map(len, prompts))
        ids = torch.stack([F.pad(p, (width - len(p), 0)) for p in prompts])
        mask = torch.stack([torch.arange(width) >= width - len(p) for p in prompts]).long()
        began = time.perf_counter()
        out = model.model.generate(ids, attention_mask=mask, do_sample=False, **options)
        seconds = time.perf_counter() - began
        replies = out[:, ids.shape[1] :].tolist()
        end = model.model.generation_config.eos_token_id
        tokens = sum(r.index(end) + 1 if end in r else len(r) for r in replies)
        return seconds, tokens, float("nan"), float("nan")

    return decode


def unit_costs(
    model: eepolicy.HookedModel, rows: int, layers_of: CompiledLayers | None, length: int = 60
) -> tuple[float, float]:
    """Seconds of a layer call on one position a row, and of a head call, `length` tokens in."""
    layers, heads = [], []
    first, behind = model.layout.speech if model.layout.has_speech else model.layout.text
    ids = torch.randint(first, behind, (rows, length + 40))
    with torch.no_grad():
        batch = Batch(model, [0] * rows, ids.shape[1], layers=layers_of)
        batch.prefill(ids[:, :length])
        for column in range(length, ids.shape[1]):
            block = batch.enter(ids[:, column], list(range(rows)))
            began = time.perf_counter()
            batch.run(block, model.depth)
            layers.append((time.perf_counter() - began) / model.depth)
            began = time.perf_counter()
            batch.read(block.hidden[:, -1], model.depth - 1).argmax(-1)
            heads.append(time.perf_counter() - began)
    return float(np.median(layers)), float(np.median(heads))


def measure(ways: Sequence[Timed], questions: Sequence[str], batch: int, rounds: int) -> dict:
    """Seconds a token of each way, turn by turn, and its calls a token."""
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for way in ways:
        way.decode(questions[:batch])  # warm up
    for turn in range(rounds):
        for start in range(0, len(questions), batch):
            for i in range(len(ways)):
                way = ways[(i + turn) % len(ways)]
                seconds, tokens, calls, heads = way.decode(questions[start : start + batch])
                found[way.name].append((seconds / tokens, calls, heads))
    return {name: np.array(rows) for name, rows in found.items()}


def report(found: dict, costs: tuple[float, float], layers: int) -> list[str]:
    """The table of one batch size, as Markdown."""
    layer, head = costs
    lines = [
        f"A layer call costs {1e3 * layer:.3f} ms, a head call {1e3 * head:.3f} ms.",
        "",
        "| decoding | layer calls a token | ms a token | speed against `full`, median [quartiles] "
        "| promised | harvest |",
        "|---|---|---|---|---|---|",
    ]
    full = found["full"][:, 0]
    for name, rows in found.items():
        low, middle, high = np.percentile(full / rows[:, 0], [25, 50, 75])
        calls, heads = rows[:, 1].mean(), rows[:, 2].mean()
        promised = (layers * layer + head) / (calls * layer + heads * head)
        more = ["–", "–"] if np.isnan(promised) else [f"{promised:.2f}", f"{middle / promised:.2f}"]
        cells = [
            f"`{name}`",
            "–" if np.isnan(calls) else f"{calls:.2f}",
            f"{1e3 * np.median(rows[:, 0]):.2f}",
            f"{middle:.2f} [{low:.2f}, {high:.2f}]",
            *more,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket", help="what eepolicy.load takes")
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="*", default=[1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="once more with compile=True")
    parser.add_argument("--write", type=Path, help="write the tables here as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = eepolicy.load(args.model)
    name = Path(args.model).name
    lens = eepolicy.wrap(model.model, model.layout, model.tokenizer)
    questions = [q["question"] for q in eepolicy.held_out("test")[: args.prompts]]
    ahead = eepolicy.Fill(max_pending=AHEAD)
    most = {"max_new_tokens": args.max_new_tokens}
    if not model.layout.has_speech:  # it has nothing to answer: let it go on for so long
        most["min_new_tokens"] = args.max_new_tokens
    early = round(EXIT * model.depth)
    drafts = f"both=static@{early}"
    speculating = ours(lens, drafts, accept="exact", fill=ahead, **most)
    on = "" if model.layout.has_speech else "text="
    policies = [f"{on}{policy}@{round(share * model.depth)}" for policy, share in POLICIES]
    page = [
        "# Benchmarks",
        "",
        f"Model `{name}`, {model.depth} layers, {args.prompts} held-out questions of the pocket "
        f"model, {'at most' if model.layout.has_speech else 'exactly'} {args.max_new_tokens} "
        f"tokens a reply, {args.rounds} rounds, "
        f"{args.threads} thread(s), float32, torch {torch.__version__}. All ways take turns on the "
        "same questions in one run.",
        "",
        f"    python -m benchmarks.decode --model {name} --prompts {args.prompts} "
        f"--max-new-tokens {args.max_new_tokens} --rounds {args.rounds} "
        f"--batch {' '.join(map(str, args.batch))} --threads {args.threads}"
        + (" --compile" if args.compile else ""),
        "",
        "*Promised*: the speed-up that the layer calls and head calls a token would give if each "
        "cost what it costs on one position a row. *Harvest*: measured divided by promised.",
    ]
    for batch in args.batch:
        ways = [
            Timed("full", ours(model, "full", **most)),
            Timed("stock generate", stock(model, **most)),
            *(Timed(policy, ours(model, policy, **most)) for policy in policies),
            Timed(f"{drafts}, accept=exact", speculating),
        ]
        if batch == 1:  # the stock self-speculation takes one row alone
            assisted = stock(model, assistant_early_exit=early, **most)
            ways.append(Timed(f"stock assistant_early_exit={early}", assisted))
        costs = unit_costs(model, batch, None)
        found = measure(ways, questions, batch, args.rounds)
        page += ["", f"## Batch {batch}", "", *report(found, costs, model.depth)]
        made = model._compiled() if args.compile else None
        if made is None:
            continue
        ways = [
            Timed("full", ours(model, "full", compile=True, **most)),
            Timed("full, not compiled", ours(model, "full", **most)),
            Timed("stock generate", stock(model, **most)),
            *(Timed(policy, ours(model, policy, compile=True, **most)) for policy in policies),
        ]
        found = measure(ways, questions, batch, args.rounds)  # compiles while it warms up
        costs = unit_costs(model, batch, made)
        page += ["", f"## Batch {batch}, compiled", ""]
        page += [f"{made.kernels} kernels so far.", "", *report(found, costs, model.depth)]
    text = "\n".join(page) + "\n"
    print(text)
    if args.write:
        args.write.write_text(text)


if __name__ == "__main__":
    main()
