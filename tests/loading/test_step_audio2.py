"""Step-Audio-2-mini: a small random model in its authors' layout against a plain reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_shards
from loading.plain_speech import Plain, decoder_weights, drawer, gelu, plain_decoder, plain_mels
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import eepolicy
from eepolicy import EepolicyError
from eepolicy.loading import save_converted
from eepolicy.loading.upstream import step_audio2
from eepolicy.speech.audio import read_wave
from eepolicy.speech.step_audio2_encoder import SEGMENT, StepAudio2EncoderConfig

SPECIAL = (
    "<|BOT|>",
    "<|EOT|>",
    "<audio_start>",
    "<audio_patch>",
    "<audio_end>",
    "<tts_start>",
    "<tts_end>",
    "<tts_pad>",
    # the real tokenizer has 8 ids between the text and the speech tokens, of which two have no name
    # in the authors' code
    "<mark_6>",
    "<mark_7>",
)
FIRST, CODES, WORDS = 256 + len(SPECIAL), 6561, 256 + len(SPECIAL) + 6561 + 7
BOT, EOT, START, PATCH, END, TTS, TTS_END, PAD, *OTHER = range(256, 256 + len(SPECIAL))
WIDTH, STATE, LAYERS, BLOCKS = 32, 16, 4, 2
CONFIG = {
    "model_type": "step_audio_2",
    "architectures": ["StepAudio2ForCausalLM"],
    "text_config": {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_attention_groups": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "eos_token_id": EOT,
        "pad_token_id": EOT,
    },
    "audio_encoder_config": {
        "n_mels": 128,
        "n_audio_ctx": 1500,
        "n_audio_state": STATE,
        "n_audio_head": 2,
        "n_audio_layer": BLOCKS,
        "n_codebook_size": 4096,
        "llm_dim": WIDTH,
        "kernel_size": 3,
        "adapter_stride": 2,
    },
}


def weights(layers: int = LAYERS) -> dict[str, Tensor]:
    draw = drawer()
    made = {
        "encoder.conv1.weight": draw(STATE, 128, 3),
        "encoder.conv1.bias": draw(STATE),
        "encoder.conv2.weight": draw(STATE, STATE, 3),
        "encoder.conv2.bias": draw(STATE),
        "encoder.positional_embedding.weight": draw(1500, STATE),
        "encoder.after_norm.weight": draw(STATE, about=1.0),
        "encoder.after_norm.bias": draw(STATE),
        "adapter.conv.weight": draw(STATE, STATE, 3),
        "adapter.conv.bias": draw(STATE),
        "adapter.linear1.weight": draw(2048, STATE),
        "adapter.linear1.bias": draw(2048),
        "adapter.linear2.weight": draw(WIDTH, 2048, scale=0.02),
        "adapter.linear2.bias": draw(WIDTH),
    }
    made |= decoder_weights(draw, WORDS, WIDTH, layers)
    for i in range(BLOCKS):
        block = f"encoder.blocks.{i}."
        for name in ("query", "key", "value", "out"):
            made[f"{block}attn.{name}.weight"] = draw(STATE, STATE)
            if name != "key":
                made[f"{block}attn.{name}.bias"] = draw(STATE)
        made |= {
            block + "mlp.0.weight": draw(4 * STATE, STATE),
            block + "mlp.0.bias": draw(4 * STATE),
            block + "mlp.2.weight": draw(STATE, 4 * STATE),
            block + "mlp.2.bias": draw(STATE),
            block + "attn_ln.weight": draw(STATE, about=1.0),
            block + "attn_ln.bias": draw(STATE),
            block + "mlp_ln.weight": draw(STATE, about=1.0),
            block + "mlp_ln.bias": draw(STATE),
        }
    return made


def plain_audio_encoder(w: dict[str, Tensor], mels: Tensor) -> Tensor:
    """What the decoder is given for a spectrum (128, frames), written with loops."""
    plain, frames = Plain(w), mels.shape[1]
    speech = frames - 2  # the last two are silence
    x = plain.conv(gelu(plain.conv(mels, "encoder.conv1", 1)), "encoder.conv2", 2)
    x = gelu(x).T
    x = x + w["encoder.positional_embedding.weight"][: len(x)]
    is_silent = [frame >= speech for frame in range(frames)][(frames + 1) % 2 :: 2]
    for i in range(BLOCKS):
        block = f"encoder.blocks.{i}"
        names = [f"{block}.attn.{name}" for name in ("query", "key", "value", "out")]
        x = x + plain.attend(plain.norm(x, f"{block}.attn_ln"), names, torch.tensor(is_silent))
        h = gelu(plain.linear(plain.norm(x, f"{block}.mlp_ln"), f"{block}.mlp.0"))
        x = x + plain.linear(h, f"{block}.mlp.2")
    pairs = [(x[i] + x[i + 1]) / 2 for i in range(0, len(x) - 1, 2)]
    x = plain.norm(torch.stack(pairs), "encoder.after_norm")
    x = gelu(plain.conv(x.T, "adapter.conv", 2)).T
    x = plain.linear(plain.linear(x, "adapter.linear1").clamp(min=0), "adapter.linear2")
    return x[: ((speech + 1) // 2 // 2 - 1) // 2 + 1]


@pytest.fixture(scope="module")
def tensors():
    return weights()


@pytest.fixture(scope="module")
def original(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("step")
    write(folder, tensors, CONFIG)
    return folder


def write(folder: Path, tensors: dict[str, Tensor], config: dict) -> None:
    """A checkpoint folder as the authors publish theirs, in two shards."""
    write_shards(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # the token after the last code pads chunks
    tokenizer.add_special_tokens([*SPECIAL, *(f"<audio_{i}>" for i in range(CODES + 1))])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|EOT|>")
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def model(original):
    return eepolicy.load(str(original))


def sound(seconds: float, rate: int = 16_000) -> np.ndarray:
    at = np.arange(int(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * (200 + 300 * at) * at)


def test_the_logits_equal_those_of_the_reference(model, tensors):
    assert type(model.model).__name__ == "Qwen2ForCausalLM"
    ids = torch.randint(WORDS, (15,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model.model(ids[None]).logits[0]
    expected = plain_decoder(tensors, tensors["model.embed_tokens.weight"][ids], LAYERS)
    # measured 1.1e-5 on logits of spread 1.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [1600, 8000, 16_160, 16_300, 32_123])
def test_the_audio_encoder_equals_the_reference(model, tensors, samples):
    wave = torch.from_numpy(sound(2.1)[:samples]).float()
    encoder = model.audio_encoder.encoder
    mels = encoder.mels(wave)
    # measured 5e-5: transformers computes in float32
    np.testing.assert_allclose(mels, plain_mels(np.pad(wave.numpy(), (0, 479))), rtol=0, atol=5e-4)
    [segment] = encoder.encode(wave)
    expected = plain_audio_encoder(tensors, mels)
    assert segment.shape == expected.shape
    # measured 9e-7 on values of spread 0.5
    torch.testing.assert_close(segment, expected, rtol=0, atol=1e-5)


def test_long_speech_is_encoded_in_segments(model):
    wave = torch.randn(SEGMENT + 20_000, generator=torch.Generator().manual_seed(0)) * 0.1
    first, second = model.audio_encoder.encoder.encode(wave)
    torch.testing.assert_close(model.audio_encoder.encoder.encode(wave[:SEGMENT])[0], first)
    torch.testing.assert_close(model.audio_encoder.encoder.encode(wave[SEGMENT:])[0], second)
    ids, embeddings = model.audio_encoder.encode(wave)
    assert len(embeddings) == len(first) + len(second) == int((ids == PATCH).sum())
    assert ids.tolist() == [
        *[START, *[PATCH] * len(first), END],
        *[START, *[PATCH] * len(second), END],
    ]


def test_the_prompt(model):
    text = model.tokenizer.decode(model.encode("Hi?"))
    assert text == (
        "<|BOT|>system\nYou are a helpful assistant.<|EOT|><|BOT|>human\nHi?<|EOT|>"
        "<|BOT|>assistant\n<tts_start>"
    )
    assert model.encode("Hi?")[-1] == TTS
    layout = model.layout
    assert (layout.text_chunk, layout.speech_chunk, layout.num_codes) == (1, 4, CODES)
    assert layout.speech == (FIRST, WORDS)
    marks = (START, PATCH, END, TTS, TTS_END, PAD, *OTHER)
    assert (layout.end, layout.end_of_speech, layout.non_text_ids) == (EOT, TTS_END, marks)
    reply = torch.tensor(
        [72, FIRST, FIRST + 6560, FIRST + 6561, FIRST + 6567, PAD, TTS_END, 73, END, *OTHER]
    )
    assert layout.units(reply).tolist() == [0, 6560]
    assert layout.text_ids(reply).tolist() == [72, 73]


def test_a_spoken_prompt_follows_the_template(model, tmp_path):
    file = tmp_path / "question.wav"
    soundfile.write(file, sound(1.5), 16_000)
    segment = model.audio_encoder.encoder.encode(read_wave(file))[0]
    before, after = model.card.prompt_prefix, model.card.prompt_suffix
    text = before + "<audio_start>" + "<audio_patch>" * len(segment) + "<audio_end>" + after
    ids = torch.tensor(model.tokenizer(text, add_special_tokens=False).input_ids)
    embeds = model.model.get_input_embeddings()(ids).clone()
    embeds[ids == PATCH] = segment
    # the penalty includes the ids of the prompt, as in the authors' code
    options = {"max_new_tokens": 12, "repetition_penalty": 1.3}
    stock = model.model.generate(
        ids[None],
        inputs_embeds=embeds[None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        eos_token_id=EOT,
        do_sample=False,
        **options,
    )
    out = model.generate(file, **options)
    assert out.tokens.tolist() == stock[0, -len(out.tokens) :].tolist()
    assert out.prompt.numel() == 0  # the prompt is not ids only
    with pytest.raises(EepolicyError, match="without ids it has no probe"):
        eepolicy.probe(model, out)
    wave = model.generate(read_wave(file), **options)
    assert wave.tokens.tolist() == out.tokens.tolist()
    both = model.generate([file, "Hi?"], "spark:triple@2", max_new_tokens=12)
    alone = [model.generate(p, "spark:triple@2", max_new_tokens=12) for p in (file, "Hi?")]
    assert [o.tokens.tolist() for o in both] == [o.tokens.tolist() for o in alone]
    assert both[0].prompt.numel() == 0  # the text prompt is kept
    assert both[1].prompt.tolist() == model.encode("Hi?").tolist()


def test_turns_with_sound_follow_the_template(model, tmp_path):
    """As `apply_chat_template` of the authors: an earlier reply in ids, and text beside a sound."""
    file = tmp_path / "question.wav"
    soundfile.write(file, sound(1.5), 16_000)
    segment = model.audio_encoder.encoder.encode(read_wave(file))[0]
    first = model.generate("Hi?", max_new_tokens=9)
    reply = first.tokens.tolist()
    patches = "<audio_start>" + "<audio_patch>" * len(segment) + "<audio_end>"

    def plain(text):
        return model.tokenizer(text, add_special_tokens=False).input_ids

    ids = [
        *plain("<|BOT|>system\nBe short.<|EOT|><|BOT|>human\nHi?<|EOT|><|BOT|>assistant\n"),
        *[TTS, *reply, EOT],
        *plain(f"<|BOT|>human\nTranslate.{patches}<|EOT|><|BOT|>assistant\n<tts_start>"),
    ]
    ids = torch.tensor(ids)
    embeds = model.model.get_input_embeddings()(ids).clone()
    embeds[ids == PATCH] = segment
    stock = model.model.generate(
        inputs_embeds=embeds[None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        eos_token_id=EOT,
        max_new_tokens=8,
        do_sample=False,
    )
    history = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": torch.tensor([*reply, EOT])},  # its end is left out
    ]
    for value in (file, str(file), read_wave(file), (sound(1.5).astype(np.float32), 16_000)):
        content = [{"type": "text", "text": "Translate."}, {"type": "audio", "audio": value}]
        turns = [*history, {"role": "user", "content": content}]
        out = model.generate(turns, max_new_tokens=8)
        if not isinstance(value, tuple):  # the file has 16 bits
            assert out.tokens.tolist() == stock[0, -len(out.tokens) :].tolist()
    question = [*history, {"role": "user", "content": "Why?"}]
    both = model.generate([turns, question], max_new_tokens=2)
    assert both[0].prompt.numel() == 0
    assert model.tokenizer.decode(both[1].prompt).endswith(
        "<|EOT|><|BOT|>human\nWhy?<|EOT|><|BOT|>assistant\n<tts_start>"
    )
    with pytest.raises(EepolicyError, match="sound is a file, a waveform"):
        model.generate([{"role": "user", "content": [{"type": "audio", "audio": 5}]}])


def test_exits_follow_the_chunks(model):
    out = model.generate("Hi?", "spark:triple@2", max_new_tokens=40)
    trace = out.trace
    speech = trace.modality == 1
    assert ((trace.phase % 3 != 0) == (trace.depth == 2))[speech].all()
    assert (trace.depth[~speech] == LAYERS).all()
    exact = model.generate("Hi?", "static@2", max_new_tokens=40, accept="exact")
    assert exact.tokens.tolist() == model.generate("Hi?", max_new_tokens=40).tokens.tolist()


def test_a_converted_folder_is_the_same_model(model, tmp_path):
    save_converted(model, tmp_path / "converted")
    again = eepolicy.load(str(tmp_path / "converted"), device_map="cpu")
    assert (again.layout, again.card) == (model.layout, model.card)
    wave = torch.from_numpy(sound(1.0)).float()
    for prompt in ("Hi?", wave):
        expected = model.generate(prompt, max_new_tokens=20)
        loaded = again.generate(prompt, max_new_tokens=20)
        assert loaded.tokens.tolist() == expected.tokens.tolist()
    assert not hasattr(model.model.config, "speech_card")
    with pytest.raises(EepolicyError, match="is not empty: give a new folder"):
        save_converted(model, tmp_path / "converted")


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_audio_files_are_mixed_down_and_resampled(kind, tmp_path):
    file = tmp_path / f"a.{kind}"
    mono = sound(1.0, 44_100)
    soundfile.write(file, np.stack([1.5 * mono, 0.5 * mono], 1), 44_100)
    wave = read_wave(file)
    assert abs(len(wave) - 16_000) <= 1
    expected = sound(1.0)[200:15_800]
    # measured 4e-4: 16 bits, and the filter
    np.testing.assert_allclose(wave[200:15_800], expected, atol=5e-3)


def test_unreadable_audio_is_refused(model, tmp_path, hooked_text):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF no sound")
    for name, match in (
        ("empty.wav", "empty.wav is empty"),
        ("broken.wav", "broken.wav cannot be read as audio"),
        ("none.wav", "none.wav cannot be read as audio"),
    ):
        with pytest.raises(EepolicyError, match=match):
            model.generate(tmp_path / name)
    with pytest.raises(EepolicyError, match=r"must have shape \(samples,\), .*; got shape \(0,\)"):
        model.generate(torch.zeros(0))
    with pytest.raises(
        EepolicyError, match="100 samples at 16 kHz are too short for the audio encoder"
    ):
        model.generate(torch.zeros(100))
    with pytest.raises(EepolicyError, match="this model has no audio encoder"):
        hooked_text.generate(tmp_path / "empty.wav")


@pytest.fixture
def hooked_text():
    from conftest import tiny

    return eepolicy.wrap(tiny("llama"))


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("foreign", "encoder.extra.weight, which the model in config.json does not have"),
        ("partial", "of the model's weights, such as audio_encoder.shrink.weight"),
        ("sizes", "audio_encoder_config in config.json has no 'n_mels'"),
        ("field", "text_config in config.json has no 'hidden_size'"),
        ("scaled", "has rope_scaling = .*; only none is supported"),
        ("tokenizer", "the tokenizer has no <audio_0>"),
        ("options", "run 'eepolicy convert"),
    ],
)
def test_wrong_checkpoints_are_refused(original, tmp_path, what, match):
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads(json.dumps(CONFIG))
    second = tmp_path / "model-00002-of-00002.safetensors"
    options = {}
    if what == "foreign":
        save_file(load_file(second) | {"encoder.extra.weight": torch.zeros(2)}, second)
    elif what == "partial":
        first = tmp_path / "model-00001-of-00002.safetensors"
        rest = {k: v for k, v in load_file(first).items() if k != "adapter.conv.weight"}
        save_file(rest, first)
    elif what == "sizes":
        del config["audio_encoder_config"]["n_mels"]
    elif what == "field":
        del config["text_config"]["hidden_size"]
    elif what == "scaled":
        config["text_config"]["rope_scaling"] = {"type": "linear", "factor": 2.0}
    elif what == "tokenizer":
        text = (tmp_path / "tokenizer.json").read_text().replace("<audio_0>", "<sound_0>")
        (tmp_path / "tokenizer.json").write_text(text)
    else:
        options = {"device_map": "auto"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(EepolicyError, match=match):
        eepolicy.load(str(tmp_path), **options)


def test_models_check_reads_no_weights(original, tmp_path, run, monkeypatch):
    class ShapesOnly:
        """A safetensors file whose weights cannot be read."""

        def __init__(self, path, framework):
            self.file = safe_open(path, framework)

        def __enter__(self):
            self.keys, self.get_slice = self.file.keys, self.file.get_slice
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("eepolicy.loading.upstream.checkpoint.safe_open", ShapesOnly)
    out, _ = run("models", "check", str(original))
    gigabytes = 4 * sum(w.numel() for w in weights().values()) / 1e9
    assert "step-audio-2-mini in its authors' layout" in out
    assert f"{gigabytes:.3f} GB in float32" in out
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    first = tmp_path / "model-00001-of-00002.safetensors"
    save_file({k: v for k, v in load_file(first).items() if k != "adapter.conv.weight"}, first)
    _, err = run("models", "check", str(tmp_path), code=1)
    assert "of the model's weights, such as audio_encoder.shrink.weight" in err
    out, _ = run("models")
    assert all(card in out for card in ("glm-4-voice", "orpheus-3b"))


def test_an_id_on_the_hub_is_loaded_from_the_cache(original, tmp_path, monkeypatch):
    """From a folder laid out as the Hub's own cache, with no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "models--stepfun-ai--Step-Audio-2-mini"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "snapshots" / "abc").symlink_to(original)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    model = eepolicy.load("stepfun-ai/Step-Audio-2-mini")
    expected = eepolicy.load(str(original)).generate("Hi?", max_new_tokens=8)
    assert model.generate("Hi?", max_new_tokens=8).tokens.tolist() == expected.tokens.tolist()
    with pytest.raises(EepolicyError, match="it is neither a folder nor an id"):
        eepolicy.load("stepfun-ai/of-which-there-is-none")


