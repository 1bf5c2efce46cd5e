"""One stage of fitting rounds: fit the head of one depth on stored states."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eepolicy.errors import EepolicyError
from eepolicy.fitting.batch_gradients import add_batch_gradients
from eepolicy.fitting.checkpoint import Checkpoint, restore_fit, tensors_of_fit
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.gradients import frozen
from eepolicy.fitting.state_batch import StateBatch
from eepolicy.fitting.states import StateStore
from eepolicy.heads.fitted import FittedHead
from eepolicy.hooked import HookedModel

#: steps over which the learning rate rises
WARM_UP = 50
#: smallest learning rate, as a share of the largest
LAST_RATE = 0.02
#: largest norm of the gradient
MAX_NORM = 1.0
#: steps between checkpoints within an epoch
CHECKPOINT_STEPS = 100


@dataclass(frozen=True)
class Schedule:
    """The steps of a stage.

    Attributes:
        epochs: number of passes over the replies.
        rate: largest learning rate.
        seed: seed of the order of the batches.
    """

    epochs: int
    rate: float
    seed: int

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate: a linear rise, then a linear fall to `LAST_RATE`.

        Args:
            step: number of finished steps.
            steps: number of all steps.
        """
        return self.rate * min(1, (step + 1) / WARM_UP) * max(LAST_RATE, 1 - step / steps)


class StageFit:
    """Fits the head of one depth on the states of replies.

    Args:
        model: the model.
        heads: head of one depth, in float32; its weights change.
        config: loss and chunk.
        schedule: epochs and learning rate.
        checkpoint: file that is written every `CHECKPOINT_STEPS` steps.
        identity: what a checkpoint must share, as JSON types.
    """

    def __init__(
        self,
        model: HookedModel,
        heads: FittedHead,
        config: FitConfig,
        schedule: Schedule,
        checkpoint: Path,
        identity: dict[str, Any],
    ) -> None:
        self.model, self.heads, self.config = model, heads, config
        self.schedule, self.file, self.identity = schedule, checkpoint, identity
        self.heads.requires_grad_()
        # one parameter at a time: no buffers as large as all weights
        self.optimizer = torch.optim.AdamW(
            self.heads.parameters(), betas=(0.9, 0.98), weight_decay=0.01, foreach=False
        )
        self.epoch = self.step = 0

    def run(
        self,
        files: Sequence[tuple[StateStore, Path]],
        progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> None:
        """Fit, from the checkpoint if there is one.

        Args:
            files: stores with their files, a file a step.
            progress: wraps the steps of an epoch.

        Raises:
            EepolicyError: the replies have no position to fit on, or the checkpoint is of another
                fit.
        """
        if self.file.exists():
            self._restore(Checkpoint.read(self.file, self.identity))
        with frozen(self.model.model):
            self._run(files, progress)
        self.heads.requires_grad_(False)

    def _run(
        self,
        files: Sequence[tuple[StateStore, Path]],
        progress: Callable[[Iterable[Any]], Iterable[Any]],
    ) -> None:
        steps = len(files) * self.schedule.epochs
        while self.epoch < self.schedule.epochs:
            order = random.Random(f"{self.schedule.seed} {self.epoch}").sample(
                range(len(files)), len(files)
            )
            is_first, num_fitted = self.epoch == self.step == 0, 0
            for index in progress(order[self.step :]):
                done = self.epoch * len(files) + self.step
                for group in self.optimizer.param_groups:
                    group["lr"] = self.schedule.rate_at(done, steps)
                store, file = files[index]
                num_fitted += self._step(store.read(file, self.model.device, torch.float32))
                self.step += 1
                if self.step % CHECKPOINT_STEPS == 0:
                    self._checkpoint()
            if is_first and not num_fitted:
                raise EepolicyError(f"the replies to fit on have no {self.config.on} positions")
            self.epoch, self.step = self.epoch + 1, 0
            self._checkpoint()

    def _step(self, batch: StateBatch) -> int:
        """Fit on a batch; gives the number of its positions."""
        if not len(batch.last):
            return 0
        add_batch_gradients(self.model, self.heads, self.config, batch)
        nn.utils.clip_grad_norm_(self.heads.parameters(), MAX_NORM, foreach=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return len(batch.last)

    def _checkpoint(self) -> None:
        tensors = tensors_of_fit(self.heads, self.optimizer)
        Checkpoint(self.identity, self.epoch, 0, {}, tensors, self.step).write(self.file)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        restore_fit(self.heads, self.optimizer, checkpoint.tensors)
