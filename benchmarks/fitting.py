"""Time and memory of fitting a tuned lens at all depths: eepolicy beside tuned-lens.

    python -m benchmarks.fitting --model pocket --write FILE.md [--peer-python PATH]

Both fit a matrix and a bias at each depth below full, on the same tokens, in the same number of
steps, in float32, with the logits of one document and depth in memory.  From tuned-lens 0.2 the
benchmark takes the classes `TunedLens` and `Unembed`, the optimisers with their options, and a copy
of the step of `scripts/train_loop.py`: the trainer itself takes data sets from the Hub and computes
in bfloat16.  tuned-lens does not work beside transformer-lens 4, so its process may run in another
environment, `--peer-python`, which also needs the dependencies of eepolicy.

Each contender runs in its own process; the processes take turns.
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
from eepolicy.analysis.tables import MISSING, markdown_table
from eepolicy.fitting import FitConfig, fit, generate_replies
from eepolicy.hooked import HookedModel
from eepolicy.probing import Document

#: hidden states after so many layers, (tokens, width), to logits, (tokens, vocabulary)
Readout = Callable[[Tensor, int], Tensor]


class Texts(NamedTuple):
    """Documents of equal length: (documents, tokens) of ids each.

    Attributes:
        train: documents to fit on.
        selection: documents on which `fit` chooses between the lens and the fitted weights.
        held_out: documents on which both contenders are measured.
    """

    train: Tensor
    selection: Tensor
    held_out: Tensor


class Fit(NamedTuple):
    """The seconds of the steps alone, and the readout of the fitted heads."""

    seconds: float
    readout: Readout


def ours(model: HookedModel, texts: Texts, batch: int) -> Callable[[], Fit]:
    """`fit` for one epoch; the time is without the evaluation, the memory is with it.

    Args:
        model: model whose depths get heads.
        texts: documents.
        batch: number of documents in a step.
    """
    train, selection = ([Document(t) for t in part] for part in texts[:2])
    tokens = texts.train.shape[1]
    config = FitConfig(epochs=1, batch_tokens=batch * tokens, chunk=tokens)

    def run() -> Fit:
        seconds = 0.0

        def timed(steps: Iterable[list[Document]]) -> Iterator[list[Document]]:
            nonlocal seconds
            began = time.perf_counter()
            yield from steps
            seconds = time.perf_counter() - began

        heads = fit(model, train, selection, config, progress=timed).heads
        return Fit(seconds, heads.logits)

    return run


def theirs(model: HookedModel, texts: Texts, batch: int, adam: bool = False) -> Callable[[], Fit]:
    """The loop of the trainer of tuned-lens, one document at a time.

    Args:
        model: model whose depths get heads.
        texts: documents.
        batch: number of documents in a step.
        adam: use AMSGrad in place of SGD.
    """
    from transformers import get_linear_schedule_with_warmup
    from tuned_lens.nn.lenses import TunedLens

    def run() -> Fit:
        lens = TunedLens.from_model(model.model)
        below = list(lens)[1:]  # the first one reads the embedding; `fit` has none
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

    return run


OURS = "eepolicy"
CONTENDERS: dict[str, Callable[[HookedModel, Texts, int], Callable[[], Fit]]] = {
    OURS: ours,
    "tuned-lens, SGD": theirs,  # the default of its trainer
    "tuned-lens, Adam": partial(theirs, adam=True),
}


@torch.no_grad()
def divergence(model: HookedModel, readout: Readout, texts: Tensor) -> float:
    """KL from the last layer in nats, the mean over depths below full, documents and positions.

    Args:
        model: model whose hidden states are read out.
        readout: readout of hidden states below full depth.
        texts: (documents, tokens).
    """
    divergences = []
    for ids in texts:
        *below, last = model.hidden_states(ids[None])
        target = model.lens.logits(last[0], model.depth).float().log_softmax(-1)
        for depth, hidden in enumerate(below, start=1):
            logs = readout(hidden[0], depth).float().log_softmax(-1)
            divergences.append(float((target.exp() * (target - logs)).sum(-1).mean()))
    return float(np.mean(divergences))


def replies_cut(model: HookedModel, documents: int, tokens: int) -> Tensor:
    """Prompts and replies of the model, concatenated and cut: (documents, tokens)."""
    questions = [q["question"] for part in ("dev", "test") for q in eepolicy.held_out(part)]
    replies: list[Tensor] = []
    while sum(map(len, replies)) < documents * tokens:
        if not questions:
            raise SystemExit(f"the replies have less than {documents} documents of {tokens} tokens")
        batch, questions = questions[:32], questions[32:]
        replies += [d.tokens for d in generate_replies(model, batch, max_new_tokens=100)]
    return torch.cat(replies)[: documents * tokens].reshape(documents, tokens)


def texts_of(args: argparse.Namespace) -> Texts:
    """The documents of a file, split into `Texts`."""
    parts = (args.steps * args.batch, args.held_out, args.held_out)
    return Texts(*torch.from_numpy(np.load(args.texts)).split(parts))


def worker(args: argparse.Namespace) -> None:
    """Run one contender once for each line of stdin."""
    torch.set_num_threads(args.threads)
    model, texts = eepolicy.load(args.model), texts_of(args)
    run = CONTENDERS[args.contender](model, texts, args.batch)
    divergence(model, model.lens.logits, texts.held_out[:1])  # loads the weights into memory

    def after(result: Fit) -> dict[str, float]:
        kl = divergence(model, result.readout, texts.held_out)
        return {"seconds": result.seconds, "kl": kl}

    processes.serve(run, after)


def installed(python: str) -> bool:
    """Whether tuned-lens can be imported in an environment."""
    command = [python, "-c", "import tuned_lens.nn.lenses"]
    return subprocess.run(command, capture_output=True).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--tokens", type=int, default=256, help="tokens in a document")
    parser.add_argument("--batch", type=int, default=2, help="documents in a step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=8, help="held-out documents")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer-python", default=sys.executable, help="Python with tuned-lens")
    parser.add_argument("--texts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="page of the docs to write")
    args = parser.parse_args()
    if args.contender:
        worker(args)
        return
    contenders = list(CONTENDERS)
    if not installed(args.peer_python):
        contenders = [OURS]
        print("tuned-lens cannot be imported; give --peer-python", file=sys.stderr)
    torch.set_num_threads(args.threads)
    model = eepolicy.load(args.model)
    with TemporaryDirectory() as folder:
        args.texts = Path(folder) / "texts.npy"
        documents = args.steps * args.batch + 2 * args.held_out
        np.save(args.texts, replies_cut(model, documents, args.tokens))
        plain = divergence(model, model.lens.logits, texts_of(args).held_out)
        runs = measure(args, contenders)
    page = write_up(args, model, plain, runs)
    print(page)
    if args.write:
        args.write.write_text(page)


def measure(
    args: argparse.Namespace, contenders: Iterable[str]
) -> dict[str, list[dict[str, float]]]:
    """The figures of each round, by contender."""
    names = ("model", "tokens", "batch", "steps", "held_out", "threads", "texts")
    options = [o for n in names for o in (f"--{n.replace('_', '-')}", getattr(args, n))]
    started = {}
    for name in contenders:
        python = sys.executable if name == OURS else args.peer_python
        arguments = ("--contender", name, *options)
        started[name] = processes.start("benchmarks.fitting", *arguments, python=python)
    return processes.run_interleaved(started, args.rounds)


def spread(values: Any, digits: int) -> str:
    """Median [minimum, maximum]."""
    median, low, high = np.median(values), np.min(values), np.max(values)
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def fit_rows(runs: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """Cells of each contender."""
    rows, reference = [], np.array([r["seconds"] for r in runs[OURS]])
    for contender, rounds in runs.items():
        seconds = np.array([r["seconds"] for r in rounds])
        memory = max(r["megabytes"] for r in rounds)
        ratios = spread(seconds / reference, 2)
        kl = f"{rounds[0]['kl']:.3f}"
        rows.append([contender, spread(seconds, 1), ratios, f"{memory:.0f}", kl])
    return rows


def write_up(
    args: argparse.Namespace,
    model: HookedModel,
    plain: float,
    runs: dict[str, list[dict[str, float]]],
) -> str:
    """The page of all measurements.

    Args:
        args: command line.
        model: model that was fitted.
        plain: held-out KL of the plain lens.
        runs: measurements by contender.
    """
    name = Path(args.model).name
    lines = [
        "# Fitting beside tuned-lens",
        "",
        f"Model `{name}`, depths 1 to {model.depth - 1}, a full matrix and a bias each, "
        f"{args.steps} steps of {args.batch} documents of {args.tokens} tokens (replies of the "
        f"model), {args.rounds} interleaved round(s), {args.threads} thread(s), float32, torch "
        f"{torch.__version__}. Seconds are those of the steps, with the forward passes of the "
        "model. Memory is the peak of the process, minus its memory with the model loaded. KL is "
        f"from the last layer, on {args.held_out} documents on which nothing was fitted; one "
        "function computes it for all.",
        "",
        f"    python -m benchmarks.fitting --model {name} --tokens {args.tokens} "
        f"--batch {args.batch} --steps {args.steps} --held-out {args.held_out} "
        f"--rounds {args.rounds} --threads {args.threads}",
        "",
        "Both have the logits of one depth and one document in memory. They differ in this: "
        "eepolicy uses Adam with a cosine schedule. tuned-lens uses SGD (the default of its "
        "trainer) or AMSGrad, with a linear schedule, weight decay and clipped gradients, here in "
        f"float32 instead of bfloat16. eepolicy also evaluates each depth on {args.held_out} other "
        "documents before and after the epoch; its memory includes that, its seconds do not. It "
        "returns heads in half precision. The memory of tuned-lens includes a copy of the output "
        "embedding.",
        "",
        markdown_table(
            [
                "contender",
                "seconds, median [min, max]",
                f"relative to {OURS}, median [min, max]",
                "memory, MB",
                "held-out KL, nats",
            ],
            [["plain lens, not fitted", *[MISSING] * 3, f"{plain:.3f}"], *fit_rows(runs)],
        ),
    ]
    if len(runs) == 1:
        lines += ["", "tuned-lens was not installed on this machine."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
