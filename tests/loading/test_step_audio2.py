"""Step-Audio-2-mini: a small random model in its authors' layout against a plain reference."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_shards
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
)
FIRST, CODES, WORDS = 256 + len(SPECIAL), 6561, 256 + len(SPECIAL) + 6561 + 7
BOT, EOT, START, PATCH, END, TTS, TTS_END, PAD = range(256, 256 + len(SPECIAL))
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
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 0.2, about: float = 0.0) -> Tensor:
        return about + scale * torch.randn(*shape, generator=generator)

    made = {
        "model.embed_tokens.weight": draw(WORDS, WIDTH),
        "model.norm.weight": draw(WIDTH, about=1.0),
        "lm_head.weight": draw(WORDS, WIDTH),
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
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name, rows in (("q", WIDTH), ("k", 16), ("v", 16)):
            made[f"{layer}self_attn.{name}_proj.weight"] = draw(rows, WIDTH)
            made[f"{layer}self_attn.{name}_proj.bias"] = draw(rows)
        made |= {
            layer + "self_attn.o_proj.weight": draw(WIDTH, WIDTH),
            layer + "mlp.gate_proj.weight": draw(48, WIDTH),
            layer + "mlp.up_proj.weight": draw(48, WIDTH),
            layer + "mlp.down_proj.weight": draw(WIDTH, 48),
            layer + "input_layernorm.weight": draw(WIDTH, about=1.0),
            layer + "post_attention_layernorm.weight": draw(WIDTH, about=1.0),
        }
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


def plain_decoder(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Qwen2 as its paper describes it: embeddings (tokens, width) -> logits."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    def rotate(x: Tensor) -> Tensor:  # (tokens, heads, 8): the halves of a head are turned together
        turned = x.clone()
        for i in range(4):
            angle = torch.arange(len(x)) / 1e6 ** (2 * i / 8)
            cos, sin = angle.cos()[:, None], angle.sin()[:, None]
            turned[..., i] = x[..., i] * cos - x[..., i + 4] * sin
            turned[..., i + 4] = x[..., i + 4] * cos + x[..., i] * sin
        return turned

    for i in range(LAYERS):
        layer = {k.split(f"layers.{i}.")[1]: v for k, v in w.items() if f"model.layers.{i}." in k}
        h = norm(x, layer["input_layernorm.weight"])
        q, k, v = (
            h @ layer[f"self_attn.{n}_proj.weight"].T + layer[f"self_attn.{n}_proj.bias"]
            for n in "qkv"
        )
        q, k = rotate(q.reshape(-1, 4, 8)), rotate(k.reshape(-1, 2, 8))
        v = v.reshape(-1, 2, 8)
        out = torch.zeros_like(q)
        for head in range(4):
            for t in range(len(x)):
                scores = k[: t + 1, head // 2] @ q[t, head] / math.sqrt(8)
                out[t, head] = scores.softmax(0) @ v[: t + 1, head // 2]
        x = x + out.reshape(-1, WIDTH) @ layer["self_attn.o_proj.weight"].T
        h = norm(x, layer["post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(h @ layer["mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def plain_mels(wave: np.ndarray) -> np.ndarray:
    """Log-mel frames by numpy's Fourier transform and triangles drawn here: (128, frames)."""
    wave = np.pad(wave.astype(np.float64), (0, 479))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    padded = np.pad(wave, 200, mode="reflect")
    frames = [padded[i : i + 400] * window for i in range(0, len(padded) - 399, 160)]
    power = np.abs(np.fft.rfft(frames)) ** 2  # (frames, 201)

    def hertz(mel: np.ndarray) -> np.ndarray:  # straight up to 1 kHz, logarithmic above
        above = 1000 * np.exp((mel - 15) * np.log(6.4) / 27)
        return np.where(mel < 15, mel * 200 / 3, above)

    edges = hertz(np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), 130))
    at = np.linspace(0, 8000, 201)
    bank = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        shape = np.minimum((at - low) / (middle - low), (high - at) / (high - middle))
        bank.append(np.maximum(0, shape) * 2 / (high - low))
    logs = np.log10(np.maximum(np.array(bank) @ power[:-1].T, 1e-10))
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


def plain_audio_encoder(w: dict[str, Tensor], mels: Tensor) -> Tensor:
    """What the decoder is given for a spectrum (128, frames), written with loops."""

    def conv(
        x: Tensor, name: str, stride: int
    ) -> Tensor:  # x (width, time), one position at a time
        x = torch.nn.functional.pad(x, (1, 1))
        starts = range(0, x.shape[1] - 2, stride)
        out = [torch.einsum("oik,ik->o", w[f"{name}.weight"], x[:, p : p + 3]) for p in starts]
        return torch.stack(out, 1) + w[f"{name}.bias"][:, None]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(1))

    frames = mels.shape[1]
    speech = frames - 2  # the last two are silence
    x = gelu(conv(gelu(conv(mels, "encoder.conv1", 1)), "encoder.conv2", 2)).T
    x = x + w["encoder.positional_embedding.weight"][: len(x)]
    is_speech = [frame < speech for frame in range(frames)][(frames + 1) % 2 :: 2]
    for i in range(BLOCKS):
        block = f"encoder.blocks.{i}"
        h = norm(x, f"{block}.attn_ln")
        q, k, v = (linear(h, f"{block}.attn.{n}") for n in ("query", "key", "value"))
        out = torch.zeros_like(x)
        for head in (slice(0, 8), slice(8, 16)):
            scores = q[:, head] @ k[:, head].T / math.sqrt(8)
            scores[:, ~torch.tensor(is_speech)] = -math.inf
            out[:, head] = scores.softmax(-1) @ v[:, head]
        x = x + linear(out, f"{block}.attn.out")
        h = gelu(linear(norm(x, f"{block}.mlp_ln"), f"{block}.mlp.0"))
        x = x + linear(h, f"{block}.mlp.2")
    pairs = [(x[i] + x[i + 1]) / 2 for i in range(0, len(x) - 1, 2)]
    x = norm(torch.stack(pairs), "encoder.after_norm")
    x = gelu(conv(x.T, "adapter.conv", 2)).T
    x = linear(linear(x, "adapter.linear1").clamp(min=0), "adapter.linear2")
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
    expected = plain_decoder(tensors, tensors["model.embed_tokens.weight"][ids])
    # measured 1.1e-5 on logits of spread 1.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [1600, 8000, 16_160, 16_300, 32_123])
def test_the_audio_encoder_equals_the_reference(model, tensors, samples):
    wave = torch.from_numpy(sound(2.1)[:samples]).float()
    encoder = model.audio_encoder.encoder
    mels = encoder.mels(wave)
    # measured 5e-5: transformers computes in float32
    np.testing.assert_allclose(mels, plain_mels(wave.numpy()), rtol=0, atol=5e-4)
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
    assert (layout.end, layout.end_of_speech, layout.non_text_ids) == (EOT, TTS_END, (PAD, TTS))
    reply = torch.tensor([72, FIRST, FIRST + 6560, FIRST + 6561, FIRST + 6567, PAD, TTS_END, 73])
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
    # the penalty looks at the ids of the prompt, as in the authors' code
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
        ("sizes", "audio_encoder_config of the checkpoint has no 'n_mels'"),
        ("field", "text_config of a Step-Audio-2 model has no 'hidden_size'"),
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


def test_sizes_of_the_real_models():
    """From their published configs, against arithmetic: weights in millions."""
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
    with torch.device("meta"):
        whole = step_audio2.native(step).make()
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
