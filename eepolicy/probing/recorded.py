"""Records of decoding: what the layers that ran say about each token of a reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from eepolicy.decode.output import Output
from eepolicy.decode.recorder import Recorder
from eepolicy.errors import EepolicyError
from eepolicy.modality import TokenLayout
from eepolicy.model.backbone import Backbone
from eepolicy.probing.documents import LABELS, Document
from eepolicy.probing.plan import ProbeConfig, ProbePlan
from eepolicy.probing.readout import Readouts, StateReader
from eepolicy.probing.result import ProbeResult


def record_plan(backbone: Backbone, record: bool | Mapping[str, Any] | None) -> ProbePlan | None:
    """Check the option `record` of `generate`.

    Args:
        backbone: model that decodes.
        record: True for all statistics and hidden states, or fields of `ProbeConfig` by name.

    Returns:
        What to read out and keep; None for no record.

    Raises:
        EepolicyError: an unknown option, or a value that does not fit the model.
    """
    if record is None or record is False:
        return None
    options = {"hidden_states": "all"} if record is True else dict(record)
    unknown = [name for name in options if name not in ProbeConfig.__dataclass_fields__]
    if unknown:
        raise EepolicyError(
            f"a record takes {', '.join(ProbeConfig.__dataclass_fields__)}; "
            f"got {', '.join(map(str, unknown))}"
        )
    plan = ProbePlan.of(backbone, ProbeConfig(**options))
    for statistic in plan.statistics:
        if statistic.of_attention or statistic.given:
            raise EepolicyError(
                f"a record has neither attention nor given tokens, which {statistic.name!r} needs: "
                "probe the output of generate instead"
            )
    return plan


def recorded_result(
    backbone: Backbone,
    output: Output,
    recorder: Recorder,
    plan: ProbePlan,
    layout: TokenLayout,
    number: int = 0,
) -> ProbeResult:
    """Read out the hidden states that a `Recorder` kept of one reply.

    Args:
        backbone: model that decoded.
        output: reply with its prompt and trace.
        recorder: states of the reply's row.
        plan: what to read out and keep.
        layout: vocabulary and chunks, for the labels.
        number: row of the reply, which is the number of the document.

    Returns:
        Labelled statistics, (depths, tokens) each; nan or -1 where a layer did not run.  The
        result has no tokenizer yet.
    """
    # a prompt given as embeddings has no ids: -1 stands for it
    prompt = output.prompt if len(output.prompt) else output.tokens.new_tensor([-1])
    tokens = torch.cat([prompt.cpu(), output.tokens])
    document = Document(tokens, len(prompt), output.trace.depth)
    return recorded_document(backbone, document, recorder, plan, layout, number)


@torch.no_grad()
def recorded_document(
    backbone: Backbone,
    document: Document,
    recorder: Recorder,
    plan: ProbePlan,
    layout: TokenLayout,
    number: int,
) -> ProbeResult:
    """As `recorded_result`, of a reply as a document with a prompt and with its depths."""
    states, branch_states = recorder.states[number], recorder.branch_states[number]
    reply = document.tokens[document.prompt :]
    fed, following = states[: len(reply)], reply.to(backbone.device)
    # tokens with states at the same depths are read out together
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for index, entry in enumerate(fed):
        key = (tuple(sorted(entry)), tuple(sorted(branch_states[index])))
        groups.setdefault(key, []).append(index)
    reader, parts, order = StateReader(backbone, plan, layout), [], []
    for (depths, branches), indices in groups.items():
        stacked = {depth: torch.stack([fed[i][depth] for i in indices]) for depth in depths}
        after = {d: torch.stack([branch_states[i][d] for i in indices]) for d in branches}
        parts.append(reader.read(Readouts(stacked, following[torch.tensor(indices)], after)))
        order += indices
    back = np.argsort(order)
    columns = {name: torch.cat([part[name] for part in parts]).numpy()[back] for name in parts[0]}
    columns |= dict(zip(LABELS, document.labels(layout, backbone.depth), strict=True))
    columns["document"] = np.full(len(reply), number)
    return ProbeResult.of(backbone, plan, columns)
