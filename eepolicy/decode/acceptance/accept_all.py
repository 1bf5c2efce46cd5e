"""The rule of SPAR-K: every early token stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.decode.acceptance.base import ACCEPTANCE_RULES, Acceptance, Drafts


@ACCEPTANCE_RULES.register
@dataclass(frozen=True)
class AcceptAll(Acceptance):
    """Accepts every draft without verification, as SPAR-K does."""

    name: ClassVar[str] = "all"
    usage: ClassVar[str] = "all"
    example: ClassVar[str] = "all"
    summary: ClassVar[str] = "every early token stays; nothing is verified"
    paper: ClassVar[str] = "SPAR-K, arXiv 2603.09215"
    source: ClassVar[str] = "https://arxiv.org/abs/2603.09215"
    verifies: ClassVar[bool] = False

    def accepts(self, drafts: Drafts) -> Tensor:
        return torch.ones_like(drafts.tokens, dtype=torch.bool)
