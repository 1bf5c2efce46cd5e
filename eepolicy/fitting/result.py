"""The result of fitting."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from eepolicy.heads.fitted import FittedHead

#: fall of agreement, as a share of the positions, up to which no warning is given: a few positions
#: of a small set of replies
AGREEMENT_TOLERANCE = 0.01


@dataclass(frozen=True)
class FitResult:
    """Fitted heads and a description of the fit.

    Attributes:
        heads: the heads, in the precision and on the device of the model.
        notes: description of the fit as JSON types.  `before` and `after` hold `kl` (from the last
            layer, nats) and `agreement` (share of equal argmax tokens) on the held-out replies, one
            number for each depth.  `fitting` holds the options.
    """

    heads: FittedHead
    notes: dict[str, Any]

    def warn_of_lower_agreement(self) -> None:
        """Warn of depths whose KL fell while their agreement fell too.

        Heads are chosen by KL.  On few replies a lower KL can go with fewer equal argmax tokens,
        which is what greedy decoding at that depth returns.
        """
        before, after = self.notes["before"], self.notes["after"]
        worse = [
            f"{depth} ({old:.3f} to {new:.3f})"
            for i, depth in enumerate(self.heads.depths)
            for old, new in [(before["agreement"][i], after["agreement"][i])]
            if after["kl"][i] < before["kl"][i] and new < old - AGREEMENT_TOLERANCE
        ]
        if worse:
            warnings.warn(
                "the KL from the last layer fell, but the share of equal argmax tokens on the "
                f"held-out replies fell too at depth {', '.join(worse)}: fit on more replies, or "
                "leave these depths out",
                stacklevel=4,
            )