def test_convert_command(original, tmp_path, run):
    to = tmp_path / "converted"
    run("convert", str(original), str(to), "--dtype", "float32")
    out = eepolicy.load(str(to)).generate("Hi?", max_new_tokens=8)
    expected = eepolicy.load(str(original)).generate("Hi?", max_new_tokens=8)
    assert out.tokens.tolist() == expected.tokens.tolist()
    assert "its config has the card step-audio-2-mini" in run("models", "check", str(to))[0]
    _, err = run("convert", str(original), str(to), code=2)
    assert "is not empty: give a new folder" in err


def real_config() -> dict:
    """The config with the sizes of the published one."""
    step = json.loads(json.dumps(CONFIG))
    step["text_config"] |= {
        "vocab_size": 158_720,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    step["audio_encoder_config"] |= {"n_audio_state": 1280, "n_audio_head": 20}
    step["audio_encoder_config"] |= {"n_audio_layer": 32, "llm_dim": 3584}
    return step


def test_sizes_of_the_real_models():
    """From their published configs, against arithmetic: weights in millions."""
    with torch.device("meta"):
        whole = step_audio2.native(real_config()).make()
    attention = 2 * 3584 * 3584 + 3584 + 2 * (3584 * 512 + 512)
    layer = attention + 3 * 3584 * 18_944 + 2 * 3584
    assert sum(p.numel() for p in whole.decoder.parameters()) == (
        28 * layer + 2 * 158_720 * 3584 + 3584
    )
    block = 12 * 1280 * 1280 + (3 + 4 + 1) * 1280 + 4 * 1280
    others = 128 * 1280 * 3 + 1280 + 2 * (3 * 1280 * 1280 + 1280) + 1500 * 1280 + 2 * 1280
    adapter = 1280 * 2048 + 2048 + 2048 * 3584 + 3584
    assert sum(p.numel() for p in whole.audio_encoder.parameters()) == 32 * block + others + adapter


def test_encoder_sizes_are_read_by_name():
    sizes = StepAudio2EncoderConfig.from_dict(CONFIG["audio_encoder_config"])
    assert (sizes.n_audio_state, sizes.adapter_stride) == (STATE, 2)


def test_a_remainder_too_short_for_a_token_gives_an_empty_pair_of_marks(model):
    """Sound that ends 100 samples after a segment: the authors' code keeps the pair."""
    wave = torch.randn(SEGMENT + 100, generator=torch.Generator().manual_seed(0)) * 0.1
    ids, embeddings = model.audio_encoder.encode(wave)
    assert ids.tolist() == [START, *[PATCH] * len(embeddings), END, START, END]
