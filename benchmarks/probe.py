"""Time and memory of the probe, against a naive implementation, other libraries and lower bounds.

    python -m benchmarks.smollm2 FOLDER
    python -m benchmarks.probe --model FOLDER/SmolLM2-135M-Instruct --write docs/benchmarks/probe.md

Each method runs in a separate process, which loads the model and then measures the additional peak
memory.  Rounds are interleaved.
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
from matplotlib.figure import Figure
from torch import Tensor

import eepolicy
from benchmarks import processes
from eepolicy.analysis.tables import markdown_table
from eepolicy.compile.onednn import wide_products
from eepolicy.hooked import HookedModel

#: statistics that all methods compute: entropy, argmax, its probability, KL from the last layer,
#: rank and probability of the next token
COMMON = ("entropy", "top1", "confidence", "kl", "rank_next", "probability_next")


def naive_statistics(logits: Tensor, last: Tensor, following: Tensor) -> list[Tensor]:
    """The statistics of one layer without optimization.

    Args:
        logits: (tokens, vocabulary).
        last: log probabilities of the last layer, (tokens, vocabulary).
        following: ids of the next tokens, (tokens,).

    Returns:
        (tokens,) each.
    """
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
    """`eepolicy.probe` of ids (tokens,)."""
    return lambda: eepolicy.probe(model, ids, statistics=statistics, compile=compiled)


def plain(model: HookedModel, ids: Tensor) -> Callable[[], Any]:
    """All hidden states, then the logits of one layer after another, in float32."""
    following = torch.cat([ids[1:], ids[:1]])

    @torch.no_grad()
    def method() -> list[list[Tensor]]:
        states = model.model(ids[None], output_hidden_states=True).hidden_states
        norm, head = model.parts.norm, model.parts.head
        # the last hidden state is already normed
        every = [norm(h[0]) for h in states[1:-1]] + [states[-1][0]]
        last = head(every[-1]).log_softmax(-1)
        return [naive_statistics(head(h), last, following) for h in every]

    return method


def heads_alone(model: HookedModel, ids: Tensor) -> Callable[[], Any]:
    """Lower bound: products of (depths x tokens) hidden states with the output embedding."""
    width = model.model.config.hidden_size
    states = torch.randn(len(ids), width, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def method() -> None:
        with wide_products():  # the fastest implementation
            for _ in range(model.depth):
                for part in states.split(128):
                    model.parts.head(part)

    return method


def forward_alone(model: HookedModel, ids: Tensor) -> Callable[[], Any]:
    """One forward pass, with the logits of the last token only."""

    @torch.no_grad()
    def method() -> Any:
        return model.model(ids[None], logits_to_keep=1)

    return method


def transformer_lens(model: HookedModel, ids: Tensor) -> Callable[[], Any]:
    """TransformerLens: its residual stream cache, with final norm and unembedding by layer."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(model.model.config._name_or_path, device="cpu")
    following = torch.cat([ids[1:], ids[:1]])

    @torch.no_grad()
    def method() -> Any:
        _, cache = bridge.run_with_cache(ids[None])
        norm, head = model.parts.norm, model.parts.head
        every = [norm(cache[f"blocks.{i}.hook_resid_post"][0]) for i in range(bridge.cfg.n_layers)]
        last = head(every[-1]).log_softmax(-1)
        return [naive_statistics(head(h), last, following) for h in every]

    return method


def nnsight(model: HookedModel, ids: Tensor) -> Callable[[], Any]:
    """nnsight: the saved output of each layer, read out layer by layer."""
    from nnsight import NNsight

    traced = NNsight(model.model)
    following = torch.cat([ids[1:], ids[:1]])

    @torch.no_grad()
    def method() -> Any:
        with traced.trace(ids[None]):
            saved = list().save()  # type: ignore[attr-defined]
            for layer in traced.model.layers:
                saved.append(layer.output)
        norm, head = model.parts.norm, model.parts.head
        every = [norm((h[0] if isinstance(h, tuple) else h)[0]) for h in saved]
        last = head(every[-1]).log_softmax(-1)
        return [naive_statistics(head(h), last, following) for h in every]

    return method


