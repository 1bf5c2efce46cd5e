"""Models that read text aloud: prompts, ids, tokens and sound, on small random checkpoints.

The facts are those of the authors' code: `llm.py` and the scripts `pretrained_to_huggingface.py`
and `convert_cosyvoice3_to_hf.py` of CosyVoice, `train_tts.py` of Llasa, and `neutts.py` and
`TRAINING.md` of NeuTTS.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from small_codec import small_codec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import eepolicy
from eepolicy import EepolicyError, Modality
from eepolicy.loading import ModelCard, shipped_cards
from eepolicy.prompts import Voice
from eepolicy.testing.configs import small_config

#: units of the small checkpoints
UNITS = 64
LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
MARKS = ["TEXT_GENERATION", "TEXT_UNDERSTANDING", "SPEECH_GENERATION", "SPEECH_UNDERSTANDING"]
#: tokens before and after the units, in the authors' order
TOKENS = {
    "cosyvoice2": (
        ["<|endofprompt|>"],
        ["<|eos1|>", "<|eos2|>", "<|eos3|>", "<|sos|>", "<|task_id|>"],
    ),
    "cosyvoice3": (
        ["<|endofprompt|>"],
        ["<|sos|>", "<|eos1|>", "<|task_id|>", "<|fill|>", "<|s_68|>", "<|s_69|>", "<|s_70|>"],
    ),
    "llasa": ([*LLAMA, *(f"<|{m}_{side}|>" for m in MARKS for side in ("START", "END"))], []),
    "neutts-air": (
        [f"<|{m}|>" for m in ("TEXT_REPLACE", "TEXT_PROMPT_START", "TEXT_PROMPT_END")]
        + [f"<|SPEECH_{m}|>" for m in ("REPLACE", "GENERATION_START", "GENERATION_END")],
        [],
    ),
}
TOKENS["neutts-nano"] = TOKENS["neutts-air"]
VOICE = Voice("Hi there.", torch.tensor([5, 0, 63]))


def small(name: str) -> ModelCard:
    """The shipped card with 64 units."""
    card = dataclasses.replace(shipped_cards()[name], num_codes=UNITS)
    if name == "cosyvoice3":
        ends = ("<|sos|>", "<|task_id|>", "<|fill|>", "<|s_{68..70}|>")
        card = dataclasses.replace(card, other_ends=ends)
    return card


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer with an id for each byte, and the authors' special tokens."""
    alphabet = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(alphabet, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    before, after = TOKENS[name]
    unit = str(shipped_cards()[name].unit)
    units = [unit.replace("{i}", str(i)) for i in range(UNITS)]
    made.add_special_tokens([*before, *units, *after])
    return PreTrainedTokenizerFast(tokenizer_object=made)


def save_small(name: str, folder) -> None:
    """Write a random checkpoint; CosyVoice 2 has a bias of its output embedding."""
    words = tokenizer(name)
    config = small_config(small(name).model_type, 3)
    config.vocab_size, config.tie_word_embeddings = len(words) + 11, False
    config.eos_token_id = config.bos_token_id = config.pad_token_id = None
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    head = nn.Linear(config.hidden_size, config.vocab_size, bias=name == "cosyvoice2")
    if name == "cosyvoice2":
        head.bias.data.fill_(-torch.inf)
        first = words.get_vocab()["<|s_0|>"]
        head.bias.data[first : first + UNITS + 3] = torch.randn(UNITS + 3)
    model.lm_head = head
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.normal_(1.0, 0.3)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


@pytest.fixture(scope="module", params=list(TOKENS))
def made(request, tmp_path_factory):
    """Name, folder and model of a small checkpoint."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    save_small(name, folder)
    model = eepolicy.load(str(folder), card=small(name))
    model.phonemizer = None
    return SimpleNamespace(name=name, folder=folder, model=model)


def ids_of(model, *parts: str | list[int]) -> list[int]:
    """Ids of special tokens, of bytes, and of units, one part at a time."""
    vocab, ids = model.tokenizer.get_vocab(), []
    for part in parts:
        if isinstance(part, list):
            ids += [model.layout.speech[0] + unit for unit in part]
        elif part in vocab and len(part) > 1:
            ids.append(vocab[part])
        else:
            ids += model.tokenizer(part, add_special_tokens=False).input_ids
            assert len(model.tokenizer(part).input_ids) == len(part.encode())
    return ids


def prompts(name: str) -> tuple[tuple[str | list[int], ...], tuple[str | list[int], ...]]:
    """The authors' prompts for "Yes, we can!", without a voice and with that of `VOICE`."""
    if name == "llasa":
        start, end = "<|start_header_id|>", "<|end_header_id|>"
        day = "\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
        system = ("<|begin_of_text|>", start, "system", end, day, "<|eot_id|>", start, "user", end)
        task = ("\n\nConvert the text to speech:", "<|TEXT_UNDERSTANDING_START|>")
        after = ("<|TEXT_UNDERSTANDING_END|>", "<|eot_id|>", start, "assistant", end, "\n\n")
        after = (*after, "<|SPEECH_GENERATION_START|>")
        before, space = (*system, *task), ""
    elif name.startswith("neutts"):
        before = ("user: Convert the text to speech:", "<|TEXT_PROMPT_START|>")
        after = ("<|TEXT_PROMPT_END|>", "\nassistant:", "<|SPEECH_GENERATION_START|>")
        space = " "
    else:
        help_text = ("You are a helpful assistant.", "<|endofprompt|>")
        before = ("<|sos|>", *(help_text if name == "cosyvoice3" else ()))
        after, space = ("<|task_id|>",), ""
    text = "Yes, we can!"
    return (*before, text, *after), (*before, f"Hi there.{space}{text}", *after, [5, 0, 63])


def test_the_prompts_are_the_authors(made):
    plain, with_voice = (ids_of(made.model, *parts) for parts in prompts(made.name))
    assert made.model.encode("Yes, we can!").tolist() == plain
    made.model.voice = VOICE
    try:
        assert made.model.encode("Yes, we can!").tolist() == with_voice
    finally:
        made.model.voice = None


#: sampling of the authors of the models with a codec, besides greedy decoding
SAMPLED = {
    "llasa": {"do_sample": True, "temperature": 0.8, "top_p": 1.0},
    "neutts-air": {"do_sample": True, "temperature": 1.0, "top_k": 50, "min_new_tokens": 50},
}
SAMPLED["neutts-nano"] = SAMPLED["neutts-air"]
ENDS = {
    "cosyvoice2": ["<|eos1|>", "<|eos2|>", "<|eos3|>"],
    "cosyvoice3": TOKENS["cosyvoice3"][1],
}


def test_tokens_are_those_of_the_stock_generate(made):
    model, name = made.model, made.name
    stock = AutoModelForCausalLM.from_pretrained(made.folder)
    if name == "cosyvoice2":  # the stock class has no bias
        assert stock.lm_head.bias is None
        weights = load_file(made.folder / "model.safetensors")
        stock.lm_head.bias = nn.Parameter(weights["lm_head.bias"])
    vocab = model.tokenizer.get_vocab()
    ends = [vocab[end] for end in ENDS.get(name, ["<|SPEECH_GENERATION_END|>"])]
    prompt = model.encode("Yes, we can!")
    mask = torch.ones_like(prompt)[None]
    for sampling in ({}, SAMPLED.get(name)):
        if sampling is None:
            continue
        torch.manual_seed(4)
        expected = stock.generate(
            prompt[None],
            attention_mask=mask,
            max_new_tokens=52,
            eos_token_id=ends,
            pad_token_id=0,
            **({"do_sample": False} | sampling),
        )
        own = model.card.sampling if sampling else {}
        out = model.generate("Yes, we can!", max_new_tokens=52, seed=4, **own)
        assert out.sequences.tolist() == expected.tolist()
    if name == "cosyvoice2":  # its bias leaves speech and end tokens
        assert model.layout.is_speech(out.tokens).sum() >= len(out.tokens) - 1
        assert model.model(prompt[None]).logits.isfinite().all()
    early = model.generate("Yes, we can!", "spark:triple@2", 12)
    assert set(early.trace.depth[early.trace.modality == 1].tolist()) <= {2, model.depth}


def test_the_authors_sampling_of_cosyvoice(made):
    if not made.name.startswith("cosyvoice"):
        assert "repetition_aware" not in made.model.card.sampling
        return
    sampling = made.model.card.sampling
    assert sampling["repetition_aware"] == {"top_p": 0.8, "top_k": 25, "window": 10, "ratio": 0.1}
    one, two = (made.model.generate("Yes!", max_new_tokens=20, seed=s, **sampling) for s in (1, 2))
    assert one.tokens.tolist() != two.tokens.tolist()
    again = made.model.generate("Yes!", max_new_tokens=20, seed=1, **sampling)
    assert again.tokens.tolist() == one.tokens.tolist()


def test_text_becomes_a_waveform(made, tmp_path):
    kind = made.model.card.codec
    if kind is None:  # CosyVoice: no codec of transformers
        with pytest.raises(EepolicyError, match=r"its sound needs .*FunAudioLLM/CosyVoice with"):
            eepolicy.load(str(made.folder), card=small(made.name), vocoder="auto")
        return
    stock = small_codec(kind)
    stock.save_pretrained(tmp_path)
    model = eepolicy.load(str(made.folder), card=small(made.name), vocoder=tmp_path)
    model.phonemizer, model.voice = None, VOICE
    questions = ["Yes, we can!", "No.", "Yes, we can!"]
    outs = model.generate(questions, "spark:triple@2", 30, restrict_vocab=True)
    for out in outs:
        assert len(out.units) > 5
        assert out.text == ""
        with torch.no_grad():
            expected = stock.decode(audio_codes=out.units[None, None]).audio_values[0, 0]
        torch.testing.assert_close(out.audio, expected, rtol=0, atol=1e-5)
        assert out.sampling_rate == {"xcodec2": 16_000, "neucodec": 24_000}[kind]
    together = model.vocoder.decode_batch([out.units for out in outs])
    torch.testing.assert_close(together[0], outs[0].audio, rtol=0, atol=1e-5)


#: ids in the authors' checkpoints: first unit, vocabulary, ends, and a text id after the units
FULL = {
    "cosyvoice2": (151_663, 158_336, {158_224, 158_225, 158_226}, 158_227),
    "cosyvoice3": (151_924, 158_720, {*range(158_485, 158_685)}, 158_700),
    "llasa": (128_264, 193_800, {128_261}, None),
}


@pytest.mark.parametrize("name", list(FULL))
def test_ids_of_the_real_models(name):
    first, size, ends, text_id = FULL[name]
    card = shipped_cards()[name]
    words = [f"<|s_{i}|>" for i in range(card.num_codes)]
    if name == "cosyvoice2":
        words += TOKENS[name][1]
    elif name == "cosyvoice3":  # 200 ids after the units
        words += [*TOKENS[name][1][:4], *(f"<|s_{i}|>" for i in range(6565, 6761))]
    vocab = {word: first + i for i, word in enumerate(words)}
    if name == "llasa":  # eight marks before the units
        vocab |= {word: first - 8 + i for i, word in enumerate(TOKENS[name][0][4:])}
    layout = card.layout(SimpleNamespace(get_vocab=lambda: vocab), size)
    assert (layout.text, layout.speech[0]) == ((0, first), first)
    assert layout.speech[1] - first == layout.num_codes == card.num_codes
    assert set(layout.ends) == ends
    if text_id is not None:
        assert layout.text_after == (layout.speech[1], size)
        assert layout.modality(text_id) == Modality.TEXT
        assert layout.from_dict(layout.to_dict()) == layout
    if name != "llasa":
        assert card.rate == 25
        assert shipped_cards()["llasa"].rate == shipped_cards()["neutts-air"].rate == 50


def test_several_ranges_of_units_are_refused(tmp_path):
    """As the global and semantic tokens that Spark-TTS writes to make a voice."""
    units = ["<|bicodec_global_{i}|>", "<|bicodec_semantic_{i}|>"]
    fields = shipped_cards()["llasa"].to_dict() | {"unit": units}
    with pytest.raises(EepolicyError, match=r"unit.*one range of units; several, as of Spark-TTS"):
        ModelCard.from_dict(fields)
    (tmp_path / "LLM").mkdir()
    (tmp_path / "LLM" / "config.json").write_text("{}")
    with pytest.raises(EepolicyError, match=r"give the folder of a model, such as .*LLM"):
        eepolicy.load(str(tmp_path))


def test_wrong_voices(made):
    model = made.model
    for units in (torch.tensor([64]), torch.tensor([0.5]), torch.tensor([], dtype=torch.long)):
        model.voice = Voice("Hi.", units)
        with pytest.raises(EepolicyError, match="the units of a voice are integers"):
            model.encode("Yes!")
    model.voice = VOICE
    plain = dataclasses.replace(model.card, voice_separator=None)
    try:
        model.card, card = plain, model.card
        with pytest.raises(EepolicyError, match="the model imitates no voice"):
            model.encode("Yes!")
    finally:
        model.card, model.voice = card, None


def test_phonemes_are_those_of_the_authors_call(monkeypatch, tmp_path):
    save_small("neutts-air", tmp_path)
    model = eepolicy.load(str(tmp_path), card=small("neutts-air"))
    monkeypatch.setitem(sys.modules, "phonemizer", None)
    with pytest.raises(EepolicyError, match=r"install espeak-ng and 'pip install phonemizer', or"):
        model.encode("Yes!")

    class EspeakBackend:
        def __init__(self, language, preserve_punctuation, with_stress):
            assert (language, preserve_punctuation, with_stress) == ("en-us", True, True)

        def phonemize(self, texts):
            return [f" {text.lower()} \n" for text in texts]

    backend = ModuleType("phonemizer.backend")
    backend.EspeakBackend = EspeakBackend
    monkeypatch.setitem(sys.modules, "phonemizer", ModuleType("phonemizer"))
    monkeypatch.setitem(sys.modules, "phonemizer.backend", backend)
    model.voice = VOICE
    text = model.tokenizer.decode(model.encode("Yes,  WE can!"))
    assert "<|TEXT_PROMPT_START|>hi there. yes, we can!<|TEXT_PROMPT_END|>" in text


@pytest.mark.slow  # loads the command line, and a model twice
def test_commands(made, tmp_path, run):
    if made.name != "llasa":
        return
    (tmp_path / "llasa.toml").write_text(toml(small("llasa")))
    small_codec("xcodec2").save_pretrained(tmp_path / "codec")
    speaks = str(tmp_path / "speaks")
    run("convert", str(made.folder), speaks, "--card", str(tmp_path / "llasa.toml"))
    soundfile.write(tmp_path / "voice.wav", 0.1 * torch.randn(8000).numpy(), 16_000)
    options = ["--model", speaks, "--vocoder", str(tmp_path / "codec"), "--max-new-tokens", "12"]
    voice = ["--voice", str(tmp_path / "voice.wav"), "--voice-text", "Hi there."]
    file = tmp_path / "out.wav"
    run("generate", "Yes!", *options, *voice, "--card-sampling", "--out", str(file))
    wave, rate = soundfile.read(file)
    assert rate == 16_000
    assert 0 < len(wave) <= 12 * 320
    _, err = run("generate", "Yes!", *options, *voice[:2], code=2)
    assert "--voice needs its transcript: give --voice-text" in err


def toml(card: ModelCard) -> str:
    """A card as TOML: values of JSON are values of TOML too."""
    values = {k: v for k, v in card.to_dict().items() if v is not None}
    sampling = values.pop("sampling")
    lines = [f"{k} = {json.dumps(v)}" for k, v in values.items()]
    return "\n".join(
        [*lines, "[sampling]", *(f"{k} = {json.dumps(v)}" for k, v in sampling.items())]
    )
