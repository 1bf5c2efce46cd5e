"""The outputs of a decoding session."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from eepolicy.decode.output import Output
from eepolicy.decode.reply import Reply
from eepolicy.decode.session import DecodeSession
from eepolicy.speech.vocoders import Vocoder


def outputs_of(
    session: DecodeSession,
    replies: Sequence[Reply],
    tokenizer: PreTrainedTokenizerBase | None,
    vocoder: Vocoder | None,
) -> list[Output]:
    """One output a row.

    Args:
        session: session that has run.
        replies: its replies.
        tokenizer: decodes the text of the replies; None for no text.
        vocoder: turns units into sound; None for a model without one.
    """
    request, seconds = session.request, session.seconds
    _warn_of_length(session, replies)
    prompts = [ids[n:].cpu() for ids, n in zip(request.ids, request.padding, strict=True)]
    if request.prompt.is_floating_point():  # ids do not describe embeddings
        prompts = [ids[:0] for ids in prompts]
    outputs = []
    for prompt, reply in zip(prompts, replies, strict=True):
        ids, text = torch.tensor(reply.tokens), None
        if tokenizer is not None:
            text_ids = reply.layout.text_ids(ids[:-1] if reply.ended else ids)
            text = tokenizer.decode(text_ids).strip()
        output = Output(
            prompt=prompt,
            tokens=ids,
            text=text,
            units=reply.layout.units(ids),
            ended=reply.ended,
            trace=session.trace(reply),
            seconds=seconds,
            ttft=session.ttft,
            vocoder=vocoder,
        )
        outputs.append(output)
    return outputs


def _warn_of_length(session: DecodeSession, replies: Sequence[Reply]) -> None:
    """Warn if a row is longer than the model was made for, as transformers does."""
    config = session.batch.backbone.model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    width, padding = session.request.prompt.shape[1], session.request.padding
    # the last token of a reply has no position: no step reads it
    lengths = [width - n + len(reply) - 1 for n, reply in zip(padding, replies, strict=True)]
    if isinstance(limit, int) and max(lengths) > limit:
        warnings.warn(
            f"a row has {max(lengths)} positions, and the model was made for {limit} "
            "(max_position_embeddings): the end of the reply may be wrong",
            stacklevel=5,
        )
