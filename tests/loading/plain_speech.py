"""Plain code for tests of speech models: Qwen2, log-mel spectra, layers of audio encoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

#: draws random weights: `draw(*shape, scale=, about=)`
Draw = Callable[..., Tensor]


def drawer(seed: int = 0) -> Draw:
    """Random weights of about one spread, so that no mistake is hidden by ones or zeros."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.2, about: float = 0.0) -> Tensor:
        return about + scale * torch.randn(*shape, generator=generator)

    return draw


def decoder_weights(draw: Draw, words: int, width: int, layers: int) -> dict[str, Tensor]:
    """The weights of the Qwen2 that `plain_decoder` computes, with the names of its files."""
    made = {
        "model.embed_tokens.weight": draw(words, width),
        "model.norm.weight": draw(width, about=1.0),
        "lm_head.weight": draw(words, width),
    }
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name, rows in (("q", width), ("k", 16), ("v", 16)):
            made[f"{layer}self_attn.{name}_proj.weight"] = draw(rows, width)
            made[f"{layer}self_attn.{name}_proj.bias"] = draw(rows)
        made |= {
            layer + "self_attn.o_proj.weight": draw(width, width),
            layer + "mlp.gate_proj.weight": draw(48, width),
            layer + "mlp.up_proj.weight": draw(48, width),
            layer + "mlp.down_proj.weight": draw(width, 48),
            layer + "input_layernorm.weight": draw(width, about=1.0),
            layer + "post_attention_layernorm.weight": draw(width, about=1.0),
        }
    return made


def plain_decoder(w: dict[str, Tensor], x: Tensor, layers: int) -> Tensor:
    """Qwen2 as its paper describes it: embeddings (tokens, width) -> logits.

    It has four heads of width 8, which share two heads of keys and values.
    """

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

    for i in range(layers):
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
        x = x + out.reshape(len(x), -1) @ layer["self_attn.o_proj.weight"].T
        h = norm(x, layer["post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(h @ layer["mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def plain_mels(wave: np.ndarray) -> np.ndarray:
    """Log-mel frames by numpy's Fourier transform and triangles drawn here: (128, frames)."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    padded = np.pad(wave.astype(np.float64), 200, mode="reflect")
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


class Plain:
    """Layers of an audio encoder, written with loops.

    Args:
        weights: weights by the names of their files.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def conv(self, x: Tensor, name: str, stride: int) -> Tensor:
        """A convolution of width 3, one position at a time: (width, length)."""
        x = torch.nn.functional.pad(x, (1, 1))
        starts, weight = range(0, x.shape[1] - 2, stride), self.weights[f"{name}.weight"]
        out = [torch.einsum("oik,ik->o", weight, x[:, p : p + 3]) for p in starts]
        return torch.stack(out, 1) + self.weights[f"{name}.bias"][:, None]

    def norm(self, x: Tensor, name: str) -> Tensor:
        """A layer norm."""
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A linear layer, with a bias if there is one."""
        bias = self.weights.get(f"{name}.bias", torch.zeros(1))
        return x @ self.weights[f"{name}.weight"].T + bias

    def attend(self, x: Tensor, names: Sequence[str], is_masked: Tensor) -> Tensor:
        """Attention with heads of width 8.

        Args:
            x: (length, width).
            names: of the layers for queries, keys, values and output.
            is_masked: (length,), positions that none attends to.
        """
        q, k, v = (self.linear(x, name) for name in names[:3])
        out = torch.zeros_like(x)
        for first in range(0, x.shape[1], 8):
            head = slice(first, first + 8)
            scores = q[:, head] @ k[:, head].T / math.sqrt(8)
            scores[:, is_masked] = -math.inf
            out[:, head] = scores.softmax(-1) @ v[:, head]
        return self.linear(out, names[3])


def gelu(x: Tensor) -> Tensor:
    """The activation of Whisper."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
