"""Prompts of a model with several codebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.modality import is_ids
from eepolicy.prompts import pad_left


@dataclass(frozen=True, eq=False)
class FramePrompt:
    """Prompts as the backbone reads them, and what is summed with the frames of a reply.

    Attributes:
        call: arguments of the stock `generate` that give the prompts.
        embeddings: (rows, tokens, width), padded on the left.
        ids: (rows, tokens) ids of the prompts; None for prompts that are embeddings.
        text: (rows, frames, width), summed with the embeddings of the first frames; None for none.
        text_end: (rows, 1, width), summed with those of all later frames; None for none.
    """

    call: dict[str, Any]
    embeddings: Tensor
    ids: Tensor | None = None
    text: Tensor | None = None
    text_end: Tensor | None = None

    def text_at(self, frame: int, rows: Sequence[int]) -> Tensor | None:
        """What is summed with the embedding of a frame: (rows, 1, width); None for nothing.

        Args:
            frame: index of the frame in the reply.
            rows: rows of the batch.
        """
        if self.text is None or self.text_end is None:
            return None
        is_text = frame < self.text.shape[1]
        source = self.text[:, frame : frame + 1] if is_text else self.text_end
        return source[list(rows)]


def left_padded(prompts: Sequence[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts as one batch, padded on the left.

    Args:
        prompts: ids (tokens,) each.
        pad_id: id of the padding.

    Returns:
        Ids and mask, (rows, tokens) each.

    Raises:
        EepolicyError: a prompt is not a row of ids.
    """
    if not prompts:
        raise EepolicyError("a prompt is ids (tokens,), one or more; got an empty list")
    for ids in prompts:
        if not isinstance(ids, Tensor) or ids.ndim != 1 or not len(ids) or not is_ids(ids):
            raise EepolicyError(f"a prompt is ids (tokens,), one or more; got {ids!r}")
    return pad_left(prompts, pad_id)
