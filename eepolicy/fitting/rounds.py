"""Fit heads in rounds on the replies of the model that exits with them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from eepolicy.errors import EepolicyError
from eepolicy.fitting.config import FitConfig
from eepolicy.fitting.depth_rounds import DepthRounds, read_stage
from eepolicy.fitting.plan import Questions, Reports, RoundsPlan
from eepolicy.fitting.replies import Generation
from eepolicy.fitting.result import FitResult
from eepolicy.fitting.rounds_workers import run_on_workers, spreads_depths
from eepolicy.folder_lock import locked
from eepolicy.heads.fitted import KINDS, FittedHead
from eepolicy.hooked import HookedModel
from eepolicy.io import write_json

#: figures of all finished stages
RESULTS_FILE = "results.json"


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

    A drafter is verified, so its own replies are those of the full model: it is fitted on
    full-depth replies, without rounds.  Draft-OPD (arXiv 2605.29343) also replays from positions of
    rejected drafts; this is not implemented.

    Every stage is stored in a folder; a stopped fit continues from there.  Workers generate
    replies.  If there are at least as many depths as processes, each process fits other depths
    instead; on a cluster, all nodes then need the folder.

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
        EepolicyError: the folder belongs to another fit, another process works on it, or the
            options do not fit the model.
    """
    if config.depths is None and config.is_drafter:
        config = replace(config, depths=KINDS.get(config.kind).default_depths(model.depth))
    plan = RoundsPlan(
        model, questions, config, Path(folder), start, generation or Generation(),
        reports or Reports(),
    )  # fmt: skip
    if config.depths is None:
        raise EepolicyError("fitting in rounds takes depths, such as (6,)")
    if config.depths[-1] >= model.depth:
        raise EepolicyError(
            f"heads are fitted at rising depths from 1 to {model.depth - 1}; got {config.depths}"
        )
    with locked(plan.folder):
        plan.claim_folder()
        if spreads_depths(plan):
            parts = run_on_workers(plan)
        else:
            parts = [DepthRounds(plan, depth).run() for depth in config.depths]
        rows = [row for part in parts for row in part]
        heads = {
            depth: read_stage(model, plan.stage_folder(depth, config.rounds)).at(depth)
            for depth in config.depths
        }
        write_json(plan.folder / RESULTS_FILE, rows, indent=1)
    notes = {
        "fitting": asdict(config),
        "policy": [config.policy_at(depth) for depth in config.depths if depth],
        "replies": len(questions.train),
        "held_out_replies": len(questions.held_out),
        "rounds": rows,
    }
    return FitResult(FittedHead(heads).to(model.model.dtype), notes)
