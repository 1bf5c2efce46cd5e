"""The default rows of a comparison: the schedules of the paper, and adaptive policies beside them.

The schedules are those of arXiv 2603.09215.  All rows have about the same mean speech depth, except
those that exit at a branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.threshold_matching import matched_policy
from eepolicy.hooked import HookedModel
from eepolicy.layerwise import probe
from eepolicy.policies import Confidence, Entropy

#: spec string of the baseline
FULL = "full"
#: mean speech depth of the default rows, as a share of full depth
MEAN_DEPTH_SHARE = 0.8
#: number of questions on which thresholds are calibrated
CALIBRATION_QUESTIONS = 16


def scheduled_policies(full_depth: int, mean_depth: int) -> list[str]:
    """List full depth and the paper's schedules at one mean speech depth.

    Args:
        full_depth: number of layers of the model.
        mean_depth: mean speech depth over whole groups of `even`, `odd`, `triple` and `static`.
            The exit depth of `triple` is rounded down to a whole layer.

    Returns:
        Spec strings, full depth first.

    Examples:
        >>> from eepolicy.analysis.evaluation.default_policies import scheduled_policies
        >>> scheduled_policies(20, 16)[:3]
        ['full', 'static@16', 'spark:even@12']
    """
    pair = 2 * mean_depth - full_depth
    triple = (3 * mean_depth - full_depth) // 2
    return [
        FULL,
        f"static@{mean_depth}",
        f"spark:even@{pair}",
        f"spark:odd@{pair}",
        f"spark:triple@{triple}",
        f"text=spark:even@{pair}",
    ]


def adaptive_policies(
    model: HookedModel, questions: Sequence[str], mean_depth: int, config: RunConfig
) -> list[str]:
    """Calibrate entropy and confidence thresholds to a mean speech depth.

    The thresholds are chosen on full-depth replies.

    Args:
        model: model that replies.
        questions: questions to calibrate on.
        mean_depth: target of the mean speech depth.
        config: settings of the run.

    Returns:
        Spec strings of an entropy and a confidence policy.
    """
    candidates = tuple(range(2 * mean_depth - model.depth, model.depth, 2))
    compiled = config.decoding.compile
    replies = model.generate(
        list(questions), FULL, config.max_new_tokens, compile=compiled, do_sample=False
    )
    result = probe(model, replies, statistics=("entropy", "confidence"))
    kinds: tuple[type[Entropy] | type[Confidence], ...] = (Entropy, Confidence)
    return [matched_policy(kind, result, candidates, mean_depth).spec for kind in kinds]


def default_policies(
    model: HookedModel,
    questions: Sequence[Mapping[str, Any]],
    config: RunConfig,
) -> list[str]:
    """List the default rows: schedules, one row for each branch of the model, adaptive policies.

    Adaptive policies need questions to calibrate on.

    Args:
        model: model that replies.
        questions: questions of the comparison; they are not used for calibration.
        config: settings of the run, with questions to calibrate on.

    Returns:
        Spec strings, full depth first.
    """
    mean_depth = round(MEAN_DEPTH_SHARE * model.depth)
    rows = scheduled_policies(model.depth, mean_depth)
    # a branch predicts far better than the other heads, so its row exits at every speech token
    branches = [depth for depth in sorted(model.branches, reverse=True) if depth]
    rows[2:2] = [f"static@{depth}" for depth in branches]
    chosen = calibration_questions(questions, config)
    if chosen:
        rows[-1:-1] = adaptive_policies(model, chosen, mean_depth, config)
    return rows


def calibration_questions(questions: Sequence[Mapping[str, Any]], config: RunConfig) -> list[str]:
    """The questions to calibrate on: the first ones that are not among those of the comparison.

    Args:
        questions: questions of the comparison.
        config: settings of the run, with questions to calibrate on.
    """
    compared = {q["question"] for q in questions}
    others = [q["question"] for q in config.calibration if q["question"] not in compared]
    return others[:CALIBRATION_QUESTIONS]
