"""The stages of one depth in a fit in rounds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fitting.batch_gradients import evaluate, seconds_of_step
from eepolicy.fitting.estimate import Clock, Work, duration
from eepolicy.fitting.memory import fitting_memory
from eepolicy.fitting.plan import RoundsPlan
from eepolicy.fitting.replies import Exits, replies_with
from eepolicy.fitting.stage import Schedule, StageFit
from eepolicy.fitting.states import StateStore
from eepolicy.heads.files import load_heads
from eepolicy.heads.fingerprint import digest
from eepolicy.heads.fitted import KINDS, FittedHead
from eepolicy.hooked import HookedModel
from eepolicy.io import make_folder, read_json, write_json
from eepolicy.probing.documents import Document

#: file of the heads that a stage has fitted
HEADS_FILE = "heads.safetensors"
#: figures of a finished stage
ROW_FILE = "row.json"


class DepthRounds:
    """The stages of one depth."""

    def __init__(self, plan: RoundsPlan, depth: int) -> None:
        self.plan, self.depth = plan, depth
        self.model, self.config, self.reports = plan.model, plan.config, plan.reports
        self.folder = plan.folder / f"depth-{depth}"
        self.heads = self._initial()
        self.whole = bool(self.heads.layers_at(depth))
        self.clocks = {"replies": Clock(), "states": Clock()}

    def run(self) -> list[dict[str, Any]]:
        """Fit all stages, and return a row of figures for each."""
        replies = self._full_depth("held_out", self.plan.questions.held_out)
        store = self._write_states(replies, "held-out", torch.float32)
        if not (self._folder_of(self.config.rounds) / ROW_FILE).exists():
            self.reports.line(self._estimate(replies, store))
        rows = [] if self.plan.has_base else [self._start_stage()]
        for number in range(0 if self.plan.has_base else 1, self.config.rounds + 1):
            rows.append(self._stage(number))
        return rows

    def _estimate(self, replies: Sequence[Document], store: StateStore) -> str:
        """A sentence on size and time, from what the held-out replies took.

        Raises:
            EepolicyError: the held-out replies have no position to fit on.
        """
        model, config, plan = self.model, self.config, self.plan
        batches = (store.read(file, model.device, torch.float32) for file in store.files)
        first = next(batches)  # one batch in memory at a time
        positions = len(first.last) + sum(len(batch.last) for batch in batches)
        if not positions:
            raise EepolicyError(f"the held-out replies have no {config.on} positions")
        work = Work.of(
            config,
            len(plan.questions.train),
            replies,
            positions,
            width=model.width,
            has_base=plan.has_base,
        )
        step = seconds_of_step(model, copy.deepcopy(self.heads), config, first)
        parts = {"fitting": work.fitted * step / len(first.chosen)}
        sizes = {"replies": plan.generation.batch, "states": self._batch}
        for name, clock in self.clocks.items():
            seconds = clock.rate(min(sizes[name], len(replies)))
            if seconds is not None:
                parts[name] = work.replies * seconds
        memory = fitting_memory(
            # without a round too, heads are fitted as in rounds here; a drafter has none
            config if config.is_drafter else replace(config, rounds=max(1, config.rounds)),
            width=model.width,
            vocabulary=model.vocab_size,
            full_depth=model.depth,
            longest=max(len(reply.tokens) for reply in replies),
            layer_weights=sum(weight.numel() for weight in model.layers[0].parameters()),
        )
        listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
        return (
            f"depth {self.depth}: estimate: {work.bytes / 1e9:.2f} GB of states in {self.folder}, "
            f"at most {sum(memory.values()) / 1e9:.1f} GB of memory beside the model, "
            f"{duration(sum(parts.values()))} ({listed})"
        )

    def _initial(self) -> FittedHead:
        config, model = self.config, self.model
        if self.plan.start is not None:
            head = copy.deepcopy(self.plan.start.at(self.depth))
            layers = len(head.layers_at(self.depth))
            if head.name != config.kind or (layers and layers != config.num_layers):
                given = f"{head.name} with {layers} layers" if layers else head.name
                raise EepolicyError(
                    f"the head at depth {self.depth} to start from is {given}; the options say "
                    f"{config.kind}{f' with {config.num_layers}' if layers else ''}"
                )
            return FittedHead({self.depth: head}).to(model.device, torch.float32)
        return (
            KINDS.get(config.kind)
            .untrained(
                model.lens,
                (self.depth,),
                width=model.width,
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
                len(self.plan.questions.of_round(n, config.part)) for n in range(1, number + 1)
            ),
        }
        if not (folder / HEADS_FILE).exists():
            make_folder(folder)
            files = self._files(number)
            rate = config.round_learning_rate if number else config.learning_rate or 1.5e-3
            schedule = Schedule(size["epochs"], rate, config.seed + number)
            identity = {**self.plan.identity, "depth": self.depth, "round": number}
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
        make_folder(folder)
        notes = {"fitting": asdict(self.config), "round": number}
        self.heads.save(folder / HEADS_FILE, self.model.model, notes)

    def _finish(self, number: int, size: dict[str, int]) -> dict[str, Any]:
        """Evaluate the heads of a stage, which are from now on those of its file."""
        folder = self._folder_of(number)
        self.heads = read_stage(self.model, folder)
        if (folder / ROW_FILE).exists():
            stored: dict[str, Any] = read_json(folder / ROW_FILE)
            if self.reports.measure is None or "wer" in stored:
                return stored
            # the call that fitted this stage measured no word errors
            stored |= self.reports.measure(self.model, self._held_out_own(folder))
            return self._reported(folder, stored)
        row: dict[str, Any] = {
            "depth": self.depth,
            "round": number,
            "kind": self.config.kind,
            "layers": len(self.heads.layers_at(self.depth)),
            "questions": len(self.plan.questions.train),
            **size,
        }
        row |= evaluate(self.model, self.heads, self._store("held-out"), self.config)
        own = self._held_out_own(folder)
        if not self.config.is_drafter:
            store = self._write_states(own, f"round-{number}/held-out-own", torch.float32)
            figures = evaluate(self.model, self.heads, store, self.config)
            row |= {f"{name}_own": value for name, value in figures.items()}
        if self.reports.measure is not None:
            row |= self.reports.measure(self.model, own)
        return self._reported(folder, row)

    def _held_out_own(self, folder: Path) -> list[Document]:
        """Own replies of a stage to the held-out questions; for a drafter those at full depth."""
        questions = self.plan.questions.held_out
        if self.config.is_drafter:
            return self._full_depth("held_out", questions)
        return self._own(folder / "held_out_own.jsonl", questions, folder)

    def _reported(self, folder: Path, row: dict[str, Any]) -> dict[str, Any]:
        """Store and report the row of a stage."""
        write_json(folder / ROW_FILE, row, indent=1)
        self.reports.line(describe(row))
        return row

    def _files(self, number: int) -> list[tuple[StateStore, Path]]:
        """The files of states of a stage: own replies of all rounds so far, and full-depth ones."""
        config, questions = self.config, self.plan.questions
        stores = []
        for n in range(1, number + 1):
            prompts, heads_of = questions.of_round(n, config.part), self._folder_of(n - 1)
            own = self._own(self._folder_of(n) / "own.jsonl", prompts, heads_of)
            stores.append(self._write_states(own, f"round-{n}/own"))
        files = [(store, file) for store in stores for file in store.files]
        shared = self.plan.full_depth_prompts()
        if self.plan.has_base:
            full = self._write_states(self._full_depth("full", shared["full"]), "full")
            wanted = len(files) * config.mix / (1 - config.mix)
            count = min(len(full.files), round(wanted)) if number else len(full.files)
            # spread over the lengths of replies
            chosen = [
                full.files[(2 * i + 1) * len(full.files) // (2 * count)] for i in range(count)
            ]
            return files + [(full, file) for file in chosen]
        for name in list(shared)[:number]:
            store = self._write_states(self._full_depth(name, shared[name]), name)
            files += [(store, file) for file in store.files]
        return files

    def _full_depth(self, name: str, prompts: Sequence[Tensor]) -> list[Document]:
        """Full-depth replies, which all depths share."""
        if name in self.plan.shared:
            return [*self.plan.shared[name]]
        return self._generate(prompts, self.plan.folder / f"{name}.jsonl", Exits())

    def _own(self, file: Path, prompts: Sequence[Tensor], heads_of: Path) -> list[Document]:
        """Replies of the model that exits with the heads of a stage."""
        heads = heads_of / HEADS_FILE
        weights = digest(read_stage(self.model, heads_of))
        exits = Exits(self.config.policy_at(self.depth), heads, weights)
        return self._generate(prompts, file, exits)

    def _generate(self, prompts: Sequence[Tensor], file: Path, exits: Exits) -> list[Document]:
        progress = self.clocks["replies"].around(self._progress(f"replies {file.stem}"))
        return replies_with(self.model, prompts, exits, self.plan.generation, file, progress)

    def _store(self, name: str, dtype: torch.dtype = torch.bfloat16) -> StateStore:
        return StateStore(self.folder / name, self.depth, self.config.on, self.whole, dtype)

    def _write_states(
        self, replies: Sequence[Document], name: str, dtype: torch.dtype = torch.bfloat16
    ) -> StateStore:
        store = self._store(name, dtype)
        progress = self.clocks["states"].around(self._progress(f"states {name}"))
        store.write(self.model, replies, self._batch, progress)
        return store

    @property
    def _batch(self) -> int:
        """Number of replies in a file of states, which is a step of the fit."""
        return self.config.replies_in_step(len(self.plan.questions.train))

    def _folder_of(self, number: int) -> Path:
        return self.plan.stage_folder(self.depth, number)

    def _progress(self, label: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
        return self.reports.progress(f"depth {self.depth}, {label}")


def read_stage(model: HookedModel, folder: Path) -> FittedHead:
    """The heads that a stage has fitted, in float32.

    Args:
        model: the model.
        folder: folder of the stage.
    """
    heads = load_heads(folder / HEADS_FILE, model.lens, model.model)
    return heads.to(model.device, torch.float32)


def describe(row: dict[str, Any]) -> str:
    """A line about a stage."""
    text = (
        f"depth {row['depth']}, round {row['round']}: full-depth replies: agreement "
        f"{row['agreement']:.3f}, KL {row['kl']:.4f}"
    )
    if "accepted" in row:
        text += f"; accepted drafts in a chain: {row['accepted']:.2f}"
    if "kl_own" in row:
        text += f"; own replies: agreement {row['agreement_own']:.3f}, KL {row['kl_own']:.4f}"
    return text + (f"; WER {100 * row['wer']:.1f} %" if row.get("wer") is not None else "")
