"""Schemas of the files in a probe's folder."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from eepolicy.formats import Count, FileFormat, Positive, rising_depths


class ProbedModel(BaseModel):
    """The model in the identity of a probe; further keys are its fingerprint.

    Attributes:
        num_hidden_layers: number of layers.
        vocab_size: number of tokens of the vocabulary.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, protected_namespaces=())

    num_hidden_layers: Positive
    vocab_size: Positive


class ProbeIdentity(BaseModel):
    """The settings that the readouts of a probe depend on; see `ProbePlan.identity`.

    Attributes:
        model: the model.
        layout: vocabulary and chunks of the model; see `eepolicy.TokenLayout`.
        heads: hash of the weights of the exit heads.
        depths: depths that are read out.
        statistics: names of the statistics.
        top_k: number of top tokens that are stored; 0 for none.
        hidden_states: depths whose hidden states are stored.
        distributions: depths whose distributions are stored.
        dtype: data type of the stored numbers.
    """

    model_config = FileFormat.model_config

    model: ProbedModel
    layout: dict[str, Any]
    heads: str
    depths: Annotated[list[Positive], AfterValidator(rising_depths), Field(min_length=1)]
    statistics: list[str]
    top_k: Count
    hidden_states: Annotated[list[Positive], AfterValidator(rising_depths)]
    distributions: Annotated[list[Positive], AfterValidator(rising_depths)]
    dtype: str


class ProbeProgress(FileFormat):
    """`probe.json` of a probe's folder.

    Attributes:
        identity: settings that the readouts depend on, see `ProbeIdentity`.
        documents: number of whole documents.
        readouts: number of whole readouts.
        seen: hash of the documents so far; empty before the first one.
    """

    identity: dict[str, Any]
    documents: Count
    readouts: Count
    seen: str = Field(pattern=r"^([0-9a-f]{64})?$")
