"""Sizes of the two models of the paper, from their published configs and from loaded models."""

from __future__ import annotations

from dataclasses import dataclass

from eepolicy.hooked import HookedModel
from eepolicy.loading.cards import shipped_cards
from eepolicy.model.kv_cache import numbers_per_token
from eepolicy.speech.vocoders import sampling_rate_of


@dataclass(frozen=True)
class ModelSize:
    """Sizes that hours and gigabytes depend on.

    Attributes:
        name: name of the model card.
        weights: number of all weights, audio encoder included.
        layers: number of decoder layers.
        width: width of the decoder.
        vocabulary: number of ids.
        layer_weights: number of weights of a decoder layer.
        cached: numbers in the keys and values of a token in a layer.
        rate: speech tokens a second.
        text_chunk: text tokens in a chunk.
        speech_chunk: speech tokens in a chunk.
        sampling_rate: samples a second of the sound.
    """

    name: str
    weights: int
    layers: int
    width: int
    vocabulary: int
    layer_weights: int
    cached: int
    rate: float
    text_chunk: int
    speech_chunk: int
    sampling_rate: int

    @property
    def layer_bytes(self) -> float:
        """Bytes of a layer in bfloat16."""
        return 2.0 * self.layer_weights

    @property
    def head_bytes(self) -> float:
        """Bytes of an output embedding in bfloat16."""
        return 2.0 * self.width * self.vocabulary

    @property
    def cache_bytes(self) -> float:
        """Bytes of the keys and values of a token in a layer, in bfloat16."""
        return 2.0 * self.cached

    @classmethod
    def of(cls, model: HookedModel) -> ModelSize:
        """The sizes of a loaded model with a card.

        Args:
            model: the model.
        """
        card = model.card
        assert card is not None
        encoder = getattr(model.audio_encoder, "encoder", None)
        parts = [model.model, *([encoder] if hasattr(encoder, "parameters") else [])]
        return cls(
            card.name,
            sum(p.numel() for part in parts for p in part.parameters()),
            model.depth,
            model.width,
            model.vocab_size,
            sum(p.numel() for layer in model.parts.layers for p in layer.parameters())
            // model.depth,
            numbers_per_token(model.model.config),
            card.rate or 25.0,
            card.text_chunk,
            card.speech_chunk,
            sampling_rate_of(model.vocoder),
        )


@dataclass(frozen=True)
class _Decoder:
    """A decoder with a gated MLP, biases of queries, keys and values, and two embeddings.

    Attributes:
        layers: number of layers.
        width: width.
        inner: width of the MLP.
        keys: width of the keys of all groups.
        vocabulary: number of ids.
    """

    layers: int
    width: int
    inner: int
    keys: int
    vocabulary: int

    @property
    def layer(self) -> int:
        """Number of weights of a layer."""
        attention = 2 * self.width**2 + 2 * self.width * self.keys + self.width + 2 * self.keys
        return attention + 3 * self.width * self.inner + 2 * self.width

    def size(self, card: str, encoder: int, sampling_rate: int) -> ModelSize:
        """The sizes of a model with this decoder.

        Args:
            card: name of the model card.
            encoder: number of weights of the audio encoder.
            sampling_rate: samples a second of the sound.
        """
        own = shipped_cards()[card]
        assert own.rate is not None
        weights = self.layers * self.layer + 2 * self.vocabulary * self.width + self.width
        return ModelSize(
            card,
            weights + encoder,
            self.layers,
            self.width,
            self.vocabulary,
            self.layer,
            2 * self.keys,
            own.rate,
            own.text_chunk,
            own.speech_chunk,
            sampling_rate,
        )


def published_sizes() -> dict[str, ModelSize]:
    """The models of the paper, from the config.json of their checkpoints, by card."""
    step = _Decoder(layers=28, width=3584, inner=18_944, keys=512, vocabulary=158_720)
    glm = _Decoder(layers=40, width=4096, inner=13_696, keys=256, vocabulary=168_960)
    return {
        # encoder of 32 layers and width 1280, with its adapter
        "step-audio-2-mini": step.size("step-audio-2-mini", 651_852_544, 24_000),
        "glm-4-voice": glm.size("glm-4-voice", 0, 22_050),
    }
