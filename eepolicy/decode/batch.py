"""Rows side by side in the layers: how far up each of their positions has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eepolicy.decode.fills.base import Fill
from eepolicy.decode.rebatch import LayerCosts
from eepolicy.decode.recorder import Recorder
from eepolicy.hooked import HookedModel
from eepolicy.model.executor import LayerExecutor
from eepolicy.model.families import Rotation
from eepolicy.model.kv_cache import Rows


@dataclass
class Block:
    """The newest columns of the rows that are on their way up together.

    Attributes:
        rows: of the batch, rising.
        hidden: (rows, columns, width) after `depth` layers; the newest column is the last one.
        missing: of each row, how many of the columns are its own; the others, in front, only fill
            up to the widest row.
        depth: layers that have run on the newest column.
    """

    rows: list[int]
    hidden: Tensor
    missing: list[int]
    depth: int = 0

    def select(self, keep: Sequence[int]) -> Block:
        """Some of the rows, by their places in the block."""
        missing = [self.missing[i] for i in keep]
        hidden = self.hidden[torch.tensor(keep, device=self.hidden.device)]
        # what only filled up a wider row goes with it
        hidden = hidden[:, hidden.shape[1] - max(missing, default=0) :]
        return Block([self.rows[i] for i in keep], hidden, missing, self.depth)


class Batch:
    """Rows that are decoded side by side, each position as deep as it is sent.

    Prompts are padded on the left, so that the rows' newest positions share a column.  With the
    fill `catch_up`, positions that stopped below full depth wait, their hidden states in `waiting`.
    Whoever runs a layer attends to all earlier positions there, so it takes along those of its row
    that miss it: a row's columns that have run a layer are always its first ones, and `done` counts
    them.

    Args:
        model: whose layers run.
        padding: of each row, empty columns in front of its prompt.
        capacity: columns to make room for; more is made where they do not suffice.
        fill: what becomes of the keys and values above an exit; catch-up where none is given.
        recorder: is told of every token that is fed after the prompt, and of every layer it runs.
        layers: run in place of the model's own.
        in_speech: ranges of ids that speech is read out over; all where none are given.
        costs: of a layer call, for a fill that asks for them.

    Attributes:
        done: `done[row][layer]`, columns that need the layer no more.
        columns: columns so far.
        prefilled: layer calls on a prompt by itself.
        calls: of each row, layer calls it took part in since `enter`.
        positions: of each row, positions that went through a layer since `enter`.
        filled: of each row, layers that stored keys and values alone since `enter`.
    """

    def __init__(
        self,
        model: HookedModel,
        padding: Sequence[int],
        capacity: int,
        fill: Fill | None = None,
        recorder: Recorder | None = None,
        layers: LayerExecutor | None = None,
        in_speech: Sequence[tuple[int, int]] = (),
        costs: LayerCosts | None = None,
    ) -> None:
        self.model, self.costs = model, costs
        self._device: torch.device = model.model.device  # asking takes as long as a small product
        self._run_layers = (layers or model).run_layers
        self._fill_layer = (layers or model).fill_layer
        self.read = (layers or model).logits
        self.in_speech = in_speech
        self.padding = list(padding)
        self.cache = (layers or model).open_cache(len(padding), capacity)
        self.capacity = capacity
        self.fill = fill or Fill()
        self.recorder = recorder
        self.columns = self.prefilled = 0
        self.done = [[0] * model.depth for _ in padding]
        self.calls, self.positions, self.filled = ([0] * len(padding) for _ in range(3))
        self._held = list(range(len(padding)))  # rows that have a place in what is stored
        self._shift = list(padding)  # of each row, a column's place less its true position
        self._rotations = model.rotations(capacity)
        self._waiting: Tensor | None = None
        self._numbers: dict[tuple[int, ...], Tensor] = {}
        #: depth of each column, (rows, capacity), where some were left out for good, and at which
        self._reached: Tensor | None = None
        self._left_at: set[int] = set()
        #: columns whose tokens were dropped, (rows, capacity) of bool, where there are some
        self._dropped: Tensor | None = None

    def prefill(self, prompt: Tensor) -> None:
        """Run prompts at full depth.

        Args:
            prompt: (rows, tokens) of ids or (rows, tokens, width) of embeddings, padded on the
                left.
        """
        if prompt.shape[1]:
            self.run(self.enter_block(prompt), self.model.depth)
            self.prefilled += self.model.depth

    def enter_block(self, tokens: Tensor) -> Block:
        """Feed several tokens to every row: (rows, tokens) of ids, or (rows, tokens, width).

        Whoever runs the block runs it to full depth.
        """
        return self._block(tokens, list(range(len(tokens))))

    def enter(self, tokens: Tensor, rows: list[int]) -> Block:
        """Feed a token to some rows, with what lies before it of a prompt.

        Rows that get none are left behind: they cannot be fed again.

        Args:
            tokens: ids (rows, columns) or embeddings (rows, columns, width), the newest one last;
                where there are several, whoever runs the block runs it to full depth.
            rows: of the batch, rising.
        """
        block = self._block(tokens, rows)
        for row in rows:  # a prompt's positions are not the token's
            self.positions[row] = -(tokens.shape[1] - 1) * self.model.depth
        if self.recorder is not None:
            self.recorder.enter(rows, block.hidden)
        return block

    def run(self, block: Block, depth: int) -> None:
        """Run a block up to a depth, with what waits on the way."""
        rows = self._index(block.rows)
        masks: dict[str, Tensor | None] = {}
        rotations: dict[str, Rotation] = {}
        width, layer = 0, block.depth
        while layer < depth:
            missing = [self.columns - self.done[row][layer] for row in block.rows]
            if missing != block.missing:
                self._join(block, missing, rows)
            if block.hidden.shape[1] != width:  # it only grows, where others waited
                width = block.hidden.shape[1]
                masks = self._masks(block.rows, width, layer)
                rotations = self._rotated(block.rows, width)
            elif layer in self._left_at:  # from here on more is left out
                masks = self._masks(block.rows, width, layer)
            behind = self._stretch(block.rows, layer, depth)
            self.cache.set_slots(rows, self.columns - width, self.columns, self._fresh(block))
            block.hidden = self._run_layers(
                layer, behind, block.hidden, rotations, masks, self.cache
            )
            for row, own in zip(block.rows, missing, strict=True):
                self.done[row][layer:behind] = [self.columns] * (behind - layer)
                self.calls[row] += behind - layer
                self.positions[row] += own * (behind - layer)
            if self.recorder is not None:
                self.recorder.ran(block.rows, missing, behind, block.hidden)
            layer = behind
        block.depth = depth

    def leave(self, block: Block) -> None:
        """Rows stop where they are, their newest position read out; fill what they miss."""
        if block.depth == self.model.depth:
            return
        if self.fill.way == "catch_up":
            most = self.fill.max_pending or self.capacity
            stay = [i for i, row in enumerate(block.rows) if self.pending(row) <= most]
            if len(stay) < len(block.rows):
                over = sorted({*range(len(block.rows))} - {*stay})
                self.run(block.select(over), self.model.depth)
            if stay:
                self._wait(block.select(stay) if len(stay) < len(block.rows) else block)
            return
        if self.fill.way == "propagate":
            self._propagate(block)
        else:
            self._leave_out(block)
        for row in block.rows:
            self.done[row][block.depth :] = [self.columns] * (self.model.depth - block.depth)

    def flush(self, rows: list[int]) -> dict[int, Tensor]:
        """Run all that waits of some rows, rising, up to full depth.

        Only for rows whose newest position waits.  Those that wait at one depth run together.

        Returns:
            Hidden states of what waited, (columns, width), by row.
        """
        states: dict[int, Tensor] = {}
        at: dict[int, list[int]] = {}
        for row in rows:
            depth = next(i for i, done in enumerate(self.done[row]) if done < self.columns)
            at.setdefault(depth, []).append(row)
        for depth, here in at.items():
            missing = [self.columns - self.done[row][depth] for row in here]
            columns = slice(self.columns - max(missing), self.columns)
            hidden = self._waited(self._index(here), columns)
            block = Block(here, hidden, missing, depth)
            self.run(block, self.model.depth)
            own = zip(here, block.hidden, block.missing, strict=True)
            states |= {row: hidden[-count:] for row, hidden, count in own}
        return states

    def keep(self, rows: list[int]) -> None:
        """Forget all other rows, which have ended."""
        places = self._places(rows)
        self.cache.keep(places, self.columns)
        self._held = list(rows)
        if self._waiting is not None:
            self._waiting = self._waiting[places]
        if self._reached is not None:
            self._reached = self._reached[places]
        if self._dropped is not None:
            self._dropped = self._dropped[places]

    def drop(self, counts: dict[int, int], rows: list[int]) -> None:
        """Forget the newest columns of some rows.

        What all rows drop is used again; what only some drop stays empty in them.

        Args:
            counts: columns to drop, by row; those rows have run all layers.
            rows: that go on.
        """
        if self.recorder is not None:
            self.recorder.drop(counts)
        common = min(counts.get(row, 0) for row in rows)
        self.columns -= common
        for row in rows:
            self.done[row] = [min(done, self.columns) for done in self.done[row]]
        if common and self._dropped is not None:
            self._dropped[:, self.columns :] = False
        for row, count in counts.items():
            if count > common and row in rows:
                if self._dropped is None:
                    shape = (len(self._held), self.capacity)
                    self._dropped = torch.zeros(shape, dtype=torch.bool, device=self._device)
                gone = slice(self.columns - (count - common), self.columns)
                self._dropped[self._held.index(row), gone] = True
                self._shift[row] += count - common

    def paid(self, row: int) -> tuple[int, int, int]:
        """Layer calls, positions through layers and layers filled of a row since `enter`."""
        return self.calls[row], self.positions[row], self.filled[row]

    def pending(self, row: int) -> int:
        """Positions of a row that have not run all layers."""
        return self.columns - self.done[row][-1]

    def _wait(self, block: Block) -> None:
        """Let a block wait where it is."""
        if self._waiting is None:
            shape = (len(self._held), self.capacity, block.hidden.shape[2])
            self._waiting = block.hidden.new_zeros(shape)
        rows, fresh = self._index(block.rows), self._fresh(block)
        columns = slice(self.columns - block.hidden.shape[1], self.columns)
        hidden = block.hidden
        if fresh is not None:
            hidden = torch.where(fresh[..., None], hidden, self._waited(rows, columns))
        self._waiting[rows, columns] = hidden

    def _waited(self, rows: Rows, columns: slice) -> Tensor:
        """What waits in some columns: (rows, columns, width)."""
        assert self._waiting is not None
        return self._waiting[rows, columns]

    def _propagate(self, block: Block) -> None:
        """Make the keys and values of the layers above from the hidden state of the exit."""
        rotations = self._rotated(block.rows, 1)
        rows = self._index(block.rows)
        for layer in range(block.depth, self.model.depth):
            self.cache.set_slots(rows, self.columns - 1, self.columns, store_only=True)
            self._fill_layer(layer, block.hidden, rotations, self.cache)
        for row in block.rows:
            self.filled[row] += self.model.depth - block.depth

    def _leave_out(self, block: Block) -> None:
        """Note that nobody may attend to the newest column above its depth."""
        if self._reached is None:
            shape = (len(self._held), self.capacity)
            self._reached = torch.full(shape, self.model.depth, device=block.hidden.device)
        self._reached[self._places(block.rows), self.columns - 1] = block.depth
        self._left_at.add(block.depth)

    def _block(self, tokens: Tensor, rows: list[int]) -> Block:
        start, width = self.columns, tokens.shape[1]
        self.columns += width
        if self.columns > self.capacity:
            self._grow(2 * self.columns)
        for row in rows:
            self.calls[row] = self.positions[row] = self.filled[row] = 0
        positions = self._positions(rows, start, self.columns)
        return Block(rows, self.model.embed(tokens, positions), [width] * len(rows))

    def _places(self, rows: list[int]) -> Tensor:
        """Where rows lie in what is stored."""
        return self._on_device([self._held.index(row) for row in rows])

    def _on_device(self, numbers: list[int]) -> Tensor:
        """Numbers on the device: (numbers,).

        The host waits for all that the device has to do while it hands them over, so they are kept.
        """
        found = self._numbers.get(tuple(numbers))
        if found is None:
            found = torch.tensor(numbers, device=self._device)
            self._numbers[tuple(numbers)] = found
        return found

    def _index(self, rows: list[int]) -> Rows:
        """Where rows lie in what is stored: a part of it where they follow each other."""
        if self.needs_gather(rows):
            return self._places(rows)
        first = self._held.index(rows[0])
        return slice(first, first + len(rows))

    def needs_gather(self, rows: list[int]) -> bool:
        """Whether rows, rising, do not follow each other in what is stored."""
        return self._held.index(rows[-1]) - self._held.index(rows[0]) >= len(rows)

    def _shifted(self) -> bool:
        """Whether any row's columns are not its true positions."""
        return any(self._shift[row] for row in self._held)

    def _stretch(self, rows: list[int], layer: int, depth: int) -> int:
        """Behind which layer something else goes along, or is attended to, or recorded."""
        behind = layer + 1
        if self.recorder is not None:
            return behind
        done = [self.done[row] for row in rows]
        while behind < depth and behind not in self._left_at:
            if any(row[behind] != row[layer] for row in done):
                break
            behind += 1
        return behind

    def _join(self, block: Block, missing: list[int], rows: Rows) -> None:
        """Take along what waits: of each row, so many columns are now its own."""
        width, before = max(missing), block.hidden.shape[1]
        if width > before:
            columns = slice(self.columns - width, self.columns - before)
            block.hidden = torch.cat([self._waited(rows, columns), block.hidden], 1)
        if min(block.missing) < before:  # columns that only filled a row up become its own
            columns = slice(self.columns - block.hidden.shape[1], self.columns)
            own = self._fresh(block)
            assert own is not None
            block.hidden = torch.where(own[..., None], block.hidden, self._waited(rows, columns))
        block.missing = missing

    def _fresh(self, block: Block) -> Tensor | None:
        """Which columns of a block are a row's own: (rows, columns); None where all are."""
        width = block.hidden.shape[1]
        if min(block.missing) == width:
            return None
        missing = self._on_device(block.missing).to(block.hidden.device)
        return torch.arange(width, device=missing.device) >= width - missing[:, None]

    def _grow(self, capacity: int) -> None:
        """Make room for more columns."""
        more = capacity - self.capacity
        self.cache.grow(capacity)
        self._rotations = self.model.rotations(capacity)
        if self._waiting is not None:
            self._waiting = F.pad(self._waiting, (0, 0, 0, more))
        if self._reached is not None:
            self._reached = F.pad(self._reached, (0, more), value=self.model.depth)
        if self._dropped is not None:
            self._dropped = F.pad(self._dropped, (0, more))
        self.capacity = capacity

    def _positions(self, rows: list[int], start: int, end: int) -> Tensor:
        """True positions of new columns: (rows, columns), or (1, columns) where none is shifted."""
        columns = torch.arange(start, end, device=self._device)[None]
        if not self._shifted():
            return columns
        shift = self._on_device([self._shift[row] for row in rows])
        return (columns - shift[:, None]).clamp(min=0)

    def _rotated(self, rows: list[int], width: int) -> dict[str, Rotation]:
        """Cosines and sines of the newest columns, by kind of attention."""
        if not self._shifted():
            newest = slice(self.columns - width, self.columns)
            return {
                k: (cos[0, newest][None], sin[0, newest][None])
                for k, (cos, sin) in self._rotations.items()
            }
        at = self._positions(rows, self.columns - width, self.columns)
        return {k: (cos[0][at], sin[0][at]) for k, (cos, sin) in self._rotations.items()}

    def _masks(self, rows: list[int], width: int, layer: int) -> dict[str, Tensor | None]:
        """Masks of the newest columns, at a layer where some columns may be left out."""
        held, positions = None, None
        if any(self.padding[row] for row in self._held):
            padding = self._on_device([self.padding[row] for row in rows])
            held = torch.arange(self.columns, device=self._device) >= padding[:, None]
        if self._dropped is not None:
            kept = ~self._dropped[self._places(rows), : self.columns]
            held = kept if held is None else held & kept
            positions = held.cumsum(1)
        if self._reached is not None and min(self._left_at) <= layer:
            reached = self._reached[self._places(rows), : self.columns] > layer
            held = reached if held is None else held & reached
        return self.model.block_masks(width, self.columns - width, held, positions)
