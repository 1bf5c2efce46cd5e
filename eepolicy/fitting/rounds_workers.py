"""Fit in rounds with other depths on each worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eepolicy.errors import EepolicyError
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.depth_rounds import DepthRounds
from eepolicy.fitting.plan import Measure, Questions, Reports, RoundsPlan
from eepolicy.fitting.replies import Exits, Generation, replies_with
from eepolicy.heads.fitted import KINDS, FittedHead
from eepolicy.hooked import HookedModel
from eepolicy.model.threads import one_thread
from eepolicy.probing.documents import Document
from eepolicy.workers import OrderedWorkers, WorkerConfig

#: a row of figures of each stage
Rows = list[dict[str, Any]]


def spreads_depths(plan: RoundsPlan) -> bool:
    """Whether each process fits other depths; otherwise workers only generate replies.

    With fewer depths than processes, some processes would have nothing to do.
    """
    generation = plan.generation
    config = WorkerConfig.of(generation.workers if generation.load else 0)
    num_depths = len(plan.config.depths or ())
    if not config.spreads or num_depths < 2:
        return False
    if config.ray is not None:  # without a number, the cluster has as many as it can
        return num_depths >= (config.number or 0)
    return num_depths > config.processes  # the calling process helps


def run_on_workers(plan: RoundsPlan) -> list[Rows]:
    """Fit all stages of all depths.

    Args:
        plan: the fit, with a function that loads the model in a worker.

    Returns:
        The rows of each depth.
    """
    generation, depths = plan.generation, plan.config.depths or ()
    config = WorkerConfig.of(generation.workers)
    # all depths share these replies, and only one process may work on their files
    shared = {}
    prompts_of = {"held_out": plan.questions.held_out, **plan.full_depth_prompts()}
    for name, prompts in prompts_of.items():
        progress = plan.reports.progress(f"replies {name}")
        file = plan.folder / f"{name}.jsonl"
        shared[name] = replies_with(plan.model, prompts, Exits(), generation, file, progress)
    alone = replace(plan, generation=replace(generation, workers=0, load=None), shared=shared)
    source = _Source.of(alone, generation.load)
    rows = []
    with one_thread(), OrderedWorkers(config, source, _Fitter(alone)) as workers:
        results = workers.run(depths)
        for _ in plan.reports.progress("depths")(depths):
            of_depth, lines = next(results)
            rows.append(of_depth)
            for line in lines:
                plan.reports.line(line)
    return rows


@dataclass(frozen=True)
class _Fitter:
    """Fits all stages of a depth: a depth becomes its rows, and the lines of its report."""

    plan: RoundsPlan

    def __call__(self, depth: int) -> tuple[Rows, list[str]]:
        lines: list[str] = []
        reports = Reports(lines.append, measure=self.plan.reports.measure)
        return DepthRounds(replace(self.plan, reports=reports), depth).run(), lines


@dataclass(frozen=True)
class _Source:
    """Makes the fitter of a worker; it can be sent to other processes.

    Attributes:
        load: loads the model.
        questions: the questions of the fit.
        config: its options.
        folder: its folder.
        start: kind and weights of the head of each depth to start from; None for none.
        generation: how replies are generated.
        measure: further figures of replies; None for none.
        shared: full-depth replies by the name of their file.
    """

    load: Callable[[], HookedModel] | None
    questions: Questions
    config: FitConfig
    folder: Path
    start: dict[int, tuple[str, Mapping[str, Tensor]]] | None
    generation: Generation
    measure: Measure | None
    shared: Mapping[str, Sequence[Document]]

    @classmethod
    def of(cls, plan: RoundsPlan, load: Callable[[], HookedModel] | None) -> _Source:
        """The source for the fit of the calling process."""
        start: dict[int, tuple[str, Mapping[str, Tensor]]] | None = None
        if plan.start is not None:  # without the model, to which heads refer
            heads = {depth: plan.start.at(depth) for depth in map(int, plan.start.heads)}
            start = {
                depth: (head.name, {n: w.detach().cpu() for n, w in head.named_parameters()})
                for depth, head in heads.items()
            }
        folder = plan.folder.resolve()
        return cls(
            load,
            plan.questions,
            plan.config,
            folder,
            start,
            plan.generation,
            plan.reports.measure,
            plan.shared,
        )

    def __call__(self) -> _Fitter:
        """Load the model.

        Raises:
            EepolicyError: this machine does not have the folder of the fit.
        """
        assert self.load is not None  # otherwise there is no worker
        if not (self.folder / "fit.json").is_file():
            raise EepolicyError(
                f"a worker does not find {self.folder}: to fit depths on several machines, give a "
                "folder that all of them share, or more workers than depths"
            )
        torch.set_num_threads(1)  # a process per core
        model = self.load()
        start = None
        if self.start is not None:
            start = FittedHead(
                {
                    depth: KINDS.get(kind).restore(model.lens, depth, weights)
                    for depth, (kind, weights) in self.start.items()
                }
            ).to(model.device)
        reports = Reports(measure=self.measure)
        plan = RoundsPlan(
            model,
            self.questions,
            self.config,
            self.folder,
            start,
            self.generation,
            reports,
            self.shared,
        )
        return _Fitter(plan)
