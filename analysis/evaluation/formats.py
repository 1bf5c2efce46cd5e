"""One schema per file of a run folder: see `eepolicy.formats`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from eepolicy.formats import Count, FileFormat

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RunFile(FileFormat):
    """`run.json`: the settings of a comparison.

    Attributes:
        identity: settings that all records of the run share.
        notes: results of the setup, such as the calibrated policies.
    """

    identity: dict[str, Any]
    notes: dict[str, Any]


class QuestionLine(FileFormat):
    """A line of `questions.jsonl`: a question, with the key phrases of its right answer.

    Attributes:
        question: text of the question.
        keys: key phrases of the right answer, a list for aliases; None if it has none.
        task: name of its task.
        audio: file with the spoken question; None for a written one.
    """

    question: str
    keys: list[str | list[str]] | None = None
    task: str | None = None
    audio: str | None = None


class RecordLine(FileFormat):
    """A line of `records.jsonl`: a decoded reply.

    Attributes:
        question: text of the question.
        policy: spec string of the policy.
        seed: seed of sampling.
        spoken: whether the question was given as audio.
        text: text of the reply.
        ended: whether the reply ended with its end token, not at the token limit.
        layer_calls: number of layer calls of decoding, prefill excluded.
        readouts: number of exit head evaluations.
        tokens: (tokens,) ids of the reply.
        depths: (tokens,) depth of each token, plus its calls of a branch.
        modalities: (tokens,) modality of each token, see `Modality`.
        speech: key of the reply's speech in `speech.jsonl`; empty without speech.
    """

    question: str
    policy: str
    seed: int = 0
    spoken: bool = False
    text: str
    ended: bool
    layer_calls: Count
    readouts: Count
    tokens: list[Count]
    depths: list[Count]
    modalities: list[Annotated[int, Field(ge=0, le=1)]]
    speech: str = ""

    @model_validator(mode="after")
    def _same_lengths(self) -> RecordLine:
        lengths = len(self.tokens), len(self.depths), len(self.modalities)
        if len(set(lengths)) > 1:
            raise ValueError(
                "expected one depth and one modality per token; got "
                f"{lengths[0]} tokens, {lengths[1]} depths, {lengths[2]} modalities"
            )
        return self


class Speech(BaseModel):
    """The speech of one or more replies with the same units.

    Attributes:
        speech: key, a hash of the units.
        seconds: duration.
        transcript: transcript; None without speech recognition.
    """

    model_config = FileFormat.model_config

    speech: str
    seconds: Seconds
    transcript: str | None


class SpeechLine(FileFormat):
    """A line of `speech.jsonl`: the speech that was transcribed together.

    Clips share windows of speech recognition.  One line stores all of them or none, so that a
    stopped run does not transcribe a part of them in other windows.

    Attributes:
        clips: speech of replies.
    """

    clips: list[Speech]


class RatingLine(FileFormat):
    """A line of `ratings.jsonl`: the predicted mean opinion score of a speech.

    Attributes:
        speech: key of the speech.
        rater: name of the predictor.
        mos: score; None for speech that it cannot rate.
    """

    speech: str
    rater: str
    mos: Annotated[float, Field(allow_inf_nan=False)] | None


class TimingLine(FileFormat):
    """A line of `timings.jsonl`: a reply that was decoded alone and timed.

    Attributes:
        question: text of the question.
        policy: spec string of the policy.
        seconds: wall-clock time of decoding, prefill included.
        ttft: time to the first token in seconds.
        tokens: number of tokens.
    """

    question: str
    policy: str
    seconds: Seconds
    ttft: Seconds
    tokens: Count


class JudgementLine(FileFormat):
    """A line of `judgements.jsonl`: a judge's score of a reply.

    Attributes:
        question: text of the question.
        policy: spec string of the policy.
        seed: seed of sampling.
        score: score from 0 to 1; None if the judge gave none.
    """

    question: str
    policy: str
    seed: int = 0
    score: Annotated[float, Field(ge=0, le=1)] | None
