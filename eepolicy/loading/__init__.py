"""Loading: the pocket model, speech models with a card, and any causal language model."""

from eepolicy.loading.auto import load
from eepolicy.loading.cards import card_named, read_card, shipped_cards
from eepolicy.loading.codebooks import load_codebooks
from eepolicy.loading.convert import save_converted
from eepolicy.loading.pocket import held_out, pocket_folder
from eepolicy.loading.upstream.glm_speech_tokenizer import add_speech_tokenizer
from eepolicy.speech.model_card import ModelCard

__all__ = [
    "ModelCard",
    "add_speech_tokenizer",
    "card_named",
    "held_out",
    "load",
    "load_codebooks",
    "pocket_folder",
    "read_card",
    "save_converted",
    "shipped_cards",
]
