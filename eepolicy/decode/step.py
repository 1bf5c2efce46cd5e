"""One position through the layers, as deep as a policy says; what waits is caught up on the way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from eepolicy.cache import LayeredCache, Pending
from eepolicy.decode.readout import LazyReadout
from eepolicy.errors import EepolicyError
from eepolicy.model.adapters import Rotation
from eepolicy.model.hooked import HookedModel
from eepolicy.policies import ExitPolicy, Step


class Seen:
    """The looks of one step, in order, and what they cost.

    Args:
        model: which reads out.
        full: the look at full depth, for policies that are not realisable.
    """

    def __init__(self, model: HookedModel, full: LazyReadout | None = None) -> None:
        self.model = model
        self.full = full
        self.looks: list[LazyReadout] = []

    def look(self, depth: int, hidden: Tensor) -> LazyReadout:
        """One more look: hidden (rows, width)."""
        previous = self.looks[-1] if self.looks else None
        self.looks.append(LazyReadout(depth, hidden, self.model.logits, previous, self.full))
        return self.looks[-1]

    @property
    def paid(self) -> int:
        """Head evaluations so far."""
        return sum(look.paid for look in [*self.looks, *([self.full] if self.full else [])])


@dataclass
class Stepper:
    """The state of one row while it is decoded.

    Attributes:
        model: whose layers run.
        cache: keys and values of each layer.
        pending: positions that exited early.
        rotations: cosines and sines of all positions, by kind of attention.
        length: positions that have been fed.
        layer_calls: calls of a layer in the last step.
        layer_positions: positions that went through a layer in the last step.
    """

    model: HookedModel
    cache: LayeredCache
    pending: Pending
    rotations: dict[str, Rotation]
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
            block = self.model.embed(ids[None], self.length)
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
        block = self.model.embed(token, self.length)
        self.length += 1
        self.layer_calls = self.layer_positions = 0
        limit = int(policy.depths(step))
        if not 1 <= limit <= self.model.depth:
            raise EepolicyError(
                f"{policy!r} gave depth {limit}, but the model has depths 1 to {self.model.depth}"
            )
        looks = [look for look in policy.looks(step) if look < limit]
        if looks != sorted(set(looks)) or min(looks, default=1) < 1:
            raise EepolicyError(
                f"{policy!r} looks at depths {policy.looks(step)}: they must rise from 1"
            )
        if not policy.realisable:
            return self._in_hindsight(block, looks, policy, step)
        depth, seen = 0, Seen(self.model)
        for look in looks:
            block = self._run(block, depth, look)
            depth = look
            readout = seen.look(depth, block[:, -1])
            if bool(policy.exits(step, depth, readout)):
                self._wait(depth, block)
                return readout.logits, depth, seen.paid
        block = self._run(block, depth, limit)
        self._wait(limit, block)
        return seen.look(limit, block[:, -1]).logits, limit, seen.paid

    def _in_hindsight(
        self, block: Tensor, looks: list[int], policy: ExitPolicy, step: Step
    ) -> tuple[Tensor, int, int]:
        """`step` for a policy that asks the full model first: every layer runs before its looks."""
        depth, states = 0, []
        for stop in [*looks, self.model.depth]:
            block = self._run(block, depth, stop)
            depth = stop
            states.append(block[:, -1])
        full = LazyReadout(depth, states[-1], self.model.logits)
        seen = Seen(self.model, full)
        for look, hidden in zip(looks, states, strict=False):
            readout = seen.look(look, hidden)
            if bool(policy.exits(step, look, readout)):
                return readout.logits, look, seen.paid
        return full.logits, depth, seen.paid

    def _run(self, block: Tensor, start: int, stop: int) -> Tensor:
        """Layers start to stop - 1 on a block and on what waits at them."""
        masks: dict[str, Tensor | None] = {}
        width = 0
        for index in range(start, stop):
            block = self.pending.take(index, block)
            first = self.length - block.shape[1]
            if block.shape[1] != width:  # it only grows where others waited
                width = block.shape[1]
                masks = self.model.block_masks(width, first)
            block = self.model.run_layer(index, block, self.rotations, masks, first, self.cache)
            self.layer_calls += 1
            self.layer_positions += block.shape[1]
        return block

    def _wait(self, depth: int, block: Tensor) -> None:
        if depth < self.model.depth:
            self.pending.put(depth, block)
