"""Fit an exit predictor: where does the head agree with the full model?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional

from eepolicy.arguments import checked
from eepolicy.errors import EepolicyError
from eepolicy.fitting.predictor_config import PredictorConfig, PredictorResult
from eepolicy.heads.predictor import ExitPredictor
from eepolicy.hooked import HookedModel
from eepolicy.layerwise import probe
from eepolicy.modality import Modality
from eepolicy.probing import Document


@dataclass(frozen=True)
class _Examples:
    """Positions of one depth.

    Attributes:
        states: (positions, width) hidden states.
        agrees: (positions,) of float, 1 where the head has the full model's most likely token.
    """

    states: Tensor
    agrees: Tensor


@checked()
def fit_predictor(
    model: HookedModel,
    train: Sequence[Document],
    held_out: Sequence[Document],
    config: PredictorConfig,
    *,
    report: Callable[[str], None] = lambda _: None,
) -> PredictorResult:
    """Fit the probability that the model's exit heads agree with the full model.

    The target is 1 where the most likely token of the head is that of the last layer.  The loss is
    the binary cross-entropy, as for the classifier of CALM (arXiv 2207.07061, section 3.4).  The
    model and its heads do not change.  Hidden states of all positions stay in memory: 4 bytes times
    positions, depths and width.

    Args:
        model: model with the exit heads that a policy will use.
        train: replies to fit on.
        held_out: replies on which the best epoch is chosen and the result is measured.
        config: options.
        report: receives one line for each depth.

    Raises:
        EepolicyError: a depth is not below full depth, or the replies have no such positions.

    Examples:
        >>> from eepolicy.fitting import PredictorConfig, fit_predictor, generate_replies
        >>> model = eepolicy.load("pocket")
        >>> questions = [q["question"] for q in eepolicy.held_out("dev")[:6]]
        >>> replies = generate_replies(model, questions, max_new_tokens=40)
        >>> config = PredictorConfig(depths=(12,), epochs=1)
        >>> model.predictor = fit_predictor(model, replies[:4], replies[4:], config).predictor
        >>> out = model.generate("What color is snow?", "predictor>0.9@[12]")
        >>> bool((out.trace.readouts == 1).all())
        True
    """
    if not train or not held_out:
        raise EepolicyError("fitting takes replies to fit on and held-out replies; got none of one")
    if config.depths[-1] >= model.depth:
        raise EepolicyError(
            f"a predictor is fitted at depths from 1 to {model.depth - 1}; got {config.depths}"
        )
    examples = _examples(model, train, config), _examples(model, held_out, config)
    width = model.width
    predictor = ExitPredictor(
        config.depths, width, config.hidden, heads=repr(model.heads), seed=config.seed
    )
    metrics: dict[str, list[float]] = {}
    for depth in config.depths:
        ours = examples[0][depth], examples[1][depth]
        measured = _fit_depth(predictor, depth, *ours, config)
        for name, value in measured.items():
            metrics.setdefault(name, []).append(value)
        report(
            f"depth {depth}: the head agrees at {measured['agreement']:.1%}; held-out loss "
            f"{measured['loss']:.3f} nats, {measured['loss_of_share']:.3f} of a constant; "
            f"AUC {measured['auc']:.3f}"
        )
    notes = {
        "fitting": asdict(config),
        "replies": len(train),
        "held_out_replies": len(held_out),
        **metrics,
    }
    return PredictorResult(predictor.requires_grad_(False).to(model.device), notes)


def _examples(
    model: HookedModel, documents: Sequence[Document], config: PredictorConfig
) -> dict[int, _Examples]:
    """Hidden states and agreement of the positions to fit on, by depth."""
    result = probe(
        model,
        documents,
        depths=config.depths,
        statistics=("top1",),
        hidden_states=config.depths,
    )
    chosen: NDArray[np.bool_] = np.ones(len(result), np.bool_)
    if config.on != "both":
        chosen = result.modality == Modality[config.on.upper()]
    if not chosen.any():
        raise EepolicyError(f"the replies have no {config.on} positions")
    return {
        depth: _Examples(
            torch.from_numpy(result.hidden_states[i][chosen]),
            torch.from_numpy(result.agreement[i][chosen].astype(np.float32)),
        )
        for i, depth in enumerate(config.depths)
    }


def _fit_depth(
    predictor: ExitPredictor,
    depth: int,
    train: _Examples,
    held_out: _Examples,
    config: PredictorConfig,
) -> dict[str, float]:
    """Fit the network of one depth, keep its best epoch, and return its held-out metrics.

    It starts as the constant share of the training positions.
    """
    network = predictor.networks[str(depth)]
    optimizer = torch.optim.AdamW(
        network.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    share = (float(train.agrees.sum()) + 1) / (len(train.agrees) + 2)
    *_, last = network.children()
    torch.nn.init.constant_(last.get_parameter("bias"), math.log(share / (1 - share)))
    order = torch.Generator().manual_seed(config.seed)
    number = len(train.agrees)
    steps = config.epochs * -(-number // config.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    best, lowest = copy.deepcopy(network.state_dict()), _loss(predictor, depth, held_out)
    for _ in range(config.epochs):
        for rows in torch.randperm(number, generator=order).split(config.batch):
            scores = predictor.scores(train.states[rows], depth)
            functional.binary_cross_entropy_with_logits(scores, train.agrees[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        loss = _loss(predictor, depth, held_out)
        if loss < lowest:
            best, lowest = copy.deepcopy(network.state_dict()), loss
    network.load_state_dict(best)
    agreement = float(held_out.agrees.mean())
    return {
        "agreement": agreement,
        "loss": lowest,
        "loss_of_share": _entropy(agreement),
        "auc": _auc(predictor.probability(held_out.states, depth), held_out.agrees),
    }


@torch.no_grad()
def _loss(predictor: ExitPredictor, depth: int, examples: _Examples) -> float:
    """Cross-entropy of the predictions in nats a position."""
    scores = predictor.scores(examples.states, depth)
    return float(functional.binary_cross_entropy_with_logits(scores, examples.agrees))


def _entropy(share: float) -> float:
    """Cross-entropy in nats of a predictor that always says the share."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def _auc(scores: Tensor, agrees: Tensor) -> float:
    """Area under the ROC curve, from ranks; ties count half, and nan if all positions are alike.

    Args:
        scores: (positions,) predictions.
        agrees: (positions,) 1 where the head agrees.
    """
    positive = agrees.bool().numpy()
    yes, no = int(positive.sum()), int((~positive).sum())
    if not yes or not no:
        return float("nan")
    ranks = rankdata(scores.numpy())
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))
