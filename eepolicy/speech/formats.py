"""Schema of a model card."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from eepolicy.formats import Count, FileFormat, Positive, SamplingOption


class CardFile(FileFormat):
    """A model card: see `eepolicy.speech.model_card.ModelCard`."""

    name: str = Field(min_length=1)
    source: str
    model_type: str = Field(min_length=1)
    unit: str | Count
    text_chunk: Count
    speech_chunk: Positive
    end: str | Count
    prompt_prefix: str = ""
    prompt_suffix: str = ""
    spoken_prompt_prefix: str | None = None
    audio_start: str | None = Field(default=None, min_length=1)
    num_codes: Positive | None = None
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    end_of_text: str | None = None
    end_of_speech: str | None = None
    non_text_tokens: list[str] = Field(default_factory=list)
    sampling: dict[str, SamplingOption] = Field(default_factory=dict)
    vocoder: str = ""
    other_ends: list[str | Count] = Field(default_factory=list)
    codec: str | None = None
    codec_source: str | None = None
    voice_separator: str | None = None
    phonemes: str | None = None
    reads_aloud: bool = False
    marks_before_units: Count = 0
    turns: dict[str, str] = Field(default_factory=dict)

    @field_validator("unit", mode="before")
    @classmethod
    def _numbered(cls, unit: Any) -> Any:
        if isinstance(unit, list):
            raise ValueError("expected one range of units; several, as of Spark-TTS, cannot be one")
        if isinstance(unit, str) and "{i}" not in unit:
            raise ValueError(f"expected a token with {{i}} for its number, or an id; got {unit!r}")
        return unit
