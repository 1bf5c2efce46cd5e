"""The backbone: the layer loop over a stock Hugging Face causal language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.heads.lens import LogitLens
from eepolicy.model.executor import LayerExecutor
from eepolicy.model.families import SLIDING, DecoderParts, Rotation, check_parts, parts_of
from eepolicy.model.kv_cache import KVCache, StoreOnly


class Backbone(LayerExecutor):
    """A stock decoder whose layers are called one by one.

    The model's own code is neither edited nor patched: it stays usable by itself.

    Args:
        model: a decoder-only causal language model of a family that has an adapter.
        heads: reads tokens out at depths below full; the plain logit lens where none is given.
        parts: an adapter's, for a family that has none.

    Raises:
        EepolicyError: the family has no adapter.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        heads: ExitHead | None = None,
        parts: DecoderParts | None = None,
    ) -> None:
        self.model = model.eval()
        self.parts = parts or parts_of(model)
        check_parts(model, self.parts)
        self.lens = LogitLens(self.parts.norm, self.parts.head, self.parts.logit_softcap)
        self.heads = heads or self.lens

    @property
    def depth(self) -> int:
        """Number of decoder layers: full depth."""
        return len(self.parts.layers)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """What enters the first layer.

        Args:
            tokens: ids (rows, tokens), or their embeddings (rows, tokens, width).
            positions: (rows or 1, tokens).

        Returns:
            (rows, tokens, width).
        """
        hidden = tokens if tokens.is_floating_point() else self.parts.embed(tokens)
        return (
            hidden
            if self.parts.position_embedding is None
            else hidden + self.parts.position_embedding(positions)
        )

    def rotations(self, tokens: int) -> dict[str, Rotation]:
        """Cosines and sines of the positions from 0, (1, tokens, d) each, by kind of attention."""
        if self.parts.rotary is None:
            return {}
        positions = torch.arange(tokens, device=self.model.device)[None]
        like = torch.empty(0, dtype=self.model.dtype, device=self.model.device)
        kinds = set(self.parts.attention)
        return {kind: self.parts.rotary(like, positions, kind) for kind in kinds}

    def block_masks(
        self,
        tokens: int,
        start: int,
        held: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """What each of a block attends to, by kind of attention.

        A block behind cached columns is causal from the lower right corner, a sliding layer sees a
        window of it, and each column sees itself, whether it is held or not.  One token alone that
        sees everything takes no mask, nor does a block with nothing before it under sdpa: without
        one its attention is causal, and the heads that share keys need no copies of them.

        Args:
            tokens: columns of the block.
            start: its first column.
            held: (rows, start + tokens) of bool, the columns that hold something; None for all.
            positions: (rows, start + tokens), true positions for the windows, where columns were
                dropped; columns that follow each other otherwise.

        Returns:
            (rows or 1, 1, tokens, start + tokens) each, of bool for sdpa and additive for eager
            attention.
        """
        return {
            kind: self._block_mask(
                self.parts.window if kind == SLIDING else None, tokens, start, held, positions
            )
            for kind in set(self.parts.attention)
        }

    def _block_mask(
        self,
        window: int | None,
        tokens: int,
        start: int,
        held: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor | None:
        end = start + tokens
        eager = self.model.config._attn_implementation == "eager"
        causal_by_itself = tokens == 1 or (start == 0 and not eager)
        if causal_by_itself and held is None and (window is None or end <= window):
            return None
        device = self.model.device
        seen = torch.ones((tokens, end), dtype=torch.bool, device=device).tril(start)
        if window is not None and positions is None:
            seen = seen.triu(start - window + 1)
        seen = seen[None]
        if window is not None and positions is not None:
            seen = seen & (positions[:, start:, None] - positions[:, None] < window)
        if held is not None:
            columns = torch.arange(end, device=device)
            seen = (seen & held[:, None]) | (columns == columns[start:, None])
        if eager:
            least = torch.finfo(self.model.dtype).min
            empty = torch.zeros(seen.shape, dtype=self.model.dtype, device=device)
            return empty.masked_fill(~seen, least)[:, None]
        return seen[:, None]

    def run_layer(
        self,
        index: int,
        hidden: Tensor,
        rotations: dict[str, Rotation],
        masks: dict[str, Tensor | None],
        cache: KVCache | None = None,
    ) -> Tensor:
        """Run one layer.

        Args:
            index: the layer, from 0.
            hidden: (rows, tokens, width).
            rotations: of the tokens' positions, by kind of attention.
            masks: from `block_masks`.
            cache: takes the new keys and values and gives those to attend to.

        Returns:
            (rows, tokens, width).
        """
        kind = self.parts.attention[index]
        arguments: dict[str, Any] = {"position_embeddings": rotations[kind]} if rotations else {}
        out: Tensor | tuple[Tensor, ...] = self.parts.layers[index](
            hidden,
            attention_mask=masks[kind],
            past_key_values=cache,
            use_cache=cache is not None,
            **arguments,
        )
        return out[0] if isinstance(out, tuple) else out

    def fill_layer(
        self, index: int, hidden: Tensor, rotations: dict[str, Rotation], cache: KVCache
    ) -> None:
        """Store what one layer makes of hidden states as keys and values, and run no further.

        Args:
            index: the layer, from 0.
            hidden: (rows, 1, width).
            rotations: of the tokens' positions, by kind of attention.
            cache: addressed with `store_only`.
        """
        with suppress(StoreOnly):
            unmasked = dict.fromkeys(self.parts.attention)
            self.run_layer(index, hidden, rotations, unmasked, cache)

    def hidden_states(self, ids: Tensor) -> Iterator[Tensor]:
        """The hidden state after each layer, before any norm, one by one.

        Args:
            ids: (1, tokens).

        Yields:
            (1, tokens, width), depth 1 first.
        """
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden, rotations = self.embed(ids, positions), self.rotations(ids.shape[1])
        masks = self.block_masks(ids.shape[1], 0)
        for index in range(self.depth):
            hidden = self.run_layer(index, hidden, rotations, masks)
            yield hidden

    def logits(self, hidden: Tensor, depth: int, over: Sequence[tuple[int, int]] = ()) -> Tensor:
        """What is read out of hidden states at a depth: (..., width) -> (..., vocabulary).

        At full depth this is the model's own norm and head, below it the exit head.

        Args:
            hidden: after so many layers.
            depth: the layers.
            over: half-open ranges of ids that alone are read out, for the price of their rows of
                the output embedding; all others get the least number there is.  None for all ids.
        """
        head = self.lens if depth == self.depth else self.heads
        if over:
            return head.logits_among(hidden, depth, over, self.model.config.vocab_size)
        logits = head.logits(hidden, depth)
        if logits.shape[-1] != self.model.config.vocab_size:
            raise EepolicyError(
                f"{head!r} reads out {logits.shape[-1]} of {self.model.config.vocab_size} tokens; "
                "a reply needs all of them"
            )
        return logits
