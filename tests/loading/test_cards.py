"""Model cards: any speech model on a stock backbone."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import eepolicy
from eepolicy import EepolicyError
from eepolicy.analysis.evaluation.config import RunConfig
from eepolicy.analysis.evaluation.load import RunIdentity
from eepolicy.formats import parse
from eepolicy.loading import ModelCard, card_named, shipped_cards

CARD = """
name = "toy"
source = "nobody/toy"
model_type = "llama"
unit = "<u{i}>"
text_chunk = 2
speech_chunk = 5
end = "<end>"
prompt_prefix = "<ask>"
prompt_suffix = "<answer>"
non_text_tokens = ["<fill>"]
num_codes = 20
"""


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(26)}
    made = Tokenizer(models.WordLevel(words, "w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<ask>", "<answer>", "<end>", "<fill>", *(f"<u{i}>" for i in range(24))]
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture
def folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "toy")
    tokenizer().save_pretrained(tmp_path / "toy")
    (tmp_path / "toy.toml").write_text(CARD)
    return tmp_path / "toy"


def test_a_card_makes_a_stock_model_speak(folder):
    model = eepolicy.load(str(folder), card=folder.with_suffix(".toml"))
    layout = model.layout
    assert (layout.text, layout.speech, layout.num_codes) == ((0, 30), (30, 60), 20)
    assert (layout.end, layout.non_text_ids) == (28, (29,))
    assert model.encode("w3 w4").tolist() == [26, 3, 4, 27]
    out = model.generate("w3 w4", "spark:triple@2", max_new_tokens=40)
    assert set(out.trace.depth[out.trace.modality == 0].tolist()) == {model.depth}
    assert set(out.trace.depth[out.trace.modality == 1].tolist()) == {2, model.depth}
    assert out.units.max() < 20
    same = eepolicy.load(str(folder), card=card_named(folder.with_suffix(".toml")))
    again = same.generate("w3 w4", "spark:triple@2", max_new_tokens=40)
    assert again.tokens.tolist() == out.tokens.tolist()
    plain = eepolicy.load(str(folder))
    assert not plain.layout.has_speech


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            ("num_codes = 20", 'num_codes = "20"'),
            r"toy\.toml: num_codes: expected a valid integer; got '20'",
        ),
        (('end = "<end>"', ""), r"toy\.toml: the key 'end' is missing"),
        (
            ("non_text_tokens", "quiet"),
            r"the key 'quiet' is unknown; possible keys are audio_start, codec, codec_source",
        ),
        (("[", "("), r"toy\.toml is not a model card in TOML: "),
        (
            ("text_chunk = 2", "text_chunk = -1"),
            "text_chunk: expected 0 or more; g",
        ),
        (("<end>", "<stop>"), "the tokenizer has no <stop>: it is not the tokenizer of toy"),
        (("<u{i}>", "<v{i}>"), "the tokenizer has no <v0>"),
        (
            ("<u{i}>", "<u0>"),
            "unit: expected a token with {i} for its number, or an id; got '<u0>'",
        ),
        (
            ('"<u{i}>"', "45"),
            "20 speech tokens of toy have ids 45 to 64, and the vocabulary has 60",
        ),
    ],
)
def test_wrong_cards_are_refused(folder, change, match):
    text = CARD.replace(*change)
    file = folder.with_suffix(".toml")
    file.write_text(text)
    with pytest.raises(EepolicyError, match=match):
        eepolicy.load(str(folder), card=file)


def test_shipped_cards_are_valid_and_found_by_name(tmp_path):
    with pytest.raises(EepolicyError, match=r"'glm' is not a card: give one of .*glm-4-voice, "):
        card_named("glm")
    with pytest.raises(EepolicyError, match=r"none\.toml cannot be read: No such file"):
        card_named(tmp_path / "none.toml")
    for name, card in shipped_cards().items():
        assert card.name == name
        assert card_named(name) == card == card_named(card)
        assert card.rate is not None
        assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card
        assert set(card.sampling) <= {"do_sample", "temperature", "top_p", "top_k"} | {
            "repetition_penalty",
            "windowed_repetition_penalty",
            "repetition_aware",
            "min_new_tokens",
        }
        run = RunConfig(sampling=card.sampling).to_dict()
        assert parse(RunIdentity, run, "a run").sampling == card.sampling


def test_a_card_without_num_codes_counts_them():
    card = ModelCard("toy", "", "llama", "<u{i}>", 2, 5, "<end>")
    layout = card.layout(tokenizer(), 60)
    assert layout.num_codes == 24
    assert layout.units(torch.tensor([30, 53, 54, 59, 3])).tolist() == [0, 23]
