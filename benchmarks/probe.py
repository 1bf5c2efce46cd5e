"""Time and memory of the probe: against the heads' matrix products alone, the plain way, and peers.

    python -m benchmarks.smollm2 FOLDER
    python -m benchmarks.probe --model FOLDER/SmolLM2-135M-Instruct --write docs/benchmarks/probe.md

Each way runs in a process of its own, which loads the model, says how much memory it then takes,
and measures the highest that it takes after; times are taken in turns.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import eepolicy
from benchmarks import processes
from eepolicy.compile.onednn import wide_products
from eepolicy.hooked import HookedModel

#: what is measured by all: entropy, likeliest token, its probability, KL from the last layer, rank
#: and probability of the token that follows
COMMON = ("entropy", "top1", "confidence", "kl", "rank_next", "probability_next")


def naive_statistics(logits: Tensor, last: Tensor, following: Tensor) -> list[Tensor]:
    """The statistics of one layer as one writes them down: logits (tokens, vocabulary)."""
    logs = logits.log_softmax(-1)
    probabilities = logs.exp()
    chosen = logs.gather(-1, following[:, None])
    return [
        -(probabilities * logs).sum(-1),
        probabilities.argmax(-1),
        probabilities.amax(-1),
        (last.exp() * (last - logs)).sum(-1),
        1 + (logs > chosen).sum(-1),
        chosen.exp(),
    ]


def ours(
    model: HookedModel, ids: Tensor, statistics: tuple[str, ...] | None, compiled: bool = False
) -> Callable[[], Any]:
    return lambda: eepolicy.probe(model, ids, statistics=statistics, compile=compiled)


def plain(model: HookedModel, ids: Tensor) -> Callable[[], Any]:
    """All hidden states, then the logits of one layer after another, whole and in float32."""
    following = torch.cat([ids[1:], ids[:1]])

    @torch.no_grad()
    def way() -> list[list[Tensor]]:
        states = model.model(ids[None], output_hidden_states=True).hidden_states
        norm, head = model.parts.norm, model.parts.head
        # the last hidden state is normed already
        every = [norm(h[0]) for h in states[1:-1]] + [states[-1][0]]
        last = head(every[-1]).log_softmax(-1)
        return [naive_statistics(head(h), last, following) for h in every]

    return way


def heads_alone(model: HookedModel, ids: Tensor) -> Callable[[], Any]:
    """The bound: the products of L x tokens hidden states with the output embedding, no more."""
    width = model.model.config.hidden_size
    states = torch.randn(len(ids), width, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def way() -> None:
        with wide_products():  # the fastest way to take them
            for _ in range(model.depth):
                for part in states.split(128):
                    model.parts.head(part)

    return way


def forward_alone(model: HookedModel, ids: Tensor) -> Callable[[], Any]:
    """The layers, with the last token's logits."""

    @torch.no_grad()
    def way() -> Any:
        return model.model(ids[None], logits_to_keep=1)

    return way


def transformer_lens(model: HookedModel, ids: Tensor) -> Callable[[], Any]:
    """Its cache of the residual stream, normed by its final norm, unembedded layer by layer."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(model.model.config._name_or_path, device="cpu")
    following = torch.cat([ids[1:], ids[:1]])

    @torch.no_grad()
    def way() -> Any:
        _, cache = bridge.run_with_cache(ids[None])
        norm, head = model.parts.norm, model.parts.head
        every = [norm(cache[f"blocks.{i}.hook_resid_post"][0]) for i in range(bridge.cfg.n_layers)]
        last = head(every[-1]).log_softmax(-1)
        return [naive_statistics(head(h), last, following) for h in every]

    return way


def nnsight(model: HookedModel, ids: Tensor) -> Callable[[], Any]:
    """Its trace of each layer's output, saved, then read out layer by layer."""
    from nnsight import NNsight

    traced = NNsight(model.model)
    following = torch.cat([ids[1:], ids[:1]])

    @torch.no_grad()
    def way() -> Any:
        with traced.trace(ids[None]):
            saved = list().save()  # type: ignore[attr-defined]
            for layer in traced.model.layers:
                saved.append(layer.output)
        norm, head = model.parts.norm, model.parts.head
        every = [norm((h[0] if isinstance(h, tuple) else h)[0]) for h in saved]
        last = head(every[-1]).log_softmax(-1)
        return [naive_statistics(head(h), last, following) for h in every]

    return way


WAYS: dict[str, Callable[[HookedModel, Tensor], Callable[[], Any]]] = {
    "heads alone": heads_alone,
    "layers alone": forward_alone,
    "probe": lambda model, ids: ours(model, ids, COMMON),
    "probe, compiled": lambda model, ids: ours(model, ids, COMMON, True),
    "probe, all statistics": lambda model, ids: ours(model, ids, None),
    "probe, all statistics, compiled": lambda model, ids: ours(model, ids, None, True),
    "plain": plain,
    "transformer-lens": transformer_lens,
    "nnsight": nnsight,
}
#: what the others are compared with, and what memory is drawn of
ALWAYS = ("heads alone", "layers alone", "probe", "plain")
NEEDS = {"transformer-lens": "transformer_lens", "nnsight": "nnsight"}


