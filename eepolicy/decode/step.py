"""One position through the layers, as deep as a policy says; what waits is caught up on the way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from eepolicy.cache import LayeredCache, Pending
from eepolicy.decode.readout import LazyReadout
from eepolicy.errors import EepolicyError
from eepolicy.model.hooked import HookedModel
from eepolicy.policies import ExitPolicy, Step


@dataclass
class Stepper:
    """The state of one row while it is decoded.

    Attributes:
        model: whose layers run.
        cache: keys and values of each layer.
        pending: positions that exited early.
        rotations: cosines and sines of all positions.
        length: positions that have been fed.
        layer_calls: calls of a layer in the last step.
        layer_positions: positions that went through a layer in the last step.
    """

    model: HookedModel
    cache: LayeredCache
    pending: Pending
    rotations: tuple[Tensor, Tensor]
    length: int = 0
    layer_calls: int = 0
    layer_positions: int = 0

    @classmethod
    def for_positions(cls, model: HookedModel, capacity: int) -> Stepper:
        """A fresh row of at most `capacity` positions."""
        return cls(model, model.new_cache(capacity), Pending(), model.rotations(capacity))

    def prefill(self, ids: Tensor) -> None:
        """Run positions at full depth: ids (tokens,)."""
        if len(ids):
            block = self.model.parts.embed(ids[None])
            self.length += len(ids)
            self._run(block, 0, self.model.depth)

    def step(self, token: Tensor, policy: ExitPolicy, step: Step) -> tuple[Tensor, int, int]:
        """Feed one token, go as deep as the policy says, and read the next one's logits out.

        Args:
            token: (1, 1).
            policy: which names the depth.
            step: what it may know.

        Returns:
            Logits (1, vocabulary), the depth, and the head evaluations that were paid.

        Raises:
            EepolicyError: the policy names a depth that the model does not have.
        """
        block = self.model.parts.embed(token)
        self.length += 1
        self.layer_calls = self.layer_positions = 0
        limit = int(policy.depths(step))
        if not 1 <= limit <= self.model.depth:
            raise EepolicyError(
                f"{policy!r} gave depth {limit}, but the model has depths 1 to {self.model.depth}"
            )
        depth, readouts = 0, 0
        for look in policy.looks(step):
            if look >= limit:
                break
            if look <= depth:
                raise EepolicyError(
                    f"{policy!r} looks at depths {policy.looks(step)}: they must rise from 1"
                )
            block = self._run(block, depth, look)
            depth = look
            readout = LazyReadout(block[:, -1], partial(self.model.logits, depth=look))
            leaves = bool(policy.exits(step, look, readout))
            readouts += readout.paid
            if leaves:
                if not readout.paid:
                    readouts += 1
                self._wait(depth, block)
                return readout.logits, depth, readouts
        block = self._run(block, depth, limit)
        self._wait(limit, block)
        return self.model.logits(block[:, -1], limit), limit, readouts + 1

    def _run(self, block: Tensor, start: int, stop: int) -> Tensor:
        """Layers start to stop - 1 on a block and on what waits at them."""
        mask, width = None, 0
        for index in range(start, stop):
            block = self.pending.take(index, block)
            first = self.length - block.shape[1]
            if block.shape[1] != width:  # it only grows where others waited
                width = block.shape[1]
                mask = self.model.block_mask(width, first)
            block = self.model.run_layer(index, block, self.rotations, mask, first, self.cache)
            self.layer_calls += 1
            self.layer_positions += block.shape[1]
        return block

    def _wait(self, depth: int, block: Tensor) -> None:
        if depth < self.model.depth:
            self.pending.put(depth, block)
