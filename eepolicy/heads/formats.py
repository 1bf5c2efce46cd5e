"""Schemas of the headers of heads and predictors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from pydantic import Field, field_validator, model_validator

from eepolicy.formats import Count, FileFormat, Fingerprint, Positive, rising_depths, shown


class HeadsHeader(FileFormat):
    """The header of a file of exit heads; their weights are tensors.

    Attributes:
        kinds: name of the class of each head.
        depths: depth of each head, ascending.  Heads of several kinds may share a depth; the first
            of them is preferred.
        model: the model that the heads were fitted on.
        notes: data, losses and options of the fit.
    """

    kinds: list[str] = Field(min_length=1)
    depths: list[Count] = Field(min_length=1)
    model: Fingerprint
    notes: dict[str, Any]

    @model_validator(mode="after")
    def _one_kind_a_depth(self) -> HeadsHeader:
        if any(a > b for a, b in pairwise(self.depths)):
            raise ValueError(f"expected ascending depths; got {shown(self.depths)}")
        heads = [*zip(self.depths, self.kinds, strict=False)]
        if len(self.kinds) != len(self.depths) or len({*heads}) < len(heads):
            raise ValueError("expected one kind for each depth, and each pair of both once")
        return self


class PredictorHeader(FileFormat):
    """The header of a file of an exit predictor; its weights are tensors.

    Attributes:
        depths: depths with a network, rising.
        width: width of the model.
        hidden: width of the layer in between; 0 for none.
        heads: `repr` of the exit heads whose agreement it predicts.
        model: the model that it was fitted on.
        notes: data and options of the fit.
    """

    depths: list[Positive] = Field(min_length=1)
    width: Positive
    hidden: Count
    heads: str
    model: Fingerprint
    notes: dict[str, Any]

    @field_validator("depths")
    @classmethod
    def _rising(cls, depths: list[int]) -> list[int]:
        return rising_depths(depths)
