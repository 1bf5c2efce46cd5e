"""Rules for the codes of a frame that were not computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.codebooks.adapter import LEFT_OUT
from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields, Count
from eepolicy.registry import Declared, Registry, parse_rest


class MissingCodes(Declared, ABC):
    """Gives the codes that a frame lacks, for the backbone's next input and for the vocoder.

    All rules are approximate: the stock model has no frame with some codes only.

    Examples:
        >>> from eepolicy.codebooks import MissingCodes
        >>> class Seven(MissingCodes):
        ...     def fill(self, codes, previous):
        ...         return torch.full_like(codes, 7)
    """

    @abstractmethod
    def fill(self, codes: Tensor, previous: Tensor) -> Tensor:
        """The codes to put where codes are missing: (rows, codebooks).

        Args:
            codes: (rows, codebooks) of a frame, `LEFT_OUT` where they are missing.
            previous: (rows, codebooks), the frame before, filled; `LEFT_OUT` before the first one.
        """

    def check(self, num_codes: int) -> None:
        """Refuse codes that a model does not have.

        Raises:
            EepolicyError: with the code and the possible ones.
        """


MISSING_CODES: Registry[MissingCodes] = Registry(
    kind="rule for missing codes", group="eepolicy.missing_codes"
)


@MISSING_CODES.register
@dataclass(frozen=True)
class LeaveOut(MissingCodes):
    """The missing codes are left out.

    The backbone's next input is the sum of the embeddings of the computed codes, and the codec
    sums the computed codebooks.
    """

    name: ClassVar[str] = "leave-out"
    usage: ClassVar[str] = "leave-out"
    example: ClassVar[str] = "leave-out"
    summary: ClassVar[str] = "missing codes are in no sum, of embeddings or of the codec"

    def fill(self, codes: Tensor, previous: Tensor) -> Tensor:
        return torch.full_like(codes, LEFT_OUT)


@MISSING_CODES.register
@dataclass(frozen=True)
class PreviousFrame(MissingCodes):
    """A missing code is that of the same codebook in the frame before; none before the first."""

    name: ClassVar[str] = "previous"
    usage: ClassVar[str] = "previous"
    example: ClassVar[str] = "previous"
    summary: ClassVar[str] = "missing codes are those of the frame before; left out in the first"

    def fill(self, codes: Tensor, previous: Tensor) -> Tensor:
        return previous


@MISSING_CODES.register
@dataclass(frozen=True)
class FixedCode(CheckedFields, MissingCodes):
    """Each missing code is one and the same number.

    Attributes:
        code: the number.

    Examples:
        >>> FixedCode(7).spec
        'code:7'
    """

    code: Count
    name: ClassVar[str] = "code"
    usage: ClassVar[str] = "code:NUMBER"
    example: ClassVar[str] = "code:7"
    summary: ClassVar[str] = "each missing code is the number 7"

    def fill(self, codes: Tensor, previous: Tensor) -> Tensor:
        return torch.full_like(codes, self.code)

    def check(self, num_codes: int) -> None:
        if not 0 <= self.code < num_codes:
            raise EepolicyError(
                f"{self!r} fills in code {self.code}, but the model has codes 0 to {num_codes - 1}"
            )

    @classmethod
    def from_spec(cls, rest: str) -> FixedCode:
        (code,) = parse_rest(r":(\d+)", rest)
        return cls(int(code))

    @property
    def spec(self) -> str:
        return f"code:{self.code}"


def parse_missing(spec: str) -> MissingCodes:
    """Build a rule for missing codes from its spec string.

    Raises:
        EepolicyError: no rule has this spec string; the message has the grammar.

    Examples:
        >>> parse_missing("previous")
        PreviousFrame()
    """
    return MISSING_CODES.create(spec.strip())
