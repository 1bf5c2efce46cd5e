"""Schemas of the files that policies read."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from eepolicy.formats import Count, FileFormat


class UnitClasses(FileFormat):
    """Classes of speech units, as `eepolicy.fitting.unit_classes.fit_unit_classes` writes them.

    Attributes:
        first: id of the first unit.
        sounds: sound class of each unit; units of a class are acoustically near to each other.
        silent: numbers of the units that are silent, rising, the first unit being 0.
        notes: data and options of the fit.
    """

    first: Count
    sounds: list[Count] = Field(min_length=1)
    silent: list[Count]
    notes: dict[str, Any]

    @model_validator(mode="after")
    def _silent_units_exist(self) -> UnitClasses:
        if self.silent and max(self.silent) >= len(self.sounds):
            raise ValueError(
                f"expected silent units below {len(self.sounds)}; got {max(self.silent)}"
            )
        return self
