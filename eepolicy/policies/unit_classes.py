"""Exits inside steady sounds or silence, by fitted classes of speech units."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields, Positive
from eepolicy.formats import parse
from eepolicy.io import read_json
from eepolicy.policies.base import (
    POLICIES,
    ExitPolicy,
    On,
    Step,
    check_depth,
    masked_depths,
    prefixed,
)
from eepolicy.policies.formats import UnitClasses
from eepolicy.policies.state import PolicyState
from eepolicy.registry import parse_rest

#: name that stands for the classes of the pocket model's units, which ship with the package
POCKET = "pocket"


@dataclass(frozen=True)
class LastUnits(PolicyState):
    """What is kept of each row.

    Attributes:
        sound: (rows,) sound class of the last unit; -1 before the first.
        is_steady: (rows,) of bool, whether the last two units are of one sound class.
        is_silent: (rows,) of bool, whether the last unit is silent.
    """

    sound: Tensor
    is_steady: Tensor
    is_silent: Tensor


@dataclass(frozen=True)
class ByUnits(CheckedFields, ExitPolicy):
    """Base of policies that exit by the classes of the last units.

    The file is read at the first use, and the object depends on its name only.

    Attributes:
        file: JSON file of `UnitClasses`, or `"pocket"` for those of the pocket model.
        exit_depth: depth of the positions that exit.
        on: `"speech"`, `"text"` or `"both"`.
    """

    file: str
    exit_depth: Positive
    on: On = "speech"
    paper: ClassVar[str] = "ours"
    needs_history: ClassVar[bool] = True

    @property
    def files(self) -> tuple[str, ...]:
        return () if self.file == POCKET else (self.file,)

    @abstractmethod
    def exits(self, state: LastUnits) -> Tensor:
        """The rows that exit: (rows,) of bool."""

    @cached_property
    def classes(self) -> UnitClasses:
        """The classes of units in the file."""
        path = Path(self.file)
        if self.file == POCKET:
            folder = files("eepolicy") / "loading" / "pocket_model"
            path = Path(str(folder / "unit_classes.json"))
        if not path.is_file():
            raise EepolicyError(
                f"{self!r} needs a file with classes of units, but {path} does not exist; "
                "eepolicy.fitting.unit_classes.fit_unit_classes writes one"
            )
        return parse(UnitClasses, read_json(path), str(path))

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """Sound class and silence of each unit: (units,) each."""
        sounds = torch.tensor(self.classes.sounds)
        silent = torch.zeros(len(sounds), dtype=torch.bool)
        silent[self.classes.silent] = True
        return sounds, silent

    def begin(self, rows: int) -> LastUnits:
        none = torch.zeros(rows, dtype=torch.bool)
        return LastUnits(torch.full((rows,), -1), none, none)

    def update(self, step: Step) -> LastUnits:
        state, history = step.state, step.history
        assert isinstance(state, LastUnits)
        assert history is not None
        sounds, silent = self._tables
        number = history.token - self.classes.first  # (rows,)
        is_unit = (number >= 0) & (number < len(sounds))
        number = number.clamp(0, len(sounds) - 1)
        sound = torch.where(is_unit, sounds[number], state.sound)
        return LastUnits(
            sound,
            torch.where(is_unit, sound == state.sound, state.is_steady),
            torch.where(is_unit, silent[number], state.is_silent),
        )

    def depths(self, step: Step) -> Tensor:
        assert isinstance(step.state, LastUnits)
        exits = self.exits(step.state)
        return masked_depths(step, self.on, torch.where(exits, self.exit_depth, step.full_depth))

    def min_depth(self, full_depth: int) -> int:
        return self.exit_depth

    def possible_depths(self, full_depth: int) -> tuple[int, ...]:
        return (self.exit_depth,)

    def check(self, full_depth: int) -> None:
        check_depth(self.exit_depth, full_depth, f"{self!r}")
        _ = self.classes  # refuses a file that is missing or wrong

    @classmethod
    def from_spec(cls, rest: str) -> ByUnits:
        file, depth = parse_rest(r":(.+)@(\d+)", rest)
        return cls(file, int(depth))

    @property
    def spec(self) -> str:
        return prefixed(self.on, f"{self.name}:{self.file}@{self.exit_depth}")


@POLICIES.register
@dataclass(frozen=True)
class Steady(ByUnits):
    """Exits inside a steady sound: where the last two units are of one sound class.

    Examples:
        >>> Steady("pocket", 6).spec
        'steady:pocket@6'
    """

    name: ClassVar[str] = "steady"
    usage: ClassVar[str] = "steady:FILE@DEPTH (FILE has classes of units, or pocket)"
    example: ClassVar[str] = "steady:pocket@6"
    summary: ClassVar[str] = "depth 6 where the last two units are of one class of sounds"
    colour: ClassVar[str] = "#D55E00"
    marker: ClassVar[str] = "<"

    def exits(self, state: LastUnits) -> Tensor:
        return state.is_steady


@POLICIES.register
@dataclass(frozen=True)
class Silence(ByUnits):
    """Exits inside silence: where the last unit is silent.

    Examples:
        >>> Silence("pocket", 6).spec
        'silence:pocket@6'
    """

    name: ClassVar[str] = "silence"
    usage: ClassVar[str] = "silence:FILE@DEPTH (FILE has classes of units, or pocket)"
    example: ClassVar[str] = "silence:pocket@6"
    summary: ClassVar[str] = "depth 6 where the last unit is silent"
    colour: ClassVar[str] = "#D55E00"
    marker: ClassVar[str] = "v"

    def exits(self, state: LastUnits) -> Tensor:
        return state.is_silent
