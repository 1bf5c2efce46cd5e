"""Spoken questions for GLM-4-Voice: its speech tokenizer against an encoder written here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import soundfile
import torch
from loading import test_glm4_voice
from loading.test_step_audio2 import sound
from safetensors.torch import save_file
from torch import Tensor

import eepolicy
from eepolicy import EepolicyError
from eepolicy.loading import save_converted
from eepolicy.loading.upstream.glm_speech_tokenizer import (
    add_speech_tokenizer,
    load_speech_tokenizer,
)
from eepolicy.speech.audio import read_wave

WIDTH, HEADS, MELS, BLOCK, POOL, CODES = 16, 2, 80, 8, 4, 40
CONFIG = {
    "d_model": WIDTH,
    "encoder_attention_heads": HEADS,
    "encoder_ffn_dim": 32,
    "num_mel_bins": MELS,
    "max_source_positions": 1500,
    "pooling_kernel_size": POOL,
    "pooling_type": "avg",
    "pooling_position": 2,
    "quantize_position": 3,
    "quantize_vocab_size": CODES,
    "quantize_causal_block_size": BLOCK,
    "quantize_causal_encoder": False,
    "encoder_causal_attention": False,
    "encoder_causal_convolution": True,
    "encoder_layers": 4,
}


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, about: float = 0.0) -> Tensor:
        return about + 0.2 * torch.randn(*shape, generator=generator)

    made = {
        "conv1.weight": draw(WIDTH, MELS, 3),
        "conv1.bias": draw(WIDTH),
        "conv2.weight": draw(WIDTH, WIDTH, 3),
        "conv2.bias": draw(WIDTH),
        "embed_positions.weight": draw(1500, WIDTH),
        "embed_positions2.weight": draw(375, WIDTH),
        "codebook.weight": draw(CODES, WIDTH) * 5,
        "ema_count": draw(CODES),
        "ema_weight": draw(CODES, WIDTH),
        "layer_norm.weight": draw(WIDTH),
    }
    for i in range(4):  # the last layer comes after the codebook
        layer = f"layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            made[f"{layer}self_attn.{name}.weight"] = draw(WIDTH, WIDTH)
            if name != "k_proj":
                made[f"{layer}self_attn.{name}.bias"] = draw(WIDTH)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            made[f"{layer}{name}.weight"] = draw(WIDTH, about=1.0)
            made[f"{layer}{name}.bias"] = draw(WIDTH)
        made |= {f"{layer}fc1.weight": draw(32, WIDTH), f"{layer}fc1.bias": draw(32)}
        made |= {f"{layer}fc2.weight": draw(WIDTH, 32), f"{layer}fc2.bias": draw(WIDTH)}
    return {f"model.encoder.{name}": tensor for name, tensor in made.items()}


def plain_units(w: dict[str, Tensor], mels: Tensor, frames: int) -> tuple[list[int], Tensor]:
    """Units and states of a spectrum (mels, padded frames); so many frames are speech."""
    w = {name.removeprefix("model.encoder."): tensor for name, tensor in w.items()}

    def conv(x: Tensor, name: str, stride: int) -> Tensor:  # causal
        x = torch.nn.functional.pad(x, (2, 0))
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

    x = gelu(conv(gelu(conv(mels, "conv1", 1)), "conv2", 2)).T
    x = x + w["embed_positions.weight"][: len(x)]
    speech, block = [2 * i < frames for i in range(len(x))], BLOCK
    for number in range(3):
        layer = f"layers.{number}"
        h = norm(x, f"{layer}.self_attn_layer_norm")
        q, k, v = (linear(h, f"{layer}.self_attn.{n}_proj") for n in "qkv")
        out = torch.zeros_like(x)
        for head in range(HEADS):
            part = slice(8 * head, 8 * head + 8)
            for t in range(len(x)):
                last = (t // block + 1) * block  # all of the own block
                seen = [s for s in range(len(x)) if s < last and speech[s]]
                scores = k[seen][:, part] @ q[t, part] / math.sqrt(8)
                out[t, part] = scores.softmax(0) @ v[seen][:, part]
        x = x + linear(out, f"{layer}.self_attn.out_proj")
        h = gelu(linear(norm(x, f"{layer}.final_layer_norm"), f"{layer}.fc1"))
        x = x + linear(h, f"{layer}.fc2")
        if number == 1:
            x = torch.stack([x[i : i + POOL].mean(0) for i in range(0, len(x), POOL)])
            speech, block = speech[::POOL], BLOCK // POOL
    near = [int((w["codebook.weight"] - state).pow(2).sum(1).argmin()) for state in x]
    return [unit for unit, kept in zip(near, speech, strict=True) if kept], x


def write(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(weights(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """GLM-4-Voice and its speech tokenizer side by side."""
    folder = tmp_path_factory.mktemp("glm")
    (folder / "glm-4-voice-9b").mkdir()
    test_glm4_voice.write(
        folder / "glm-4-voice-9b", test_glm4_voice.weights(), test_glm4_voice.CONFIG
    )
    write(folder / "glm-4-voice-tokenizer")
    return folder


@pytest.mark.parametrize("samples", [900, 16_000, 20_123])
def test_the_units_equal_those_of_the_reference(home, samples, monkeypatch):
    tokenizer = load_speech_tokenizer(home / "glm-4-voice-tokenizer")
    wave = torch.from_numpy(sound(1.3)[:samples]).float()
    mels, is_speech = tokenizer.mels(wave)
    assert mels.shape[1] % (2 * POOL) == 0
    states, nearest = [], tokenizer._nearest
    monkeypatch.setattr(tokenizer, "_nearest", lambda x: (states.append(x), nearest(x))[1])
    [units] = tokenizer.encode(wave)
    expected, expected_states = plain_units(weights(), mels, int(is_speech.sum()))
    # measured 1.4e-6 on values of spread 2.6
    torch.testing.assert_close(states[0], expected_states, rtol=0, atol=2e-5)
    assert units.tolist() == expected
    assert len(units) == -(-samples // 1280) or len(units) == samples // 1280
    assert samples < 5000 or len(set(units.tolist())) > 1


def test_long_speech_is_encoded_in_segments(home):
    tokenizer = load_speech_tokenizer(home / "glm-4-voice-tokenizer")
    wave = torch.randn(31 * 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    first, second = tokenizer.encode(wave)
    assert (len(first), len(second)) == (375, 13)
    assert second.tolist() == tokenizer.encode(wave[30 * 16_000 :])[0].tolist()


def test_a_spoken_question_is_its_units_in_text(home, tmp_path):
    model = eepolicy.load(str(home / "glm-4-voice-9b"))
    file = tmp_path / "question.wav"
    soundfile.write(file, sound(0.9, 22_050), 22_050)
    units = torch.cat(model.audio_encoder.encoder.encode(read_wave(file))).tolist()
    text = "".join(f"<|audio_{unit}|>" for unit in units)
    question = f"<|begin_of_audio|>{text}<|end_of_audio|>"
    for policy in ("full", "spark:triple@2"):
        spoken = model.generate(file, policy, max_new_tokens=20)
        assert spoken.tokens.tolist() == model.generate(question, policy, 20).tokens.tolist()
    both = model.generate([file, "th the"], max_new_tokens=12)
    assert both[1].tokens.tolist() == model.generate("th the", max_new_tokens=12).tokens.tolist()
    save_converted(model, home / "converted")
    again = eepolicy.load(str(home / "converted"))
    assert again.generate(file, max_new_tokens=12).tokens.tolist() == both[0].tokens.tolist()


def test_what_cannot_be_loaded_is_refused(home, tmp_path):
    (tmp_path / "model").symlink_to(home / "glm-4-voice-9b")
    model = eepolicy.load(str(tmp_path / "model"))
    with pytest.raises(EepolicyError, match="put the folder glm-4-voice-tokenizer beside the"):
        model.generate(torch.zeros(1600))
    for name, value, match in (
        ("encoder_causal_attention", True, "only False is supported"),
        ("quantize_vocab_size", None, "quantize_vocab_size = None; expected a whole number"),
        ("pooling_position", 4, "pools before it quantizes"),
        ("quantize_vocab_size", 41, r"gives codebook.weight the shape \(40, 16\)"),
    ):
        folder = write(tmp_path / f"{name}-{value}", **{name: value})
        with pytest.raises(EepolicyError, match=match):
            add_speech_tokenizer(model, folder)
