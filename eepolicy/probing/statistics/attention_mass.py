"""Attention mass by modality: how much of the attention is on text and on speech positions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from eepolicy.modality import Modality


@dataclass(frozen=True, eq=False)
class AttentionContext:
    """Attention of some positions at one layer.  All tensors are read-only.

    Attributes:
        masses: (rows, heads, modalities), the sum of the attention weights of a position over the
            positions of each modality, up to itself.  Positions without speech ids are text.
    """

    masses: Tensor

    def inputs(self) -> list[Tensor]:
        """The tensors that the context was made of; the first has one row a readout."""
        return [self.masses]

    def overwritten(self) -> list[str]:
        """Names of derived values that were written to: there are none."""
        return []


def attention_text(context: AttentionContext) -> Tensor:
    """Attention weights on text positions, summed, mean over heads.  (rows,), 0 to 1."""
    return context.masses[..., Modality.TEXT].mean(-1)


def attention_speech(context: AttentionContext) -> Tensor:
    """Attention weights on speech positions, summed, mean over heads.  (rows,), 0 to 1."""
    return context.masses[..., Modality.SPEECH].mean(-1)
