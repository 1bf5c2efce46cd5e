"""Measure the drift of one run on some questions; a worker can do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from eepolicy import EepolicyError, HookedModel, Modality, probe
from eepolicy.analysis.stats.divergences import (
    divergences,
    edit_share,
    first_difference,
    warped_distance,
)
from eepolicy.decode.output import Output
from eepolicy.speech.vocoders import codebook_of


@dataclass(frozen=True)
class DriftItem:
    """Questions that are decoded together.

    Attributes:
        questions: questions in text.
        start: index of the first one among all questions.
        run: spec strings of a policy and a fill; None for the full model alone.
        full: ids of the full model's replies; empty for the full model.
    """

    questions: Sequence[str]
    start: int = 0
    run: tuple[str, str] | None = None
    full: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class DriftRows:
    """What was measured of an item.

    Attributes:
        tokens: rows of `Drift.tokens`; empty for the full model.
        replies: rows of `Drift.replies`; empty for the full model.
        full: ids of the replies of the full model.
    """

    tokens: pd.DataFrame = field(default_factory=pd.DataFrame)
    replies: pd.DataFrame = field(default_factory=pd.DataFrame)
    full: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class DriftMeter:
    """Decodes an item and compares it with the full model.

    Attributes:
        model: model with its exit heads.
        max_new_tokens: maximum length of a reply.
    """

    model: HookedModel
    max_new_tokens: int

    @classmethod
    def make(cls, load: Callable[[], HookedModel] | None, max_new_tokens: int) -> DriftMeter:
        """Load the model in a worker."""
        assert load is not None  # otherwise there is no worker
        torch.set_num_threads(1)  # a process per core
        return cls(load(), max_new_tokens)

    def __call__(self, item: DriftItem) -> DriftRows:
        """Decode and measure."""
        model, questions = self.model, list(item.questions)
        if item.run is None:
            outs = model.generate(questions, max_new_tokens=self.max_new_tokens, do_sample=False)
            return DriftRows(full=[out.tokens.tolist() for out in outs])
        policy, fill = item.run
        outs = model.generate(
            questions,
            policy,
            self.max_new_tokens,
            fill=fill,
            do_sample=False,
            record={"statistics": (), "hidden_states": "all", "dtype": torch.float32},
        )
        tokens, replies = [], []
        for number, (out, full) in enumerate(zip(outs, item.full, strict=True), item.start):
            run = {"policy": policy, "fill": fill, "document": number}
            tokens.append(state_drift(model, out).assign(**run))
            replies.append(trajectory_drift(model, out, full) | run)
        return DriftRows(pd.concat(tokens), pd.DataFrame(replies))


def refuse_branches(model: HookedModel, depths: Iterable[int]) -> None:
    """Refuse depths whose readout is not one of the state at the depth.

    Raises:
        EepolicyError: the heads have a branch there.
    """
    for depth in sorted({*depths} & {*model.branches}):
        raise EepolicyError(
            f"the exit head at depth {depth} is a branch, which reads the states of all positions, "
            "and drift compares the readouts of single states: give policies that exit at other "
            "depths, or other heads"
        )


@torch.no_grad()
def state_drift(model: HookedModel, out: Output) -> pd.DataFrame:
    """Compare a run with the full model on the same tokens.

    Args:
        model: model that generated the output.
        out: output of `generate(record={"hidden_states": "all", ...})`.

    Returns:
        One row for each token, with the columns of `TOKEN_MEASURES` of the study.

    Raises:
        EepolicyError: the reply exits at a branch.
    """
    refuse_branches(model, out.trace.depth.tolist())
    assert out.record is not None
    full = probe(model, out, statistics=(), hidden_states="all", dtype=torch.float32)
    device, depth = model.device, out.trace.depth
    index = np.arange(len(depth))
    # hidden states (tokens, width): the run's, and the full model's at the same and at full depth
    own = torch.from_numpy(np.ascontiguousarray(out.record.hidden_states[depth - 1, index]))
    same = torch.from_numpy(np.ascontiguousarray(full.hidden_states[depth - 1, index]))
    last = torch.from_numpy(np.ascontiguousarray(full.hidden_states[-1]))
    expected = model.logits(last.to(device), model.depth)  # (tokens, vocabulary)
    logits, without_drift = torch.empty_like(expected), torch.empty_like(expected)
    for d in np.unique(depth):
        chosen = torch.from_numpy(depth == d)
        for target, hidden in ((logits, own), (without_drift, same)):
            target[chosen] = model.logits(hidden[chosen].to(device), int(d))
    modalities = np.array([m.name.lower() for m in Modality])
    return pd.DataFrame(
        {
            "modality": modalities[out.trace.modality],
            "chunk": out.trace.chunk,
            "phase": out.trace.phase,
            "depth": depth,
            "since_refresh": out.trace.since_refresh,
            **divergences(logits, expected),
            "drift_kl": divergences(logits, without_drift)["kl"],
            "state": ((own - same).norm(dim=-1) / same.norm(dim=-1)).numpy(),
            "cosine": torch.cosine_similarity(own, last, dim=-1).numpy(),
        }
    )


def trajectory_drift(model: HookedModel, out: Output, full: Sequence[int]) -> dict[str, float]:
    """Compare a reply with the full model's to the same prompt; see `Drift.replies`.

    Args:
        model: model that generated the output.
        out: the reply.
        full: ids of the full model's reply.
    """
    expected = model.layout.units(torch.tensor(full)).tolist()
    units = out.units.tolist()
    index = first_difference(out.tokens.tolist(), [*full])
    acoustic = float("nan")
    codebook = codebook_of(model.vocoder)
    if codebook is not None:
        patches = codebook.double().numpy()
        acoustic = warped_distance(patches[units], patches[expected])
    return {
        "edit_share": edit_share(units, expected),
        "first_difference": float("nan") if index is None else float(index),
        "same": float(index is None),
        "acoustic": acoustic,
    }
