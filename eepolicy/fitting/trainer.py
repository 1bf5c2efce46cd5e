"""Fit exit heads on the model's own replies: all depths in one pass over the data."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fitting.losses import grad_of, loss_of
from eepolicy.heads.fingerprint import fingerprint
from eepolicy.heads.fitted import KINDS, FittedHead
from eepolicy.hooked import HookedModel, probe
from eepolicy.modality import Modality
from eepolicy.probing import Document


@dataclass(frozen=True)
class FitConfig:
    """How heads are fitted.

    Attributes:
        kind: of the heads: `tuned`, `linear` or `low-rank`.
        depths: that get one; all below full where none are given.
        rank: of `low-rank` heads.
        loss: `soft` (the paper's), `reverse_kl` or `top:K`, see `eepolicy.fitting.losses`.
        on: the modality whose positions count, `text`, `speech` or `both`.
        epochs: most passes over the replies; the learning rate falls to zero over them.
        patience: epochs in which no depth has come closer to the last layer before it ends.
        batch_tokens: about so many tokens a step.
        chunk: positions whose logits are held at once.
        learning_rate: highest, of Adam.
        seed: of the order and of random starts; a seed gives one file.
    """

    kind: str = "tuned"
    depths: tuple[int, ...] | None = None
    rank: int = 32
    loss: str = "soft"
    on: str = "both"
    epochs: int = 5
    patience: int = 1
    batch_tokens: int = 512
    chunk: int = 256
    learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """What fitting gave.

    Attributes:
        heads: of the depths.
        notes: by name and depth, on the held-out replies: `kl` from the last layer (nats) and
            `agreement`, `before` and `after`; and how they were fitted.
    """

    heads: FittedHead
    notes: dict[str, Any]


def fit(
    model: HookedModel,
    train: Sequence[Document],
    held_out: Sequence[Document],
    fitting: FitConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[Iterable[list[Document]]], Iterable[list[Document]]] = iter,
) -> Fitted:
    """Fit a head for every depth; the backbone stays as it is.

    After each epoch every depth is judged by its KL from the last layer on the held-out replies,
    and its best parameters are kept; the plain lens is the first of them, so that no depth ends
    worse on those replies than it began.

    Args:
        model: whose depths are fitted.
        train: replies to fit on.
        held_out: replies to judge by.
        fitting: how.
        checkpoint: a file; a run that was stopped goes on from it.  Delete it when the heads are
            saved.
        report: gets a line an epoch.
        progress: wraps the steps of an epoch, to show them.

    Raises:
        EepolicyError: no replies, options that do not fit, or a checkpoint of another run.

    Examples:
        >>> from eepolicy.fitting.trainer import FitConfig, fit
        >>> from eepolicy.fitting.replies import generate_replies
        >>> model = eepolicy.load("pocket")
        >>> questions = [q["question"] for q in eepolicy.held_out("dev")[:6]]
        >>> replies = generate_replies(model, questions)
        >>> fitted = fit(model, replies[:4], replies[4:], FitConfig(depths=(12,), epochs=1))
        >>> fitted.heads
        TunedLens(depths 12 to 12)
    """
    fitting = fitting or FitConfig()
    if not train or not held_out:
        raise EepolicyError("fitting heads takes replies to fit on and replies to judge by")
    run = _Run(model, fitting, train, held_out)
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None and file.exists():
        run.resume(file)
        report(f"going on behind epoch {run.epoch}")
    frozen = [(p, p.requires_grad) for p in model.model.parameters()]
    for parameter, _ in frozen:
        parameter.requires_grad_(False)
    try:
        while run.epoch < fitting.epochs and run.stale < fitting.patience:
            report(run.train_epoch(progress))
            if file is not None:
                run.save(file)
    finally:
        for parameter, needed in frozen:
            parameter.requires_grad_(needed)
    return run.fitted()


class _Run:
    """Parameters on their way, and the best ones so far."""

    def __init__(
        self,
        model: HookedModel,
        fitting: FitConfig,
        train: Sequence[Document],
        held_out: Sequence[Document],
    ) -> None:
        if min(fitting.epochs, fitting.patience, fitting.batch_tokens, fitting.chunk) < 1:
            raise EepolicyError(
                f"epochs, patience, batch_tokens and chunk are 1 or more; got {fitting}"
            )
        if fitting.kind not in KINDS:
            raise EepolicyError(f"heads are {', '.join(KINDS)}; got {fitting.kind!r}")
        if fitting.on not in ("both", *(m.name.lower() for m in Modality)):
            raise EepolicyError(f"heads are fitted on text, speech or both; got {fitting.on!r}")
        loss_of(fitting.loss, torch.zeros(1, 1 << 20), torch.ones(1, 1 << 20))
        depths = tuple(range(1, model.depth)) if fitting.depths is None else fitting.depths
        if (
            not depths
            or sorted({*depths}) != [*depths]
            or not 0 < depths[0] <= depths[-1] < model.depth
        ):
            raise EepolicyError(
                f"heads are fitted at rising depths from 1 to {model.depth - 1}; got {depths}"
            )
        self.model, self.how, self.train, self.held_out = model, fitting, train, held_out
        width = model.model.config.hidden_size
        self.heads = KINDS[fitting.kind].untrained(
            model.lens, depths, width=width, rank=fitting.rank, seed=fitting.seed
        )
        for name, each in self.heads.parameters.items():
            moved = [p.to(model.model.device).requires_grad_() for p in each]
            self.heads.parameters[name] = moved
        self.flat = [p for each in self.heads.parameters.values() for p in each]
        self.optimiser = torch.optim.Adam(self.flat, lr=fitting.learning_rate)
        self.best = [p.detach().cpu().half() for p in self.flat]
        self.before = self.judge()
        self.now = {name: list(values) for name, values in self.before.items()}
        self.epoch = self.stale = self.seen = 0

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share to be gone on from."""
        plain: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "model": fingerprint(self.model.model),
                    "fitting": asdict(self.how),
                    "replies": [_digest(s) for s in (self.train, self.held_out)],
                }
            )
        )
        return plain

    def judge(self) -> dict[str, list[float]]:
        """KL from the last layer and agreement on the held-out replies, by depth."""
        result = probe(
            self.model,
            self.held_out,
            depths=self.heads.depths,
            heads=self.heads,
            statistics=("kl", "top1"),
        )
        if self.how.on != "both":
            result = result[result.modality == Modality[self.how.on.upper()]]
        if not len(result):
            raise EepolicyError(f"the held-out replies hold no {self.how.on}")
        return {
            "kl": result.kl[:-1].mean(1).tolist(),
            "agreement": result.agreement[:-1].mean(1).tolist(),
        }

    def train_epoch(
        self, progress: Callable[[Iterable[list[Document]]], Iterable[list[Document]]]
    ) -> str:
        """One epoch; says how it went."""
        order = random.Random(self.how.seed + self.epoch).sample(
            range(len(self.train)), len(self.train)
        )
        batches = list(_batches([self.train[i] for i in order], self.how.batch_tokens))
        steps = len(batches)
        for index, batch in enumerate(progress(batches)):
            done = (self.epoch + index / steps) / self.how.epochs
            for group in self.optimiser.param_groups:
                group["lr"] = self.how.learning_rate * (1 + math.cos(math.pi * done)) / 2
            self.learn(batch)
        if not self.seen:
            raise EepolicyError(f"the replies hold no {self.how.on} to fit on")
        self.epoch += 1
        found = self.judge()
        better = [
            i
            for i, (new, old) in enumerate(zip(found["kl"], self.now["kl"], strict=True))
            if new < old
        ]
        per_depth = len(self.heads.depths)
        for i in better:
            for name, values in found.items():
                self.now[name][i] = values[i]
            for place in range(i, len(self.flat), per_depth):  # each of the depth's parameters
                self.best[place] = self.flat[place].detach().cpu().half()
        self.stale = 0 if better else self.stale + 1
        return (
            f"epoch {self.epoch}: KL {np.mean(found['kl']):.4f} nats over depths, "
            f"{np.mean(self.before['kl']):.4f} before; {len(better)} of {per_depth} depths better"
        )

    def learn(self, batch: Sequence[Document]) -> None:
        """One step."""
        states, full = self.states(batch), self.model.depth
        rows = len(states[full])
        self.seen += rows
        for start in range(0, rows, self.how.chunk):
            some = slice(start, min(start + self.how.chunk, rows))
            with torch.no_grad():
                target = self.model.lens.logits(states[full][some], full).float().softmax(-1)
            for depth in self.heads.depths:
                # one depth's logits at a time: memory holds chunk x vocabulary, not x depths
                logits = self.heads.logits(states[depth][some], depth).float()
                logits.backward(grad_of(self.how.loss, logits.detach(), target).div_(rows))
        self.optimiser.step()
        self.optimiser.zero_grad()

    @torch.no_grad()
    def states(self, batch: Sequence[Document]) -> dict[int, Tensor]:
        """Hidden states that the positions are read out of: by depth, (positions, width)."""
        kept = {*self.heads.depths, self.model.depth}
        found: dict[int, list[Tensor]] = {depth: [] for depth in kept}
        for document in batch:
            start, end = document.span
            ids = document.tokens.to(self.model.model.device)
            counts = slice(start, end)
            chosen = None
            if self.how.on != "both":
                labels = document.labels(self.model.layout, self.model.depth)
                at = labels[3] == Modality[self.how.on.upper()]
                chosen = torch.from_numpy(at).to(ids.device)
            for depth, hidden in enumerate(self.model.hidden_states(ids[None]), start=1):
                if depth in kept:
                    part = hidden[0, counts]
                    # a view would keep the prompt's states too
                    found[depth].append(part.clone() if chosen is None else part[chosen])
        return {depth: torch.cat(parts) for depth, parts in found.items()}

    def fitted(self) -> Fitted:
        """The best heads, as a file would give them back."""
        best = [
            b.to(p.device, self.model.model.dtype)
            for b, p in zip(self.best, self.flat, strict=True)
        ]
        each = len(self.heads.depths)
        parts = {
            name: best[i * each : (i + 1) * each] for i, name in enumerate(self.heads.parameters)
        }
        heads = type(self.heads)(self.model.lens, self.heads.depths, **parts)
        notes = {
            "fitting": asdict(self.how),
            "replies": len(self.train),
            "held_out_replies": len(self.held_out),
            "epochs": self.epoch,
            "before": self.before,
            "after": self.now,
        }
        return Fitted(heads, notes)

    def save(self, file: Path) -> None:
        """Write all that is needed to go on."""
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.flat):
            state = self.optimiser.state[parameter]
            tensors |= {f"now.{i}": parameter.detach(), f"best.{i}": self.best[i]}
            tensors |= {f"{key}.{i}": value for key, value in state.items()}
        told = {
            "identity": self.identity,
            "epoch": self.epoch,
            "stale": self.stale,
            "now": self.now,
        }
        part = file.with_name(f"{file.name}.part")
        save_file(tensors, part, {"fit": json.dumps(told)})
        part.replace(file)

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            EepolicyError: it is of another run.
        """
        try:
            with safe_open(file, "pt") as held:
                told = json.loads((held.metadata() or {})["fit"])
                tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        except Exception as error:
            raise EepolicyError(f"{file} is no checkpoint of a fit: {error}") from error
        if told["identity"] != self.identity:
            raise EepolicyError(
                f"the checkpoint {file} is of another fit, of another model, replies or options; "
                "delete it, or give another file"
            )
        self.epoch, self.stale, self.now = told["epoch"], told["stale"], told["now"]
        for i, parameter in enumerate(self.flat):
            with torch.no_grad():
                parameter.copy_(tensors[f"now.{i}"])
            self.best[i] = tensors[f"best.{i}"]
            keys = ("step", "exp_avg", "exp_avg_sq")
            self.optimiser.state[parameter] = {
                k: tensors[f"{k}.{i}"].to(parameter.device if k != "step" else "cpu") for k in keys
            }


def _digest(documents: Sequence[Document]) -> str:
    """Which documents they are."""
    found = hashlib.sha256()
    for document in documents:
        found.update(f"{document.prompt} {document.tokens.tolist()};".encode())
    return found.hexdigest()


def _batches(documents: Sequence[Document], tokens: int) -> Iterator[list[Document]]:
    """Documents together, about so many positions each."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += document.span[1] - document.span[0]
        if held >= tokens:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def fitting_memory(
    fitting: FitConfig, *, width: int, vocabulary: int, full_depth: int, longest: int = 512
) -> dict[str, int]:
    """Bytes that fitting takes beside the model, at most: by what they are for.

    Args:
        fitting: how.
        width: of the model.
        vocabulary: of the model.
        full_depth: its layers.
        longest: tokens of the longest reply.

    Examples:
        >>> glm = dict(width=4096, vocabulary=168_960, full_depth=40)
        >>> need = fitting_memory(FitConfig(), **glm)
        >>> round(sum(need.values()) / 2**30, 1)  # beside 18 GB of weights in bfloat16
        11.8
    """
    depths = full_depth - 1 if fitting.depths is None else len(fitting.depths)
    each = {
        "tuned": width * width + width,
        "linear": vocabulary * width,
        "low-rank": fitting.rank * (vocabulary + width),
    }[fitting.kind]
    positions = fitting.batch_tokens + longest
    return {
        # the parameter, its gradient and Adam's two moments in float32
        "parameters": 16 * depths * each,
        # each reply's, and all of one depth put together
        "hidden states": 4 * 2 * (depths + 1) * positions * width,
        # target, logits, their gradient, and two in passing
        "logits": 4 * 5 * min(fitting.chunk, positions) * vocabulary,
    }
