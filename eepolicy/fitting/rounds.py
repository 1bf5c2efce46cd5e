"""Fit heads in rounds on the replies of the model that exits with them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.estimate import Clock, Work, duration
from eepolicy.fitting.replies import Exits, Generation, replies_with
from eepolicy.fitting.result import FitResult
from eepolicy.fitting.stage import Schedule, StageFit, evaluate, seconds_of_step
from eepolicy.fitting.states import StateStore
from eepolicy.heads.files import load_heads
from eepolicy.heads.fingerprint import fingerprint
from eepolicy.heads.fitted import KINDS, FittedHead
from eepolicy.hooked import HookedModel
from eepolicy.io import read_json, write_json
from eepolicy.probing.documents import Document

#: file of the heads that a stage has fitted
HEADS_FILE = "heads.safetensors"
#: figures of all finished stages
RESULTS_FILE = "results.json"
#: figures of a finished stage
ROW_FILE = "row.json"

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
    """Receivers of what a fit has to tell.

    Attributes:
        line: receives a line after each stage.
        progress: wraps batches and steps, to show progress under a label.
        measure: further figures of the held-out replies of the exiting model.
    """

    line: Callable[[str], None] = lambda _: None
    progress: Callable[[str], Callable[[Iterable[Any]], Iterable[Any]]] = lambda _: iter
    measure: Measure | None = None


def fit_rounds(
    model: HookedModel,
    questions: Questions,
    config: FitConfig,
    folder: str | Path,
    *,
    start: FittedHead | None = None,
    generation: Generation | None = None,
    reports: Reports | None = None,
) -> FitResult:
    """Fit one head at a time, on full-depth replies and then on its own replies.

    A round lets the model reply with the exits, labels each position of these replies by the last
    layer on the same history, and fits on them and on a share of full-depth replies.  Own replies
    of earlier rounds stay.  This is on-policy distillation: DAgger (arXiv 1011.0686), GKD (arXiv
    2306.13649).

    Every stage is stored in a folder; a stopped fit continues from there.

    Args:
        model: the model; its weights do not change.
        questions: prompts to fit on and to evaluate on.
        config: options.
        folder: folder for replies, states and checkpoints.  It can be deleted afterwards.
        start: heads to start from.  With them and with rounds there is no fit on full-depth
            replies before the first round.
        generation: how replies are generated.
        reports: receivers of lines, progress and figures.

    Returns:
        The heads after the last round, and the figures of all rounds in the notes.

    Raises:
        EepolicyError: the folder belongs to another fit, or the options do not fit the model.
    """
    run = _Rounds(
        model, questions, config, Path(folder), start, generation or Generation(),
        reports or Reports(),
    )  # fmt: skip
    return run.run()


@dataclass(frozen=True)
class _Rounds:
    model: HookedModel
    questions: Questions
    config: FitConfig
    folder: Path
    start: FittedHead | None
    generation: Generation
    reports: Reports

    def run(self) -> FitResult:
        config = self.config
        if config.depths is None:
            raise EepolicyError("fitting in rounds takes depths, such as (6,)")
        if config.depths[-1] >= self.model.depth:
            raise EepolicyError(
                f"heads are fitted at rising depths from 1 to {self.model.depth - 1}; "
                f"got {config.depths}"
            )
        self._claim_folder()
        heads: dict[int, Any] = {}
        rows: list[dict[str, Any]] = []
        for depth in config.depths:
            rows += (part := _Depth(self, depth)).run()
            heads[depth] = part.heads.at(depth)
        write_json(self.folder / RESULTS_FILE, rows, indent=1)
        notes = {
            "fitting": asdict(config),
            "policy": [config.policy_at(depth) for depth in config.depths],
            "replies": len(self.questions.train),
            "held_out_replies": len(self.questions.held_out),
            "rounds": rows,
        }
        return FitResult(FittedHead(heads).to(self.model.model.dtype), notes)

    @property
    def identity(self) -> dict[str, Any]:
        """What a stopped fit and its continuation must share."""
        # these can change while a fit is stopped; an option with its default is not listed
        default = asdict(FitConfig())
        fitting = {
            name: value
            for name, value in asdict(self.config).items()
            if name not in ("rounds", "depths", "precision") and value != default[name]
        }
        identity = {
            "model": fingerprint(self.model.model),
            "fitting": fitting,
            "questions": self.questions.digest,
            "max_new_tokens": self.generation.max_new_tokens,
            "start": "" if self.start is None else digest_of(self.start),
        }
        as_json: dict[str, Any] = json.loads(json.dumps(identity))  # tuples become lists
        return as_json

    def _claim_folder(self) -> None:
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

    @property
    def has_base(self) -> bool:
        """Whether a fit on full-depth replies comes before the first round."""
        return self.start is None or self.config.rounds == 0

    @property
    def full_share(self) -> float:
        """Full-depth replies of a round, as a share of the training questions."""
        mix = self.config.mix
        return min(1.0, self.config.part * mix / (1 - mix))


class _Depth:
    """The stages of one depth."""

    def __init__(self, fit: _Rounds, depth: int) -> None:
        self.fit, self.depth = fit, depth
        self.model, self.config, self.reports = fit.model, fit.config, fit.reports
        self.folder = fit.folder / f"depth-{depth}"
        self.heads = self._initial()
        self.whole = bool(self.heads.layers_at(depth))
        self.clocks = {"replies": Clock(), "states": Clock()}

    def run(self) -> list[dict[str, Any]]:
        """Fit all stages, and return a row of figures for each."""
        replies = self._full_depth("held_out", self.fit.questions.held_out)
        store = self._write_states(replies, "held-out", torch.float32)
        if not (self._folder_of(self.config.rounds) / ROW_FILE).exists():
            self.reports.line(self._estimate(replies, store))
        rows = [] if self.fit.has_base else [self._start_stage()]
        for number in range(0 if self.fit.has_base else 1, self.config.rounds + 1):
            rows.append(self._stage(number))
        return rows

    def _estimate(self, replies: Sequence[Document], store: StateStore) -> str:
        """A sentence on size and time, from what the held-out replies took."""
        model, config, fit = self.model, self.config, self.fit
        batches = [store.read(file, model.device, torch.float32) for file in store.files]
        work = Work.of(
            config,
            len(fit.questions.train),
            replies,
            sum(len(batch.last) for batch in batches),
            width=model.model.config.hidden_size,
            has_base=fit.has_base,
        )
        first = batches[0]
        step = seconds_of_step(model, copy.deepcopy(self.heads), config, first)
        parts = {"fitting": work.fitted * step / len(first.chosen)}
        sizes = {"replies": fit.generation.batch, "states": config.batch_replies}
        for name, clock in self.clocks.items():
            seconds = clock.rate(min(sizes[name], len(replies)))
            if seconds is not None:
                parts[name] = work.replies * seconds
        listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
        return (
            f"depth {self.depth}: estimate: {work.bytes / 1e9:.2f} GB of states in {self.folder}, "
            f"{duration(sum(parts.values()))} ({listed})"
        )

    def _initial(self) -> FittedHead:
        config, model = self.config, self.model
        if self.fit.start is not None:
            head = copy.deepcopy(self.fit.start.at(self.depth))
            return FittedHead({self.depth: head}).to(model.device, torch.float32)
        return (
            KINDS.get(config.kind)
            .untrained(
                model.lens,
                (self.depth,),
                width=model.model.config.hidden_size,
                rank=config.rank,
                num_layers=config.num_layers,
                seed=config.seed,
            )
            .to(model.device)
        )

    def _start_stage(self) -> dict[str, Any]:
        """Figures of the heads that the fit starts from."""
        folder = self._folder_of(0)
        if not (folder / HEADS_FILE).exists():
            self._save(folder, 0)
        return self._finish(0, {"epochs": 0, "own_replies": 0})

    def _stage(self, number: int) -> dict[str, Any]:
        """Fit a stage: on full-depth replies (0), or a round."""
        config, folder = self.config, self._folder_of(number)
        size = {
            "epochs": config.round_epochs if number else config.epochs,
            "own_replies": sum(
                len(self.fit.questions.of_round(n, config.part)) for n in range(1, number + 1)
            ),
        }
        if not (folder / HEADS_FILE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            files = self._files(number)
            rate = config.round_learning_rate if number else config.learning_rate or 1.5e-3
            schedule = Schedule(size["epochs"], rate, config.seed + number)
            identity = {**self.fit.identity, "depth": self.depth, "round": number}
            if config.precision != "float32":
                identity["precision"] = config.precision
            trainer = StageFit(
                self.model, self.heads, config, schedule, folder / "checkpoint", identity
            )
            trainer.run(files, self._progress(f"steps of round {number}"))
            self._save(folder, number)
            (folder / "checkpoint").unlink(missing_ok=True)
        return self._finish(number, size)

    def _save(self, folder: Path, number: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        notes = {"fitting": asdict(self.config), "round": number}
        self.heads.save(folder / HEADS_FILE, self.model.model, notes)

    def _finish(self, number: int, size: dict[str, int]) -> dict[str, Any]:
        """Evaluate the heads of a stage, which are from now on those of its file."""
        folder = self._folder_of(number)
        self.heads = self._read_heads(folder)
        if (folder / ROW_FILE).exists():
            stored: dict[str, Any] = read_json(folder / ROW_FILE)
            return stored
        row: dict[str, Any] = {"depth": self.depth, "round": number, **size}
        row |= evaluate(self.model, self.heads, self._store("held-out"), self.config.chunk)
        own = self._own(folder / "held_out_own.jsonl", self.fit.questions.held_out, folder)
        store = self._write_states(own, f"round-{number}/held-out-own", torch.float32)
        figures = evaluate(self.model, self.heads, store, self.config.chunk)
        row |= {f"{name}_own": value for name, value in figures.items()}
        if self.reports.measure is not None:
            row |= self.reports.measure(own)
        write_json(folder / ROW_FILE, row, indent=1)
        self.reports.line(describe(row))
        return row

    def _files(self, number: int) -> list[tuple[StateStore, Path]]:
        """The files of states of a stage: own replies of all rounds so far, and full-depth ones."""
        config, questions = self.config, self.fit.questions
        stores = []
        for n in range(1, number + 1):
            prompts, heads_of = questions.of_round(n, config.part), self._folder_of(n - 1)
            own = self._own(self._folder_of(n) / "own.jsonl", prompts, heads_of)
            stores.append(self._write_states(own, f"round-{n}/own"))
        files = [(store, file) for store in stores for file in store.files]
        if self.fit.has_base:
            full = self._write_states(self._full_depth("full", questions.train), "full")
            wanted = len(files) * config.mix / (1 - config.mix)
            count = min(len(full.files), round(wanted)) if number else len(full.files)
            # spread over the lengths of replies
            chosen = [
                full.files[(2 * i + 1) * len(full.files) // (2 * count)] for i in range(count)
            ]
            return files + [(full, file) for file in chosen]
        for n in range(1, number + 1 if config.mix else 1):
            prompts = questions.of_round(n, self.fit.full_share)
            store = self._write_states(self._full_depth(f"full-{n}", prompts), f"full-{n}")
            files += [(store, file) for file in store.files]
        return files

    def _full_depth(self, name: str, prompts: Sequence[Tensor]) -> list[Document]:
        """Full-depth replies, which all depths share."""
        return self._generate(prompts, self.fit.folder / f"{name}.jsonl", Exits())

    def _own(self, file: Path, prompts: Sequence[Tensor], heads_of: Path) -> list[Document]:
        """Replies of the model that exits with the heads of a stage."""
        heads = heads_of / HEADS_FILE
        exits = Exits(
            self.config.policy_at(self.depth), heads, digest_of(self._read_heads(heads_of))
        )
        return self._generate(prompts, file, exits)

    def _generate(self, prompts: Sequence[Tensor], file: Path, exits: Exits) -> list[Document]:
        progress = self.clocks["replies"].around(self._progress(f"replies {file.stem}"))
        return replies_with(self.model, prompts, exits, self.fit.generation, file, progress)

    def _store(self, name: str, dtype: torch.dtype = torch.bfloat16) -> StateStore:
        return StateStore(self.folder / name, self.depth, self.config.on, self.whole, dtype)

    def _write_states(
        self, replies: Sequence[Document], name: str, dtype: torch.dtype = torch.bfloat16
    ) -> StateStore:
        store = self._store(name, dtype)
        progress = self.clocks["states"].around(self._progress(f"states {name}"))
        store.write(self.model, replies, self.config.batch_replies, progress)
        return store

    def _folder_of(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _read_heads(self, folder: Path) -> FittedHead:
        heads = load_heads(folder / HEADS_FILE, self.model.lens, self.model.model)
        return heads.to(self.model.device, torch.float32)

    def _progress(self, label: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
        return self.reports.progress(f"depth {self.depth}, {label}")


def digest_of(heads: FittedHead) -> str:
    """A hash of the weights of heads."""
    hashed = hashlib.sha256()
    for name, weight in heads.named_parameters():
        hashed.update(name.encode())
        hashed.update(weight.detach().cpu().float().numpy().tobytes())
    return hashed.hexdigest()


def describe(row: dict[str, Any]) -> str:
    """A line about a stage."""
    text = (
        f"depth {row['depth']}, round {row['round']}: full-depth replies: agreement "
        f"{row['agreement']:.3f}, KL {row['kl']:.4f}; own replies: agreement "
        f"{row['agreement_own']:.3f}, KL {row['kl_own']:.4f}"
    )
    return text + (f"; WER {100 * row['wer']:.1f} %" if row.get("wer") is not None else "")