METHODS: dict[str, Callable[[HookedModel, Tensor], Callable[[], Any]]] = {
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
#: methods that always run
ALWAYS = ("heads alone", "layers alone", "probe", "plain")
NEEDS = {"transformer-lens": "transformer_lens", "nnsight": "nnsight"}


def worker(args: argparse.Namespace) -> None:
    """Serve one method."""
    torch.set_num_threads(args.threads)
    model = eepolicy.load(args.model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.model.config.vocab_size, (args.tokens,), generator=generator)
    method = METHODS[args.method](model, ids)
    # warm up; with compiled layers also the kernels for blocks of many tokens
    METHODS[args.method](model, ids[: args.tokens // 8 if "compiled" in args.method else 8])()
    processes.serve(method)


def start(method: str, args: argparse.Namespace, tokens: int) -> subprocess.Popen[str]:
    """Start the process of a method on a document of some tokens."""
    names = {"method": method, "model": args.model, "tokens": tokens, "threads": args.threads}
    options = (option for name, value in names.items() for option in (f"--{name}", value))
    return processes.start("benchmarks.probe", *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of the document")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        help=f"in addition to {', '.join(ALWAYS)}; all that are installed by default",
    )
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="write the page to this file, and its figure")
    args = parser.parse_args()
    if args.method:
        worker(args)
        return
    installed = [m for m in METHODS if m not in NEEDS or find_spec(NEEDS[m])]
    chosen = args.methods or installed
    workers = {m: start(m, args, args.tokens) for m in METHODS if m in ALWAYS or m in chosen}
    runs = processes.run_interleaved(workers, args.rounds)
    lengths = [args.tokens // 8, args.tokens // 4, args.tokens // 2, args.tokens]
    memory: dict[str, list[float]] = {}
    for method in ("probe", "plain"):
        memory[method] = [peak_memory(method, args, length) for length in lengths[:-1]]
        memory[method].append(max(run["megabytes"] for run in runs[method]))
    page = write_up(args, runs, lengths, memory)
    print(page)
    if args.write:
        args.write.write_text(page)
        draw(lengths, memory, args.write.with_name("images") / "probe-memory.svg")


def peak_memory(method: str, args: argparse.Namespace, tokens: int) -> float:
    """Additional peak memory of a method on a document of some tokens, in MB."""
    process = start(method, args, tokens)
    megabytes = processes.run_trial(process)["megabytes"]
    processes.stop(process)
    return megabytes


def write_up(
    args: argparse.Namespace,
    runs: dict[str, list[dict[str, float]]],
    lengths: list[int],
    memory: dict[str, list[float]],
) -> str:
    """The page of all measurements.

    Args:
        args: command line.
        runs: measurements by method.
        lengths: lengths of documents whose memory was measured.
        memory: MB for each length, by method.
    """
    name = Path(args.model).name
    return "\n".join(
        [
            "# Benchmarks of the probe",
            "",
            f"Model `{name}`, one document of {args.tokens} tokens, all depths, {args.rounds} "
            f"round(s), interleaved, {args.threads} threads, float32, torch {torch.__version__}. "
            "Memory is the peak of the process minus its memory with the model loaded.",
            "",
            f"    python -m benchmarks.probe --model {args.model} --tokens {args.tokens} "
            f"--rounds {args.rounds} --threads {args.threads}",
            "",
            "`heads alone` is the products of all depths' hidden states with the output embedding, "
            "`layers alone` one forward pass of the model. Every probe needs both. `probe` and the "
            f"methods below it compute the same six statistics ({', '.join(COMMON)}). `plain` and "
            "the other libraries keep all hidden states and the logits of one layer in memory.",
            "",
            times_table(runs),
            "",
            "## Memory by document length",
            "",
            markdown_table(
                ["tokens", *map(str, lengths)],
                [[f"{m}, MB", *(f"{mb:.0f}" for mb in each)] for m, each in memory.items()],
            ),
            "",
            "![Memory by document length](images/probe-memory.svg)",
            "",
        ]
    )


def times_table(runs: dict[str, list[dict[str, float]]]) -> str:
    """Seconds and memory of each method, as Markdown."""
    seconds = {m: np.array([run["seconds"] for run in measured]) for m, measured in runs.items()}
    heads, layers = seconds["heads alone"], seconds["layers alone"]
    rows = []
    for method, each in seconds.items():
        ratios = (
            f"{np.median(r):.2f} [{r.min():.2f}, {r.max():.2f}]"
            for r in (each / heads, each / (heads + layers))
        )
        memory = max(run["megabytes"] for run in runs[method])
        rows.append([method, f"{np.median(each):.1f}", *ratios, f"{memory:.0f}"])
    headings = [
        "method",
        "seconds, median",
        "over heads alone, median [min, max]",
        "over heads and layers",
        "memory, MB",
    ]
    return markdown_table(headings, rows)


def draw(lengths: list[int], memory: dict[str, list[float]], path: Path) -> None:
    """Draw memory by document length, one line for each method."""
    path.parent.mkdir(exist_ok=True)
    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.subplots()
    for (method, values), colour, marker in zip(
        memory.items(), ("#0072B2", "#D55E00"), "os", strict=True
    ):
        axes.plot(lengths, values, marker=marker, color=colour, label=method)
    axes.set(xlabel="tokens of the document", ylabel="memory without the model, MB", yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(n) for n in lengths])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
