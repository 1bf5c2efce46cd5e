"""`restrict_vocab` against a mask over the whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import LAYOUT
from decoding import PROMPT, PROMPTS
from transformers import LogitsProcessor

from eepolicy import (
    ChunkClock,
    EepolicyError,
    ExitHead,
    HookedModel,
    Modality,
)


class OnlySpeech(LogitsProcessor):
    """What `restrict_vocab` does, by hand: only speech may continue a speech chunk."""

    def __call__(self, input_ids, scores):
        reply = input_ids[0, len(PROMPT) :]
        clock = ChunkClock(LAYOUT)
        for token in reply.tolist():
            clock.advance(token)
        if clock.modality == Modality.TEXT:
            return scores
        allowed = [*range(*LAYOUT.speech), LAYOUT.end]
        only = torch.full_like(scores, -torch.inf)
        only[:, allowed] = scores[:, allowed]
        return only


@pytest.mark.parametrize("policy", ["full", "both=static@3", "spark:triple@2"])
def test_restrict_vocab_reads_what_a_mask_would_leave(hooked, policy):
    options = {"max_new_tokens": 30, "temperature": 1.5, "seed": 3}
    plain = hooked.generate(PROMPT, policy, **options)
    masked = hooked.generate(PROMPT, policy, logits_processor=[OnlySpeech()], **options)
    restricted = hooked.generate(PROMPT, policy, restrict_vocab=True, **options)
    assert restricted.tokens.tolist() == masked.tokens.tolist()
    assert restricted.tokens.tolist() != plain.tokens.tolist()  # else the mask did nothing
    for name, value in vars(masked.trace).items():
        assert np.array_equal(getattr(restricted.trace, name), value), name


def test_a_head_of_one_modality_does_not_read_out_others(stock):
    hooked = HookedModel(stock, layout=LAYOUT)
    hooked.heads = hooked.lens.restricted_to(LAYOUT.speech)
    for restricted, sentence in ((False, "a reply needs all of them"), (True, "use LogitLens")):
        with pytest.raises(EepolicyError, match=sentence):
            hooked.generate(PROMPT, "static@2", max_new_tokens=40, restrict_vocab=restricted)


def test_restrict_vocab_pays_for_speech_ids_only(hooked):
    over, whole = [], []
    lens = hooked.heads

    class Counting(ExitHead):
        def logits(self, hidden, depth):
            whole.append(len(hidden))
            return lens.logits(hidden, depth)

        def logits_over(self, hidden, depth, ids):
            over.append((len(hidden), ids.start, ids.stop))
            return lens.logits_over(hidden, depth, ids)

    hooked.heads = Counting()
    outs = hooked.generate(PROMPTS, "both=static@2", max_new_tokens=40, restrict_vocab=True)
    modality = np.concatenate([out.trace.modality for out in outs])
    assert sum(whole) == (modality == Modality.TEXT).sum()
    by_range = dict.fromkeys((tuple(ids) for _, *ids in over), 0)
    for rows, *ids in over:
        by_range[tuple(ids)] += rows
    speech = (modality == Modality.SPEECH).sum()
    assert by_range == {LAYOUT.speech: speech, (LAYOUT.end, LAYOUT.end + 1): speech}
    for prompt, out in zip(PROMPTS, outs, strict=True):
        alone = hooked.generate(prompt, "both=static@2", max_new_tokens=40, restrict_vocab=True)
        assert alone.tokens.tolist() == out.tokens.tolist()
