"""Fit exit heads: all depths in one pass over the replies."""

from __future__ import annotations

import copy
import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.fitting.checkpoint import Checkpoint, check_parts, restore_fit, tensors_of_fit
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.gradients import HeadStates, Teacher, add_gradients, frozen
from eepolicy.fitting.identity import model_identity
from eepolicy.fitting.result import FitResult
from eepolicy.heads.branch import BranchHead
from eepolicy.heads.fitted import KINDS
from eepolicy.hooked import HookedModel
from eepolicy.io import as_json
from eepolicy.modality import Modality, TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.probing import Document
from eepolicy.probing.plan import ProbeConfig, ProbePlan
from eepolicy.probing.run import DocumentReader, run_probe

#: wraps the batches of an epoch, to show progress
Progress: TypeAlias = Callable[[Iterable[list[Document]]], Iterable[list[Document]]]


@checked()
def fit(
    model: HookedModel,
    train: Sequence[Document],
    held_out: Sequence[Document],
    config: FitConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    report: Callable[[str], None] = lambda _: None,
    progress: Progress = iter,
) -> FitResult:
    """Fit a head for each depth; the weights of the model do not change.

    After each epoch, `fit` measures the KL from the last layer on the held-out replies and keeps
    the best weights of each depth.  The logit lens is the first candidate, so no depth has a higher
    KL on these replies after fitting than before.

    Source: SPAR-K, arXiv 2603.09215, section 2; tuned lens, arXiv 2303.08112.

    Args:
        model: model whose depths get heads.
        train: replies to fit on.
        held_out: replies on which the best weights are chosen.
        config: options; the defaults of `FitConfig` when None.
        checkpoint: file that is written after each epoch and from which a stopped fit resumes.
            Delete it when the heads are saved.
        report: receives one line after each epoch.
        progress: wraps the batches of an epoch, to show progress.

    Raises:
        EepolicyError: there are no replies, the options do not fit the model, or the checkpoint
            belongs to another fit.

    Warns:
        UserWarning: at some depth the KL fell but the agreement with the last layer fell too.

    Examples:
        >>> from eepolicy.fitting import FitConfig, fit, generate_replies
        >>> model = eepolicy.load("pocket")
        >>> questions = [q["question"] for q in eepolicy.held_out("dev")[:6]]
        >>> replies = generate_replies(model, questions, max_new_tokens=40)
        >>> result = fit(model, replies[:4], replies[4:], FitConfig(depths=(12,), epochs=1))
        >>> result.heads
        TunedLens(depths 12 to 12)
    """
    config = config or FitConfig()
    if not train or not held_out:
        raise EepolicyError("fit takes replies to fit on and held-out replies; got none of one")
    trainer = Trainer(model, model.layout, config, train, held_out)
    return run_fit(trainer, checkpoint, report, progress)


def run_fit(
    trainer: Trainer,
    checkpoint: str | Path | None,
    report: Callable[[str], None],
    progress: Progress,
) -> FitResult:
    """Train to the end, from a checkpoint if there is one; arguments and warning as in `fit`."""
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None and file.exists():
        trainer.restore(Checkpoint.read(file, trainer.identity))
        report(f"resuming after epoch {trainer.epoch}")
    with frozen(trainer.model.model):
        while not trainer.finished:
            report(trainer.train_epoch(progress))
            if file is not None:
                trainer.checkpoint().write(file)
    result = trainer.result()
    result.warn_of_lower_agreement()
    return result


