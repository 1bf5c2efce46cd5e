"""What some statistics read beside the logits and the last layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from eepolicy.modality import TokenLayout
from eepolicy.probing.statistics.last_layer import LastLayer


@dataclass(frozen=True, eq=False)
class Extras:
    """Inputs of the statistics that declare them; see `Statistic`.

    Attributes:
        layout: which ids are text and which are speech.
        deeper: distributions of the same rows at the next deeper depth of the probe; None where
            they are not known, as at full depth.
        given: ids that the caller gave with the document, (rows, ids) each, -1 for none, by name.
    """

    layout: TokenLayout | None = None
    deeper: LastLayer | None = None
    given: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        deeper = [] if self.deeper is None else self.deeper.tensors()
        return [*deeper, *self.given.values()]
