"""What a fit in rounds works on, and the folder that belongs to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fields import CheckedFields
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.identity import model_identity
from eepolicy.fitting.replies import Generation
from eepolicy.heads.fingerprint import digest
from eepolicy.heads.fitted import FittedHead
from eepolicy.hooked import HookedModel
from eepolicy.io import as_json, make_folder, read_json, write_json
from eepolicy.policies.spec import file_digests
from eepolicy.probing.documents import Document

#: options that can change while a fit is stopped
CHANGEABLE = ("rounds", "depths", "precision", "chunk", "padded_positions")

#: figures of replies of a model, such as the word error rate
Measure: TypeAlias = Callable[[HookedModel, Sequence[Document]], dict[str, Any]]


#: one or more prompts in ids (tokens,)
Prompts = Annotated[Sequence[Tensor], Field(min_length=1)]


@dataclass(frozen=True)
class Questions(CheckedFields):
    """The questions of a fit.

    Attributes:
        train: prompts in ids (tokens,), in the order in which rounds take them.
        held_out: prompts in ids (tokens,), for evaluation.
    """

    train: Prompts
    held_out: Prompts

    @property
    def digest(self) -> str:
        """A hash of all prompts."""
        hashed = hashlib.sha256()
        for part in (self.train, self.held_out):
            hashed.update(json.dumps([prompt.tolist() for prompt in part]).encode())
        return hashed.hexdigest()

    def of_round(self, number: int, part: float) -> list[Tensor]:
        """The training prompts that a round answers: each starts where the last one ended.

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
        measure: further figures of the held-out replies of the exiting model.  Workers that fit
            depths must be able to pickle it.
    """

    line: Callable[[str], None] = lambda _: None
    progress: Callable[[str], Callable[[Iterable[Any]], Iterable[Any]]] = lambda _: iter
    measure: Measure | None = None


@dataclass(frozen=True)
class RoundsPlan:
    """What a fit in rounds works on; the other attributes are the arguments of `fit_rounds`.

    Attributes:
        shared: full-depth replies that were generated before, by the name of their file.
    """

    model: HookedModel
    questions: Questions
    config: FitConfig
    folder: Path
    start: FittedHead | None
    generation: Generation
    reports: Reports
    shared: Mapping[str, Sequence[Document]] = field(default_factory=dict)

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
        identity: dict[str, Any] = as_json(
            {
                **model_identity(self.model, self.model.layout),
                "files": file_digests(self.config.policy_at(1)) if self.config.policy else {},
                "fitting": fitting,
                "questions": self.questions.digest,
                "max_new_tokens": self.generation.max_new_tokens,
                "start": "" if self.start is None else digest(self.start),
            }
        )
        if not self.has_base:  # what is stored of round 0 depends on it
            identity["start"] += ", without a fit on full-depth replies"
        return identity

    @property
    def has_base(self) -> bool:
        """Whether a fit on full-depth replies comes before the first round."""
        return self.start is None or self.config.rounds == 0

    @property
    def full_share(self) -> float:
        """Full-depth replies of a round, as a share of the training questions."""
        mix = self.config.mix
        return min(1.0, self.config.part * mix / (1 - mix))

    def full_depth_prompts(self) -> dict[str, Sequence[Tensor]]:
        """The prompts whose full-depth replies all depths share, by the name of their file."""
        questions, rounds = self.questions, range(1, self.config.rounds + 1)
        if self.has_base:
            return {"full": questions.train}
        if not self.config.mix:
            return {}
        return {f"full-{n}": questions.of_round(n, self.full_share) for n in rounds}

    def stage_folder(self, depth: int, number: int) -> Path:
        """The folder of a round, or of the fit on full-depth replies for number 0."""
        return self.folder / f"depth-{depth}" / f"round-{number}"

    def claim_folder(self) -> None:
        """Write what the folder belongs to, or check it."""
        make_folder(self.folder)
        file = self.folder / "fit.json"
        if not file.exists():
            write_json(file, self.identity, indent=1)
        elif (stored := read_json(file)) != self.identity:
            differ = sorted(k for k, v in self.identity.items() if stored.get(k) != v)
            raise EepolicyError(
                f"the folder {self.folder} belongs to a fit with another {', '.join(differ)}; "
                "delete it, or give another folder"
            )