class Trainer:
    """Heads under training, and the best weights so far.

    Args:
        model: model whose depths get heads.
        layout: vocabulary and chunks, for the labels of positions.
        config: options.
        train: replies to fit on.
        held_out: replies on which the best weights are chosen.

    Attributes:
        heads: heads in float32.
        best: best weights in half precision, by parameter name.
        before: metrics of the logit lens, by name and depth.
        metrics: metrics of the best weights, by name and depth.
        epoch: number of finished epochs.
        epochs_without_gain: number of epochs since the KL of some depth fell.
    """

    def __init__(
        self,
        model: Backbone,
        layout: TokenLayout,
        config: FitConfig,
        train: Sequence[Document],
        held_out: Sequence[Document],
    ) -> None:
        kind = KINDS.get(config.kind)
        depths = kind.default_depths(model.depth) if config.depths is None else config.depths
        if issubclass(kind, BranchHead):
            raise EepolicyError(f"fit_rounds fits heads with layers; got the kind {config.kind}")
        if not depths or depths[-1] >= model.depth:
            raise EepolicyError(
                f"heads are fitted at rising depths from 1 to {model.depth - 1}; got {depths}"
            )
        self.model, self.layout, self.config = model, layout, config
        self.train, self.held_out = train, held_out
        width = model.width
        heads = kind.untrained(model.lens, depths, width=width, rank=config.rank, seed=config.seed)
        self.rate = config.learning_rate or 1e-3
        self.heads = heads.to(model.device).requires_grad_()
        # one parameter at a time: no buffers as large as all weights
        self.optimizer = torch.optim.Adam(self.heads.parameters(), lr=self.rate, foreach=False)
        self.best = {name: _halved(p) for name, p in self.heads.named_parameters()}
        self.before = self.evaluate()
        self.metrics = {name: list(values) for name, values in self.before.items()}
        self.epoch = self.epochs_without_gain = self._positions = 0

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or no depth has improved for `patience` epochs."""
        config = self.config
        return self.epoch >= config.epochs or self.epochs_without_gain >= config.patience

    @property
    def identity(self) -> dict[str, Any]:
        """Model, replies and options, which a checkpoint must share."""
        identity: dict[str, Any] = as_json(
            {
                **model_identity(self.model, self.layout),
                "fitting": asdict(self.config),
                "replies": [digest_of(part) for part in (self.train, self.held_out)],
            }
        )
        return identity

    def evaluate(self) -> dict[str, list[float]]:
        """KL from the last layer and agreement with it on the held-out replies, by depth."""
        config = ProbeConfig(self.heads.depths, self.heads, ("kl", "top1"))
        backbone = self.model.with_heads(self.heads)
        plan = ProbePlan.of(backbone, config)
        result = run_probe(DocumentReader(backbone, plan, self.layout), self.held_out)
        if self.config.on != "both":
            result = result[result.modality == Modality[self.config.on.upper()]]
        if not len(result):
            raise EepolicyError(f"the held-out replies have no {self.config.on} positions")
        return {
            "kl": result.kl[:-1].mean(1).tolist(),
            "agreement": result.agreement[:-1].mean(1).tolist(),
        }

    def train_epoch(self, progress: Progress = iter) -> str:
        """Pass over the replies once, keep the weights of improved depths, and return a report."""
        config, count = self.config, len(self.train)
        order = random.Random(config.seed + self.epoch).sample(range(count), count)
        batches = list(batches_of([self.train[i] for i in order], config.batch_tokens))
        for index, batch in enumerate(progress(batches)):
            share = (self.epoch + index / len(batches)) / config.epochs
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * (1 + math.cos(math.pi * share)) / 2
            self.train_step(batch)
        if not self._positions:
            raise EepolicyError(f"the replies have no {config.on} positions to fit on")
        self.epoch += 1
        metrics = self.evaluate()
        improved = self._keep_improved(metrics)
        self.epochs_without_gain = 0 if improved else self.epochs_without_gain + 1
        return (
            f"epoch {self.epoch}: mean KL {np.mean(metrics['kl']):.4f} nats, "
            f"{np.mean(self.before['kl']):.4f} before fitting; lower KL at {improved} of "
            f"{len(self.heads.depths)} depths"
        )

    def train_step(self, batch: Sequence[Document]) -> None:
        """Update the weights of all depths once."""
        states, full = self.hidden_states(batch), self.model.depth
        last = states.pop(full)
        self._positions += len(last)
        read = [HeadStates(depth, hidden) for depth, hidden in states.items()]
        add_gradients(self.heads, read, Teacher.of(self.model, last), self.config)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def hidden_states(self, batch: Sequence[Document]) -> dict[int, Tensor]:
        """Hidden states of the positions to fit on: by depth, (positions, width)."""
        states: dict[int, list[Tensor]] = {d: [] for d in (*self.heads.depths, self.model.depth)}
        for document in batch:
            inputs = document.inputs.to(self.model.device)
            span, chosen = slice(*document.span), None
            if self.config.on != "both":
                labels = document.labels(self.layout, self.model.depth)
                chosen = torch.from_numpy(labels[3] == Modality[self.config.on.upper()])
                chosen = chosen.to(inputs.device)
            for depth, hidden in enumerate(self.model.hidden_states(inputs[None]), start=1):
                if depth in states:
                    part = hidden[0, span]
                    # a view would keep the states of the prompt in memory
                    states[depth].append(part.clone() if chosen is None else part[chosen])
        return {depth: torch.cat(parts) for depth, parts in states.items()}

    def result(self) -> FitResult:
        """The best weights, rounded to half precision as a file stores them."""
        heads = copy.deepcopy(self.heads).requires_grad_(False)
        heads.load_state_dict(self.best)
        notes = {
            "fitting": asdict(self.config),
            "replies": len(self.train),
            "held_out_replies": len(self.held_out),
            "epochs": self.epoch,
            "before": self.before,
            "after": self.metrics,
        }
        return FitResult(heads.to(self.model.model.dtype), notes)

    def checkpoint(self) -> Checkpoint:
        """The state after an epoch."""
        tensors = {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= tensors_of_fit(self.heads, self.optimizer)
        return Checkpoint(
            self.identity, self.epoch, self.epochs_without_gain, self.metrics, tensors
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this fit.

        Raises:
            EepolicyError: a tensor or a metric is missing, or has another shape.
        """
        check_parts(checkpoint, self.heads, {*self.best}, self.metrics)
        self.epoch, self.metrics = checkpoint.epoch, checkpoint.metrics
        self.epochs_without_gain = checkpoint.epochs_without_gain
        restore_fit(self.heads, self.optimizer, checkpoint.tensors)
        self.best = {name: checkpoint.tensors[f"best.{name}"] for name in self.best}

    def _keep_improved(self, metrics: dict[str, list[float]]) -> int:
        """Keep weights and metrics of the depths whose KL fell, and return their number."""
        improved = [
            i for i, kl in enumerate(metrics["kl"]) if kl < self.metrics["kl"][i]
        ]  # indices of depths
        for i in improved:
            for name, values in metrics.items():
                self.metrics[name][i] = values[i]
            prefix = f"heads.{self.heads.depths[i]}."
            for name, parameter in self.heads.named_parameters():
                if name.startswith(prefix):
                    self.best[name] = _halved(parameter)
        return len(improved)


def _halved(parameter: Tensor) -> Tensor:
    """A copy in half precision on the CPU; shape kept."""
    return parameter.detach().cpu().half()


def digest_of(documents: Sequence[Document]) -> str:
    """A hash over the prompts and replies of documents."""
    hashed = hashlib.sha256()
    for document in documents:
        hashed.update(f"{document.prompt} {document.tokens.tolist()};".encode())
        if document.embeddings is not None:
            hashed.update(document.embeddings.cpu().float().numpy().tobytes())
    return hashed.hexdigest()


def batches_of(documents: Sequence[Document], positions: int) -> Iterator[list[Document]]:
    """Group documents into batches of at least so many positions; the last may have fewer."""
    batch: list[Document] = []
    count = 0
    for document in documents:
        batch.append(document)
        count += document.span[1] - document.span[0]
        if count >= positions:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch
