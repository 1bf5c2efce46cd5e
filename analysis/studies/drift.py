"""What drifts between refreshes: a run against the full model, on the same tokens and alone.

*Readout*: on the tokens that the run produced, what it read out against what the full model says:
what the exit head does not know, and what has drifted.
*State drift*: the same head on the run's hidden state and on the full model's of the same depth and
tokens: what has drifted alone.
*Trajectory drift*: the reply of the run against that of the full model to the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eepolicy import HookedModel, probe
from eepolicy.analysis.stats.clustered import Intervals, as_columns, means, sums
from eepolicy.analysis.stats.divergences import (
    DIVERGENCES,
    divergences,
    edit_share,
    first_difference,
    warped_distance,
)
from eepolicy.decode.output import Output
from eepolicy.modality import Modality
from eepolicy.speech.vocoders import codebook_of

#: fill of a run: colour and marker
FILLS = {"catch_up": ("#009E73", "o"), "propagate": ("#E69F00", "^"), "mask": ("#CC79A7", "s")}
#: what is drawn, and how it is called
STATE = DIVERGENCES | {
    "drifted": "KL of the same head on the full model's\nhidden state, nats",
    "state": "hidden state's distance from the full model's\nat its own depth, share of its norm",
    "cosine": "cosine with the full model's last hidden state",
}


#: column of the table: heading, factor, digits
COLUMNS = {
    "refresh_kl": ("speech at a refresh: KL, nats", 1.0, 4),
    "refresh_top1": ("same likeliest token, %", 100.0, 1),
    "refresh_state": ("distance of the hidden state, % of its norm", 100.0, 1),
    "text_kl": ("text: KL, nats", 1.0, 4),
    "below_kl": ("speech below: KL, nats", 1.0, 3),
    "below_drifted": ("of it drifted", 1.0, 3),
    "below_top1": ("same likeliest token, %", 100.0, 1),
    "same": ("replies the same, %", 100.0, 0),
    "edit_share": ("units edited, %", 100.0, 1),
    "acoustic": ("acoustic distance", 1.0, 2),
}

#: what is nothing where nothing drifts
ZERO = ("kl", "js", "drifted", "state")


@dataclass(frozen=True, eq=False)
class Drift:
    """What was measured of some runs.

    Attributes:
        tokens: a row a token: `policy`, `fill`, `document`, `modality`, `chunk`, `phase`, `depth`,
            `since_refresh`, and what stands in `STATE`.
        replies: a row a reply: `policy`, `fill`, `document`, `edit_share` (edit distance of the
            units from the full model's, as a share), `first_difference` (first token that differs,
            nan for none), `same` (no token differs), `acoustic` (mean distance of the units'
            sounds along the best alignment).
        speech_chunk: places of a speech chunk.
    """

    tokens: pd.DataFrame
    replies: pd.DataFrame
    speech_chunk: int

    @property
    def runs(self) -> list[tuple[str, str]]:
        """Policies and fills, in the order they were run."""
        return list(dict.fromkeys(zip(self.tokens.policy, self.tokens.fill, strict=True)))

    def spoken(self, policy: str, fill: str) -> pd.DataFrame:
        """The speech tokens of a run."""
        chosen = (self.tokens.policy == policy) & (self.tokens.fill == fill)
        return self.tokens[chosen & (self.tokens.modality == "speech")]

    def by(self, column: str, measure: str, policy: str, fill: str) -> pd.DataFrame:
        """A measure on speech by phase, chunk or distance since the last refresh.

        Args:
            column: `phase`, `chunk` or `since_refresh`.
            measure: a key of `STATE`.
            policy: of the run.
            fill: of the run.

        Returns:
            `value`, `low` and `high`, 95 % bootstrap intervals over replies, by the column.
        """
        spoken = self.spoken(policy, fill)
        rows = {}
        for place, part in spoken.groupby(column):
            # every reply counts in the resampling, those that do not reach the place with nothing
            values = np.where(
                spoken[column].to_numpy() == place, spoken[measure].to_numpy(), np.nan
            )
            found = means(*sums(values, spoken.document.to_numpy()))
            rows[place] = [float(found.value), float(found.low), float(found.high), len(part)]
        return pd.DataFrame.from_dict(
            rows, orient="index", columns=["value", "low", "high", "tokens"]
        ).rename_axis(column)

    def table(self) -> str:
        """Everything as Markdown, a line a run.

        Below full depth the readout's KL holds what the exit head does not know; what has drifted
        of it stands in the column behind.  A schedule with one exit depth reads nothing there that
        is missing, so that drift shows at full depth: at refreshes, and in text.
        """
        headings = ["policy", "fill", *(heading for heading, _, _ in COLUMNS.values())]
        lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
        for policy, fill in self.runs:
            found = self.summary(policy, fill)
            shown = [
                found[name].text(digits=digits, scale=scale)
                for name, (_, scale, digits) in COLUMNS.items()
            ]
            lines.append(f"| `{policy}` | {fill} | {' | '.join(shown)} |")
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """What `table` shows, a row a run: `policy`, `fill`, `x`, `x_low` and `x_high`."""
        rows = [{"policy": p, "fill": f} | as_columns(self.summary(p, f)) for p, f in self.runs]
        return pd.DataFrame(rows)

    def summary(self, policy: str, fill: str) -> dict[str, Intervals]:
        """The figures of a run, see `COLUMNS`: means over tokens or replies; nan for none."""
        spoken = self.spoken(policy, fill)
        whole, below = spoken[spoken.since_refresh == 0], spoken[spoken.since_refresh > 0]
        chosen = (self.tokens.policy == policy) & (self.tokens.fill == fill)
        text = self.tokens[chosen & (self.tokens.modality == "text")]
        replies = self.replies[(self.replies.policy == policy) & (self.replies.fill == fill)]
        return {
            "refresh_kl": _mean(whole, "kl"),
            "refresh_top1": _mean(whole, "top1"),
            "refresh_state": _mean(whole, "state"),
            "text_kl": _mean(text, "kl"),
            "below_kl": _mean(below, "kl"),
            "below_drifted": _mean(below, "drifted"),
            "below_top1": _mean(below, "top1"),
            "same": _mean(replies, "same"),
            "edit_share": _mean(replies, "edit_share"),
            "acoustic": _mean(replies, "acoustic"),
        }

    def figure(self, measure: str = "kl") -> Figure:
        """The saw-tooth: a measure along the speech chunk, a panel a policy, a line a fill."""
        policies = list(dict.fromkeys(p for p, _ in self.runs))
        columns = min(2, len(policies))
        rows = -(-len(policies) // columns)
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(1 + 3.9 * columns, 0.6 + 2.4 * rows),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for ax, policy in zip(axes.flat, policies, strict=False):
            self.draw(ax, policy, measure)
        for ax in axes.flat[len(policies) :]:
            ax.set_axis_off()
        figure.supylabel(STATE[measure], fontsize=9)
        if measure in ZERO:
            axes[0, 0].set_ylim(-0.002)  # all of them share it, and it follows all that is drawn
        named = {
            label: handle
            for ax in axes.flat
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend(named.values(), named, loc="outside upper center", ncols=len(named))
        return figure

    def draw(self, ax: Axes, policy: str, measure: str = "kl") -> None:
        """One panel of `figure`: refreshes are the shaded places.

        Divergences are on a scale that is linear up to a hundredth, so that nothing is seen to be
        nothing, and logarithmic above.
        """
        fills = [f for p, f in self.runs if p == policy]
        for number, fill in enumerate(fills):
            found = self.by("phase", measure, policy, fill)
            # the last chunk runs on behind the places of the others: few replies reach there
            found = found[found.index < self.speech_chunk]
            colour, marker = FILLS[fill]
            moved = found.index + 0.12 * (number - (len(fills) - 1) / 2)
            ax.plot(moved, found.value, color=colour, lw=1, label=fill, marker=marker, ms=4)
            ax.vlines(moved, found.low, found.high, color=colour, lw=1)
        spoken = self.spoken(policy, fills[0])
        whole = spoken.groupby("phase").since_refresh.agg(lambda s: (s == 0).mean())
        for place in whole.index[whole > 0.5]:
            ax.axvspan(place - 0.5, place + 0.5, color="#000000", alpha=0.07, lw=0)
        if measure in ZERO:
            ax.set_yscale("symlog", linthresh=0.01, linscale=0.5)
        ax.set_title(policy, fontsize=9)
        ax.set_xlabel("place in the speech chunk")
        ax.set_xlim(-0.7, self.speech_chunk - 0.3)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def drift(
    model: HookedModel,
    questions: Sequence[str],
    runs: Sequence[tuple[str, str]],
    *,
    batch: int = 25,
    max_new_tokens: int = 400,
    progress: Callable[[Iterable[tuple[str, str, int]]], Iterable[tuple[str, str, int]]] = iter,
) -> Drift:
    """Decode under each policy and fill, and hold it against the full model.

    Args:
        model: with its exit heads.
        questions: in text.
        runs: policy as a spec string, and fill.
        batch: replies side by side.
        max_new_tokens: most tokens of a reply.
        progress: wraps the batches, to show them.
    """
    full: dict[int, Output] = {}
    for start in range(0, len(questions), batch):
        outs = model.generate(questions[start : start + batch], max_new_tokens=max_new_tokens)
        full |= dict(enumerate(outs, start=start))
    tokens, replies = [], []
    work = [(p, f, start) for p, f in runs for start in range(0, len(questions), batch)]
    for policy, fill, start in progress(work):
        outs = model.generate(
            questions[start : start + batch],
            policy,
            max_new_tokens,
            fill=fill,
            record={"statistics": (), "hidden_states": "all", "dtype": torch.float32},
        )
        for number, out in enumerate(outs, start=start):
            state = state_drift(model, out)
            tokens.append(state.assign(policy=policy, fill=fill, document=number))
            replies.append(
                trajectory_drift(model, out, full[number])
                | {"policy": policy, "fill": fill, "document": number}
            )
    return Drift(pd.concat(tokens), pd.DataFrame(replies), model.layout.speech_chunk)


@torch.no_grad()
def state_drift(model: HookedModel, out: Output) -> pd.DataFrame:
    """What a run saw against the full model on the same tokens: a row a token.

    Args:
        model: that ran.
        out: generated with `record={"hidden_states": "all", ...}`.
    """
    assert out.record is not None
    full = probe(model, out, statistics=(), hidden_states="all", dtype=torch.float32)
    device, depth = model.model.device, out.trace.depth
    places = np.arange(len(depth))
    own = torch.from_numpy(np.ascontiguousarray(out.record.hidden_states[depth - 1, places]))
    same = torch.from_numpy(np.ascontiguousarray(full.hidden_states[depth - 1, places]))
    last = torch.from_numpy(np.ascontiguousarray(full.hidden_states[-1]))
    wanted = model.logits(last.to(device), model.depth)
    seen, undrifted = torch.empty_like(wanted), torch.empty_like(wanted)
    for d in np.unique(depth):
        chosen = torch.from_numpy(depth == d)
        for logits, states in ((seen, own), (undrifted, same)):
            logits[chosen] = model.logits(states[chosen].to(device), int(d))
    names = np.array([m.name.lower() for m in Modality])
    return pd.DataFrame(
        {
            "modality": names[out.trace.modality],
            "chunk": out.trace.chunk,
            "phase": out.trace.phase,
            "depth": depth,
            "since_refresh": out.trace.since_refresh,
            **divergences(seen, wanted),
            "drifted": divergences(seen, undrifted)["kl"],
            "state": ((own - same).norm(dim=-1) / same.norm(dim=-1)).numpy(),
            "cosine": torch.cosine_similarity(own, last, dim=-1).numpy(),
        }
    )


def trajectory_drift(model: HookedModel, out: Output, full: Output) -> dict[str, float]:
    """A reply against the full model's to the same prompt; see `Drift.replies`."""
    ours, theirs = out.units.tolist(), full.units.tolist()
    place = first_difference(out.tokens.tolist(), full.tokens.tolist())
    acoustic = float("nan")
    sounds = codebook_of(model.vocoder)
    if sounds is not None:
        known = sounds.double().numpy()
        acoustic = warped_distance(known[ours], known[theirs])
    return {
        "edit_share": edit_share(ours, theirs),
        "first_difference": float("nan") if place is None else float(place),
        "same": float(place is None),
        "acoustic": acoustic,
    }


def _mean(rows: pd.DataFrame, column: str) -> Intervals:
    if rows.empty:
        nothing = np.array(np.nan)
        return Intervals(nothing, nothing, nothing)
    return means(*sums(rows[column].to_numpy(), rows.document.to_numpy()))
