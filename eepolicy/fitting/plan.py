"""What a fit in rounds works on, and the folder that belongs to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.replies import Generation
from eepolicy.heads.fingerprint import digest, fingerprint
from eepolicy.heads.fitted import FittedHead
from eepolicy.hooked import HookedModel
from eepolicy.io import read_json, write_json
from eepolicy.probing.documents import Document

#: options that can change while a fit is stopped
CHANGEABLE = ("rounds", "depths", "precision", "chunk", "padded_positions")

#: figures of replies, such as the word error rate
Measure: TypeAlias = Callable[[Sequence[Document]], dict[str, Any]]


@dataclass(frozen=True)
class Questions:
    """The questions of a fit.

    Attributes:
        train: prompts in ids (tokens,), in the order in which rounds take them.
        held_out: prompts in ids (tokens,), for evaluation.
    """

    train: Sequence[Tensor]
    held_out: Sequence[Tensor]

    @property
    def digest(self) -> str:
        """A hash of all prompts."""
        hashed = hashlib.sha256()
        for part in (self.train, self.held_out):
            hashed.update(json.dumps([prompt.tolist() for prompt in part]).encode())
        return hashed.hexdigest()

    def of_round(self, number: int, part: float) -> list[Tensor]:
        """The training prompts that a round answers: each goes on where the one before stopped.

        Args:
            number: number of the round, from 1.
            part: share of the prompts.
        """
        total = len(self.train)
        count = max(1, round(part * total))
        start = (number - 1) * count
        return [self.train[i % total] for i in range(start, start + count)]


@dataclass(frozen=True)
class Reports:
    """Receivers of the reports of a fit.

    Attributes:
        line: receives a line after each stage.
        progress: wraps batches and steps, to show progress under a label.
        measure: further figures of the held-out replies of the exiting model.
    """

    line: Callable[[str], None] = lambda _: None
    progress: Callable[[str], Callable[[Iterable[Any]], Iterable[Any]]] = lambda _: iter
    measure: Measure | None = None


@dataclass(frozen=True)
class RoundsPlan:
    """What a fit in rounds works on; the attributes are the arguments of `fit_rounds`."""

    model: HookedModel
    questions: Questions
    config: FitConfig
    folder: Path
    start: FittedHead | None
    generation: Generation
    reports: Reports

    @property
    def identity(self) -> dict[str, Any]:
        """What a stopped fit and its continuation must share."""
        # an option with its default is not listed: a later release can have further options
        default = asdict(FitConfig())
        fitting = {
            name: value
            for name, value in asdict(self.config).items()
            if name not in CHANGEABLE and value != default[name]
        }
        identity = {
            "model": fingerprint(self.model.model),
            "fitting": fitting,
            "questions": self.questions.digest,
            "max_new_tokens": self.generation.max_new_tokens,
            "start": "" if self.start is None else digest(self.start),
        }
        as_json: dict[str, Any] = json.loads(json.dumps(identity))  # tuples become lists
        return as_json

    @property
    def has_base(self) -> bool:
        """Whether a fit on full-depth replies comes before the first round."""
        return self.start is None or self.config.rounds == 0

    @property
    def full_share(self) -> float:
        """Full-depth replies of a round, as a share of the training questions."""
        mix = self.config.mix
        return min(1.0, self.config.part * mix / (1 - mix))

    def claim_folder(self) -> None:
        """Write what the folder belongs to, or check it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "fit.json"
        if not file.exists():
            write_json(file, self.identity, indent=1)
        elif (stored := read_json(file)) != self.identity:
            differ = sorted(k for k, v in self.identity.items() if stored.get(k) != v)
            raise EepolicyError(
                f"the folder {self.folder} belongs to a fit with another {', '.join(differ)}; "
                "delete it, or give another folder"
            )
