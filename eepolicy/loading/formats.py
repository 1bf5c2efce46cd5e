"""Schemas of entries in the `config.json` of a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from eepolicy.formats import Count, FileFormat, Positive


class ModelSizes(BaseModel):
    """The sizes in the `config.json` of a model, where it has them.

    Attributes:
        model_type: its family.
        hidden_size: width of the hidden states.
        num_hidden_layers: number of layers.
        num_attention_heads: number of attention heads.
        num_key_value_heads: number of heads of keys and values.
        vocab_size: number of tokens of the vocabulary.
        intermediate_size: width within the feed-forward network, of all layers or of each.
    """

    model_config = FileFormat.model_config

    model_type: Annotated[str, Field(min_length=1)] | None = None
    hidden_size: Positive | None = None
    num_hidden_layers: Annotated[int, Field(ge=1, le=10_000)] | None = None
    num_attention_heads: Positive | None = None
    num_key_value_heads: Positive | None = None
    vocab_size: Positive | None = None
    intermediate_size: Positive | list[Positive] | None = None


class AudioEncoderEntry(FileFormat):
    """The audio encoder in the `config.json` of a converted folder.

    Attributes:
        start: id of the token before a segment.
        patch: id of the token that an embedding of the segment replaces.
        end: id of the token after a segment.
        sizes: sizes of the encoder: see the module of its kind in `eepolicy.speech`.
        kind: the encoder, by the `model_type` of its model.
    """

    start: Count
    patch: Count
    end: Count
    sizes: dict[str, int]
    kind: Literal["step_audio_2", "covo_audio"] = "step_audio_2"
