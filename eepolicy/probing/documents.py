"""What is probed: token ids, where they came from, and where each of them stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.hooked import HookedModel
from eepolicy.modality import ChunkClock, TokenLayout

if TYPE_CHECKING:
    from eepolicy.decode.loop import Output

#: what `probe` takes: text, ids, something decoded, or several of these
Inputs: TypeAlias = Union["str", "Tensor", "Document", "Output", "Iterable[Inputs]"]

#: labels of a readout, in the order of `Document.labels`
LABELS = ("position", "token", "next", "modality", "chunk", "phase", "depth_used")


@dataclass(frozen=True, eq=False)
class Document:
    """Tokens to probe.

    Attributes:
        tokens: (tokens,) ids.
        prompt: how many of them are a prompt, whose reply is probed: a readout for each token of
            the reply, where it was predicted.  0: a readout at every token, the last one included.
        depth: (readouts,) depths at which the reply was really read out, where they are known.
    """

    tokens: Tensor
    prompt: int = 0
    depth: NDArray[np.int64] | None = None

    @property
    def span(self) -> tuple[int, int]:
        """The positions with a readout, half-open."""
        return (self.prompt - 1, len(self.tokens) - 1) if self.prompt else (0, len(self.tokens))

    @property
    def reply(self) -> Tensor:
        """The tokens behind the prompt: (tokens,)."""
        return self.tokens[self.prompt :]

    def labels(self, layout: TokenLayout, full_depth: int) -> NDArray[np.int64]:
        """Where each readout stands: (labels, readouts), see `LABELS`.

        Of a reply, modality, chunk and phase are those of the place, as the alternation has it; of
        anything else those of the token that follows, a chunk being a run of one modality.
        """
        start, end = self.span
        ids = self.tokens.tolist()
        following = [*ids[start + 1 : end + 1], -1][: end - start]
        places = _alternation(following, layout) if self.prompt else _runs(following, layout)
        used = self.depth if self.depth is not None else np.full(end - start, full_depth)
        columns = (range(start, end), ids[start:end], following, *zip(*places, strict=True), used)
        return np.array(columns, np.int64).reshape(len(LABELS), -1)


def _alternation(ids: list[int], layout: TokenLayout) -> list[tuple[int, int, int]]:
    """Modality, chunk and phase of the place of each token of a reply."""
    clock, places = ChunkClock(layout), []
    for token in ids:
        places.append((int(clock.modality), clock.chunk, clock.phase))
        if token != layout.end:
            clock.advance(token)
    return places


def _runs(ids: list[int], layout: TokenLayout) -> list[tuple[int, int, int]]:
    """Modality of each token, number of its run and place in it; -1 goes with the one before."""
    places: list[tuple[int, int, int]] = []
    for token in ids:
        before, chunk, phase = places[-1] if places else (-1, -1, -1)
        modality = int(layout.modality(token)) if token >= 0 else max(before, 0)
        new = modality != before
        places.append((modality, chunk + new, 0 if new else phase + 1))
    return places


def documents(
    model: HookedModel, inputs: Inputs, attention_mask: Tensor | None = None
) -> Iterator[Document]:
    """The documents among inputs, one by one.

    Args:
        model: which encodes them.
        inputs: see `eepolicy.probe`.
        attention_mask: (rows, tokens) of ids that are padded, 0 where they are.

    Raises:
        EepolicyError: something among them is none of this, or holds no tokens.
    """
    from eepolicy.decode.loop import Output

    if isinstance(inputs, Mapping):  # what a tokenizer gives
        if not isinstance(inputs.get("input_ids"), Tensor):
            raise EepolicyError(
                "of what a tokenizer gives, 'input_ids' is probed, as a tensor: ask it for "
                "return_tensors='pt'"
            )
        attention_mask = inputs.get("attention_mask", attention_mask)
        inputs = inputs["input_ids"]
    if isinstance(inputs, Tensor) and inputs.ndim == 2:
        mask = torch.ones_like(inputs) if attention_mask is None else attention_mask
        if mask.shape != inputs.shape:
            raise EepolicyError(
                f"the mask is (rows, tokens) as the ids are, {tuple(inputs.shape)}; "
                f"got {tuple(mask.shape)}"
            )
        for row, held in zip(inputs, mask, strict=True):
            yield Document(model.encode(row[held.bool()]))
        return
    if attention_mask is not None:
        raise EepolicyError("an attention mask goes with ids (rows, tokens)")
    if isinstance(inputs, Output):
        if not len(inputs.prompt):
            raise EepolicyError("a prompt that was given as embeddings has no ids to probe")
        tokens = torch.cat([inputs.prompt, inputs.tokens])
        yield Document(tokens, len(inputs.prompt), inputs.trace.depth)
    elif isinstance(inputs, Document):
        if not 0 <= inputs.prompt < len(model.encode(inputs.tokens)):
            raise EepolicyError(
                f"a prompt of {inputs.prompt} tokens leaves nothing of {len(inputs.tokens)}"
            )
        yield inputs
    elif isinstance(inputs, (str, Tensor)):
        yield Document(model.encode(inputs))
    elif isinstance(inputs, Iterable):
        for each in inputs:
            yield from documents(model, each)
    else:
        raise EepolicyError(
            f"probed are text, ids, an Output, a Document, or several of them; got {inputs!r}"
        )
