"""The backbone: the layer loop over a stock Hugging Face causal language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.guard import Guard, wrong_result
from eepolicy.heads.base import ExitHead
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.predictor import ExitPredictor, check_predicted
from eepolicy.heads.weights import device_of
from eepolicy.model.changes import PartPlaces, lens_of, stock_model, update_lenses
from eepolicy.model.executor import LayerExecutor
from eepolicy.model.families import (
    DecoderParts,
    Rotation,
    check_parts,
    check_weights,
    parts_of,
    text_config,
    with_stable_rotations,
)
from eepolicy.model.kv_cache import KVCache, LayerKV, StoreOnly
from eepolicy.model.masks import BlockColumns, MaskForm, block_mask
from eepolicy.returned import check_numbers


class Backbone(LayerExecutor):
    """A stock decoder-only model whose layers can be run one by one.

    The backbone calls the stock layers.  It neither edits nor patches the model.

    Args:
        model: causal language model of a family with an adapter.
        heads: exit heads for depths below full depth; default: the logit lens.
        parts: parts of a model whose family has no adapter.

    Attributes:
        model: the stock model.
        text_config: config of the decoder, which is a part of a multimodal model's config.
        layers: the decoder layers of the model, then those that the heads own.
        attention: kind of attention of each of them.
        predictor: predicts whether the heads agree with the full model, for policies that read
            `Readout.exit_probability`; None for none.

    Raises:
        EepolicyError: the family has no adapter, or the model has no weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        heads: ExitHead | None = None,
        parts: DecoderParts | None = None,
    ) -> None:
        self.model = stock_model(model, parts is not None).eval()
        check_weights(self.model)
        self.text_config = text_config(self.model)
        self._has_own_parts = parts is not None
        self._take_parts(with_stable_rotations(self.model, parts or parts_of(self.model)))
        self._lens = lens_of(self._parts)
        self.heads = heads or self._lens
        self.predictor: ExitPredictor | None = None

    def _take_parts(self, parts: DecoderParts) -> None:
        check_parts(self.model, parts)
        self._parts, self._places = parts, PartPlaces(self.model, parts)
        self._depth = len(parts.layers)  # a ModuleList takes a microsecond to count itself

    def _update(self) -> None:
        """Take the modules of the model anew where others have taken their places."""
        if self._places.are_current():
            return
        before = self._parts
        if self._has_own_parts:
            own = self._places.resolve(before)
        else:
            own = with_stable_rotations(self.model, parts_of(self.model))
        self._take_parts(own)
        update_lenses((self._lens, self._heads), before, own)
        self.heads = self._heads

    @property
    def parts(self) -> DecoderParts:
        """The parts of the model, as the layer loop uses them."""
        self._update()
        return self._parts

    @property
    def lens(self) -> LogitLens:
        """The final norm and output embedding of the model."""
        self._update()
        return self._lens

    @property
    def heads(self) -> ExitHead:
        """Exit heads for depths below full depth."""
        self._update()
        return self._heads

    @heads.setter
    def heads(self, heads: ExitHead) -> None:
        self._heads = heads
        layers, attention = [*self.parts.layers], [*self.parts.attention]
        self._branches: dict[int, range] = {}
        for depth in heads.branch_depths:
            own = heads.layers_at(depth)
            self._branches[depth] = range(len(layers), len(layers) + len(own))
            layers += own
            attention += [self.parts.attention[i] for i in heads.sources_at(depth)]
        self.layers, self.attention = tuple(layers), tuple(attention)

    def with_heads(self, heads: ExitHead | None) -> Backbone:
        """A backbone of the same model whose layers include those of some heads.

        Args:
            heads: exit heads; None for those of this backbone.

        Returns:
            This backbone, unless the heads are others that own layers.
        """
        if heads is None or heads is self.heads or not heads.branch_depths:
            return self
        return Backbone(self.model, heads, self.parts)

    @property
    def branches(self) -> Mapping[int, range]:
        """Indices in `layers` of the layers that the heads own, by depth."""
        return self._branches

    @property
    def depth(self) -> int:
        """Number of decoder layers, which is full depth."""
        return self._depth

    @property
    def num_layers(self) -> int:
        """Number of decoder layers, those of the heads included."""
        return len(self.layers)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return device_of(self.model)

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary."""
        return int(self.text_config.vocab_size)

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.text_config.hidden_size)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Input of the first layer.

        Args:
            tokens: ids (rows, tokens), or embeddings (rows, tokens, width).
            positions: (rows or 1, tokens).

        Returns:
            (rows, tokens, width).
        """
        hidden = tokens if tokens.is_floating_point() else self.parts.embed(tokens)
        if self.parts.scale_input is not None:
            hidden = self.parts.scale_input(hidden)
        if self.parts.position_embedding is None:
            return hidden
        return hidden + self.parts.position_embedding(positions)

    def check_length(self, tokens: int) -> None:
        """Refuse a text with more tokens than the model has positions.

        Raises:
            EepolicyError: with both numbers.
        """
        limit = self.parts.max_positions
        if limit is not None and tokens > limit:
            raise EepolicyError(
                f"the model has positions for {limit} tokens here, and prompt and reply need "
                f"{tokens}: give a shorter prompt or a lower max_new_tokens"
            )

    def rotations(self, tokens: int) -> dict[str, Rotation]:
        """What layers read about positions 0 to `tokens` - 1, by kind of attention.

        Returns:
            Cosines and sines in most families, (1, tokens, d) each; empty for a model with learned
            positions.
        """
        if self.parts.rotary is None:
            return {}
        positions = torch.arange(tokens, device=self.device)[None]
        like = torch.empty(0, dtype=self.model.dtype, device=self.device)
        kinds = set(self.parts.attention)
        every = {kind: self.parts.rotary(like, positions, kind) for kind in kinds}
        return {kind: rotation for kind, rotation in every.items() if rotation}

    def block_masks(
        self,
        tokens: int,
        start: int,
        valid: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """Attention masks of a block of new columns, by kind of attention.

        The block is causal with respect to the columns before it.  A sliding layer sees a window.
        Each column sees itself, also where `valid` excludes it.  No mask is needed for a single
        token that sees all columns, nor, with sdpa, for a block without columns before it: sdpa is
        then causal and does not copy keys that heads share.

        Args:
            tokens: number of columns in the block.
            start: first column of the block.
            valid: (rows, start + tokens) of bool, columns that may be attended to; None for all.
            positions: (rows, start + tokens), true positions for windows and chunks; None where
                columns are positions.

        Returns:
            (rows or 1, 1 or heads, tokens, start + tokens) each: bool for sdpa, additive for eager
            attention and with a bias of the keys.  None where no mask is needed.
        """
        form = MaskForm(self.parts, self.model, self.text_config._attn_implementation)
        return {
            kind: block_mask(form, kind, BlockColumns(tokens, start, valid, positions))
            for kind in set(self.parts.attention)
        }

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
            index: index of the layer in `layers`.
            hidden: (rows, tokens, width).
            rotations: cosines and sines of the tokens' positions, by kind of attention.
            masks: attention masks; see `block_masks`.
            cache: stores the new keys and values and returns those to attend to.

        Returns:
            (rows, tokens, width).
        """
        # a layer of a head has the index of the layer that it was copied from
        store = cache if cache is None or index < self.depth else cache.at(index)
        kind = self.attention[index]
        return _call_layer(self.layers[index], kind, hidden, rotations, masks, store)

    def fill_layer(
        self, index: int, hidden: Tensor, rotations: dict[str, Rotation], cache: KVCache
    ) -> None:
        """Store the keys and values that one layer makes of hidden states, without its output.

        Args:
            index: index of the layer.
            hidden: (rows, 1, width).
            rotations: cosines and sines of the tokens' positions, by kind of attention.
            cache: its slots are set with `store_only`.
        """
        with suppress(StoreOnly):
            unmasked = dict.fromkeys(self.parts.attention)
            self.run_layer(index, hidden, rotations, unmasked, cache)

    def branch_states(self, hidden: Tensor, depth: int, heads: ExitHead | None = None) -> Tensor:
        """The states that a head reads at a depth, for whole texts.

        Args:
            hidden: (rows, tokens, width), states after `depth` layers from the first token on; at
                depth 0, what `DrafterHead.inputs` gives.  Rows may be padded on the right.
            depth: number of layers that ran.
            heads: exit heads; default: those of the model.

        Returns:
            (rows, tokens, width): states after the layers that the heads own at this depth, which
            are the given states where they own none.
        """
        heads = self.heads if heads is None else heads
        own = heads.layers_at(depth)
        if not own:
            return hidden
        kinds = [self.parts.attention[i] for i in heads.sources_at(depth)]
        rotations = self.rotations(hidden.shape[1])
        masks = self.block_masks(hidden.shape[1], 0)
        for layer, kind in zip(own, kinds, strict=True):
            hidden = _call_layer(layer, kind, hidden, rotations, masks)
        return hidden

    def hidden_states(self, ids: Tensor) -> Iterator[Tensor]:
        """Hidden states after each layer, before any norm.

        Args:
            ids: (rows, tokens).  Rows may be padded on the right.

        Yields:
            (rows, tokens, width), depth 1 first.
        """
        self.check_length(ids.shape[1])
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden, rotations = self.embed(ids, positions), self.rotations(ids.shape[1])
        masks = self.block_masks(ids.shape[1], 0)
        for index in range(self.depth):
            hidden = self.run_layer(index, hidden, rotations, masks)
            yield hidden

    def logits(
        self, hidden: Tensor, depth: int, vocab_ranges: Sequence[tuple[int, int]] = ()
    ) -> Tensor:
        """Read logits out of hidden states: (..., width) -> (..., vocab).

        The model's own norm and output embedding read full depth; the exit heads read below it.

        Args:
            hidden: hidden states after `depth` layers.
            depth: number of layers that ran.
            vocab_ranges: half-open ranges of ids to read; other ids get the lowest float.  The cost
                is that of the ranges' rows of the output embedding.  Empty for all ids.

        Raises:
            EepolicyError: the head reads only a part of the vocabulary.
        """
        head = self.lens if depth == self.depth else self.heads
        if vocab_ranges:
            return head.logits_among(hidden, depth, vocab_ranges, self.vocab_size)
        with Guard(head, "logits"):
            logits = head.logits(hidden, depth)
        if not isinstance(logits, Tensor) or logits.ndim != hidden.ndim:
            raise wrong_result(head, "logits", logits, f"a tensor (..., {self.vocab_size})")
        if logits.shape[-1] != self.vocab_size:
            raise EepolicyError(
                f"{head!r} reads out {logits.shape[-1]} of {self.vocab_size} tokens; "
                "a reply needs all of them"
            )
        return check_numbers(head, "logits", logits, (*hidden.shape[:-1], self.vocab_size))

    def check_predicted(self, depths: Sequence[int]) -> None:
        """Refuse depths without an exit predictor for the heads.

        Raises:
            EepolicyError: with the depth and those that have one, or with both heads.
        """
        check_predicted(self.predictor, self.heads, depths)

    def exit_probability(self, hidden: Tensor, depth: int) -> Tensor:
        """Probability that the head has the full model's token: (..., width) -> (...).

        Args:
            hidden: hidden states after `depth` layers.
            depth: number of layers that ran.

        Raises:
            EepolicyError: the model has no exit predictor at this depth.
        """
        self.check_predicted([depth])
        assert self.predictor is not None
        with Guard(self.predictor, "probability"):
            probability = self.predictor.probability(hidden, depth)
        check_numbers(self.predictor, "probability", probability, hidden.shape[:-1])
        if probability.device.type == "cpu" and bool(probability.isnan().any()):
            raise wrong_result(self.predictor, "probability", "nan", "probabilities")
        return probability


def _call_layer(
    layer: nn.Module,
    kind: str,
    hidden: Tensor,
    rotations: dict[str, Rotation],
    masks: dict[str, Tensor | None],
    cache: KVCache | LayerKV | None = None,
) -> Tensor:
    """Call a decoder layer of transformers; arguments as in `Backbone.run_layer`."""
    arguments: dict[str, Any] = (
        {"position_embeddings": rotations[kind]} if kind in rotations else {}
    )
    output: Tensor | tuple[Tensor, ...] = layer(
        hidden,
        attention_mask=masks[kind],
        past_key_values=cache,
        use_cache=cache is not None,
        **arguments,
    )
    out = output[0] if isinstance(output, tuple) else output
    return out.to(hidden.device)  # where layers are on several devices
