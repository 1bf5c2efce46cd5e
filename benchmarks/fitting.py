"""Time and memory of fitting a tuned lens at all depths: ours beside tuned-lens's.

    python -m benchmarks.fitting --model pocket --write FILE.md [--peer-python PATH]

Both fit a matrix and a bias at each depth from 1 to the last but one, on the same tokens in as many
steps, in float32, and hold the logits of one document and depth at once.  Of tuned-lens 0.2 it
takes the classes `TunedLens` and `Unembed`, its optimisers with their options, and the step of its
`scripts/train_loop.py` written down again: the trainer itself takes data sets from the Hub and
computes in bfloat16.  It does not work beside transformer-lens 4, so its process may run in another
environment, `--peer-python`, which also holds what eepolicy needs.

Each way runs in a process of its own, in turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import eepolicy
from benchmarks import processes
from eepolicy.fitting import FitConfig, fit, generate_replies
from eepolicy.hooked import HookedModel
from eepolicy.probing import Document

#: hidden states after so many layers, (tokens, width), to logits, (tokens, vocabulary)
Readout = Callable[[Tensor, int], Tensor]


class Texts(NamedTuple):
    """Documents of one length each: (documents, tokens) of ids.

    Attributes:
        train: fitted on.
        judged: ours chooses by these between the lens and what was fitted.
        held_out: both are measured on.
    """

    train: Tensor
    judged: Tensor
    held_out: Tensor


class Fit(NamedTuple):
    """What a way gave: the seconds of its steps alone, and its heads."""

    seconds: float
    readout: Readout


def ours(model: HookedModel, texts: Texts, batch: int) -> Callable[[], Fit]:
    """`fit`, one epoch; judging is left out of the time, and is in the memory.

    Args:
        model: whose depths are fitted.
        texts: see there.
        batch: documents a step.
    """
    train, judged = ([Document(t) for t in some] for some in texts[:2])
    tokens = texts.train.shape[1]
    how = FitConfig(epochs=1, batch_tokens=batch * tokens, chunk=tokens)

    def way() -> Fit:
        seconds = 0.0

        def timed(steps: Iterable[list[Document]]) -> Iterator[list[Document]]:
            nonlocal seconds
            began = time.perf_counter()
            yield from steps
            seconds = time.perf_counter() - began

        heads = fit(model, train, judged, how, progress=timed).heads
        return Fit(seconds, heads.logits)

    return way


def theirs(model: HookedModel, texts: Texts, batch: int, adam: bool = False) -> Callable[[], Fit]:
    """The loop of tuned-lens's trainer, a document at a time as it has it.

    Args:
        model: whose depths are fitted.
        texts: see there.
        batch: documents a step.
        adam: its other optimiser.
    """
    from transformers import get_linear_schedule_with_warmup
    from tuned_lens.nn.lenses import TunedLens

    def way() -> Fit:
        lens = TunedLens.from_model(model.model)
        below = list(lens)[1:]  # its first one reads the embedding; ours has none
        flat = [p for translator in below for p in translator.parameters()]
        optimiser: torch.optim.Optimizer
        if adam:
            optimiser = torch.optim.Adam(flat, lr=1e-3, amsgrad=True, weight_decay=1e-3)
        else:
            optimiser = torch.optim.SGD(
                flat, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
            )
        schedule = get_linear_schedule_with_warmup(optimiser, 0, len(texts.train) // batch)
        began = time.perf_counter()
        for number, ids in enumerate(texts.train, start=1):
            with torch.no_grad():
                out = model.model(ids[None], output_hidden_states=True)
            labels = out.logits.float().log_softmax(-1)
            for depth, hidden in enumerate(out.hidden_states[1:-1], start=1):
                logits = lens(hidden, idx=depth)
                loss = (labels.exp() * (labels - logits.log_softmax(-1))).sum(-1).mean()
                (loss / batch).backward()
            if number % batch == 0:
                torch.nn.utils.clip_grad_norm_(flat, 1.0)
                optimiser.step()
                optimiser.zero_grad(set_to_none=False)
                schedule.step()
        return Fit(time.perf_counter() - began, lens)

    return way


OURS = "eepolicy"
WAYS: dict[str, Callable[[HookedModel, Texts, int], Callable[[], Fit]]] = {
    OURS: ours,
    "tuned-lens, SGD": theirs,  # what its trainer takes where none is named
    "tuned-lens, Adam": partial(theirs, adam=True),
}


@torch.no_grad()
def divergence(model: HookedModel, readout: Readout, texts: Tensor) -> float:
    """KL from the last layer in nats, the mean over depths below full, documents and positions.

    Args:
        model: whose hidden states are read out.
        readout: of those below full depth.
        texts: (documents, tokens).
    """
    found = []
    for ids in texts:
        *below, last = model.hidden_states(ids[None])
        target = model.lens.logits(last[0], model.depth).float().log_softmax(-1)
        for depth, hidden in enumerate(below, start=1):
            logs = readout(hidden[0], depth).float().log_softmax(-1)
            found.append(float((target.exp() * (target - logs)).sum(-1).mean()))
    return float(np.mean(found))


def replies_cut(model: HookedModel, documents: int, tokens: int) -> Tensor:
    """The model's own replies with their questions, one behind the other: (documents, tokens)."""
    asked = [q["question"] for part in ("dev", "test") for q in eepolicy.held_out(part)]
    found: list[Tensor] = []
    while sum(map(len, found)) < documents * tokens:
        if not asked:
            raise SystemExit(f"the questions give less than {documents} documents of {tokens}")
        some, asked = asked[:32], asked[32:]
        found += [d.tokens for d in generate_replies(model, some, max_new_tokens=100)]
    return torch.cat(found)[: documents * tokens].reshape(documents, tokens)