def worker(args: argparse.Namespace) -> None:
    """Run one way whenever it is asked for."""
    torch.set_num_threads(args.threads)
    model = eepolicy.load(args.model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.model.config.vocab_size, (args.tokens,), generator=generator)
    way = WAYS[args.way](model, ids)
    # what is made once, kernels for blocks of many tokens too
    WAYS[args.way](model, ids[: args.tokens // 8 if "compiled" in args.way else 8])()
    processes.serve(way)


def start(way: str, args: argparse.Namespace, tokens: int) -> subprocess.Popen[str]:
    """A process that waits to run a way."""
    options = ("--way", way, "--model", args.model, "--tokens", tokens, "--threads", args.threads)
    return processes.start("benchmarks.probe", *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, help=f"beside {', '.join(ALWAYS)}; all if none is named"
    )
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="a page for the docs, and a figure beside it")
    args = parser.parse_args()
    if args.way:
        worker(args)
        return
    asked = args.ways or [w for w in WAYS if w not in NEEDS or find_spec(NEEDS[w])]
    there = [w for w in WAYS if w in ALWAYS or w in asked]
    runs = processes.take_turns({way: start(way, args, args.tokens) for way in there}, args.rounds)
    lengths = [args.tokens // 8, args.tokens // 4, args.tokens // 2, args.tokens]
    growth: dict[str, list[float]] = {}
    for way in ("probe", "plain"):
        growth[way] = []
        for length in lengths[:-1]:
            process = start(way, args, length)
            growth[way].append(processes.turn(process)["megabytes"])
            processes.stop(process)
        growth[way].append(max(r["megabytes"] for r in runs[way]))
    page = write_up(args, runs, lengths, growth)
    print(page)
    if args.write:
        args.write.write_text(page)
        draw(lengths, growth, args.write.with_name("images") / "probe-memory.svg")


def write_up(
    args: argparse.Namespace,
    runs: dict[str, list[dict[str, float]]],
    lengths: list[int],
    growth: dict[str, list[float]],
) -> str:
    name = Path(args.model).name
    lines = [
        "# Benchmarks of the probe",
        "",
        f"Model `{name}`, one document of {args.tokens} tokens, all depths, {args.rounds} round(s) "
        f"in turns, {args.threads} threads, float32, torch {torch.__version__}. Memory is what the "
        "process held at most, less what it held with the model loaded.",
        "",
        f"    python -m benchmarks.probe --model {name} --tokens {args.tokens} "
        f"--rounds {args.rounds} --threads {args.threads}",
        "",
        "`heads alone` is the products of all depths' hidden states with the output embedding, "
        "`layers alone` one pass of the model: no probe can do without both. "
        "`probe` and the ways below it measure the same six statistics "
        f"({', '.join(COMMON)}); `plain` and, where they are installed, the peers hold all hidden "
        "states and one layer's logits whole.",
        "",
        "| way | seconds, median | against heads alone, median [least, most] | against heads and "
        "layers | memory, MB |",
        "|---|---|---|---|---|",
    ]
    took = {way: np.array([r["seconds"] for r in found]) for way, found in runs.items()}
    heads = took["heads alone"]
    for way, seconds in took.items():
        ratios = [seconds / heads, seconds / (heads + took["layers alone"])]
        shown = [f"{np.median(r):.2f} [{r.min():.2f}, {r.max():.2f}]" for r in ratios]
        memory = max(r["megabytes"] for r in runs[way])
        lines.append(f"| {way} | {np.median(seconds):.1f} | {' | '.join(shown)} | {memory:.0f} |")
    lines += [
        "",
        "## Memory against the length of a document",
        "",
        f"| tokens | {' | '.join(map(str, lengths))} |",
        "|---" * (len(lengths) + 1) + "|",
    ]
    lines += [f"| {w}, MB | {' | '.join(f'{m:.0f}' for m in g)} |" for w, g in growth.items()]
    picture = "![Memory against the length of a document](images/probe-memory.svg)"
    return "\n".join([*lines, "", picture]) + "\n"


def draw(lengths: list[int], growth: dict[str, list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    path.parent.mkdir(exist_ok=True)
    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.subplots()
    for (way, values), colour, marker in zip(
        growth.items(), ("#0072B2", "#D55E00"), "os", strict=True
    ):
        axes.plot(lengths, values, marker=marker, color=colour, label=way)
    axes.set(xlabel="tokens of the document", ylabel="memory beside the model, MB", yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
