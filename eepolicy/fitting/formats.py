"""Schemas of replies and of the checkpoint of a fit."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, model_serializer, model_validator

from eepolicy.formats import Count, FileFormat, Fingerprint, Positive, SamplingOption


class CheckpointHeader(FileFormat):
    """The header of a fit's checkpoint; weights and optimizer states are tensors.

    Attributes:
        identity: model, options and replies of the fit.
        epoch: number of finished epochs.
        epochs_without_gain: number of epochs since a depth last improved.
        metrics: best value of each metric so far, per depth.
        step: number of finished steps of the epoch that is not finished.
    """

    identity: dict[str, Any]
    epoch: Count
    epochs_without_gain: Count
    metrics: dict[str, list[float]]
    step: Count = 0


class RepliesHeader(FileFormat):
    """The first line of a file of replies.

    Attributes:
        model: the model that gives the replies.
        dtype: data type of its weights.
        layout: its vocabulary and chunks; see `eepolicy.TokenLayout`.
        questions: number of questions.
        max_new_tokens: maximum number of tokens per reply.
        policy: spec string of the exit policy; empty for full depth.
        heads: hash of the weights of the exit heads; empty for full depth.
        sampling: sampling options; empty for greedy replies.
    """

    model: Fingerprint
    dtype: str
    layout: dict[str, Any]
    questions: Count
    max_new_tokens: Positive
    policy: str = ""
    heads: str = ""
    sampling: dict[str, SamplingOption] = Field(default_factory=dict)


class ReplyLine(BaseModel):
    """A further line of a file of replies; the file has it as `[prompt, tokens]`.

    Attributes:
        prompt: number of tokens in the prompt.
        tokens: ids of prompt and reply.
    """

    model_config = FileFormat.model_config

    prompt: Count
    tokens: list[Count]

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, data: Any) -> Any:
        if isinstance(data, list) and len(data) == 2:
            return {"prompt": data[0], "tokens": data[1]}
        return data

    @model_validator(mode="after")
    def _prompt_within_tokens(self) -> ReplyLine:
        if self.prompt > len(self.tokens):
            raise ValueError(
                f"expected a prompt of at most {len(self.tokens)} tokens; got {self.prompt}"
            )
        return self

    @model_serializer
    def _to_list(self) -> list[Any]:
        return [self.prompt, self.tokens]