def texts_of(args: argparse.Namespace) -> Texts:
    """The documents of a file, in their parts."""
    parts = (args.steps * args.batch, args.held_out, args.held_out)
    return Texts(*torch.from_numpy(np.load(args.texts)).split(parts))


def worker(args: argparse.Namespace) -> None:
    """Fit one way whenever it is asked for."""
    torch.set_num_threads(args.threads)
    model, texts = eepolicy.load(args.model), texts_of(args)
    way = WAYS[args.way](model, texts, args.batch)
    divergence(model, model.lens.logits, texts.held_out[:1])  # the weights are in memory now

    def after(given: Fit) -> dict[str, float]:
        kl = divergence(model, given.readout, texts.held_out)
        return {"seconds": given.seconds, "kl": kl}

    processes.serve(way, after)


def installed(python: str) -> bool:
    """Whether an environment has a tuned-lens that works."""
    command = [python, "-c", "import tuned_lens.nn.lenses"]
    return subprocess.run(command, capture_output=True).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--tokens", type=int, default=256, help="of a document")
    parser.add_argument("--batch", type=int, default=2, help="documents a step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=8, help="documents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer-python", default=sys.executable, help="that has tuned-lens")
    parser.add_argument("--texts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="a page for the docs")
    args = parser.parse_args()
    if args.way:
        worker(args)
        return
    there = list(WAYS)
    if not installed(args.peer_python):
        there = [OURS]
        print("tuned-lens cannot be imported here; name --peer-python that has it", file=sys.stderr)
    torch.set_num_threads(args.threads)
    model = eepolicy.load(args.model)
    with TemporaryDirectory() as folder:
        args.texts = Path(folder) / "texts.npy"
        documents = args.steps * args.batch + 2 * args.held_out
        np.save(args.texts, replies_cut(model, documents, args.tokens))
        plain = divergence(model, model.lens.logits, texts_of(args).held_out)
        runs = measure(args, there)
    page = write_up(args, model, plain, runs)
    print(page)
    if args.write:
        args.write.write_text(page)


def measure(args: argparse.Namespace, ways: Iterable[str]) -> dict[str, list[dict[str, float]]]:
    """The figures of each round, by way."""
    names = ("model", "tokens", "batch", "steps", "held_out", "threads", "texts")
    options = [o for n in names for o in (f"--{n.replace('_', '-')}", getattr(args, n))]
    started = {}
    for way in ways:
        python = sys.executable if way == OURS else args.peer_python
        started[way] = processes.start("benchmarks.fitting", "--way", way, *options, python=python)
    return processes.take_turns(started, args.rounds)


def spread(values: Any, digits: int) -> str:
    """Median [least, most]."""
    middle, least, most = np.median(values), np.min(values), np.max(values)
    return f"{middle:.{digits}f} [{least:.{digits}f}, {most:.{digits}f}]"


def write_up(
    args: argparse.Namespace,
    model: HookedModel,
    plain: float,
    runs: dict[str, list[dict[str, float]]],
) -> str:
    name = Path(args.model).name
    lines = [
        "# FitConfig beside tuned-lens",
        "",
        f"Model `{name}`, depths 1 to {model.depth - 1}, a full matrix and a bias each, "
        f"{args.steps} steps of {args.batch} documents of {args.tokens} tokens (the model's own "
        f"replies), {args.rounds} round(s) in turns, {args.threads} thread(s), float32, torch "
        f"{torch.__version__}. Seconds are those of the steps, the model's forward passes "
        "included. Memory is the most that the process held, less what it held with the model "
        f"loaded. KL is from the last layer, on {args.held_out} documents that nothing was fitted "
        "on, in one function for all.",
        "",
        f"    python -m benchmarks.fitting --model {name} --tokens {args.tokens} "
        f"--batch {args.batch} --steps {args.steps} --held-out {args.held_out} "
        f"--rounds {args.rounds} --threads {args.threads}",
        "",
        "Both hold one depth's logits of one document at once. What differs: ours steps with Adam "
        "and a cosine, theirs as its trainer does, with SGD (its default) or AMSGrad, a line, "
        "weight decay and clipped gradients, and here in float32 in place of its bfloat16. Ours "
        f"also judges each depth on {args.held_out} other documents before and after, which is in "
        "its memory and not in its seconds, and gives heads in half precision. Theirs keeps a "
        "copy of the output embedding, which is in its memory.",
        "",
        f"| way | seconds, median [least, most] | against {OURS}, median [least, most] | "
        "memory, MB | held-out KL, nats |",
        "|---|---|---|---|---|",
        f"| plain lens, not fitted | – | – | – | {plain:.3f} |",
    ]
    bound = np.array([r["seconds"] for r in runs[OURS]])
    for way, found in runs.items():
        seconds = np.array([r["seconds"] for r in found])
        memory = max(r["megabytes"] for r in found)
        lines.append(
            f"| {way} | {spread(seconds, 1)} | {spread(seconds / bound, 2)} | {memory:.0f} | "
            f"{found[0]['kl']:.3f} |"
        )
    if len(runs) == 1:
        lines += ["", "tuned-lens was not installed where this ran."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
