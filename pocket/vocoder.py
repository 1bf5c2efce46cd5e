"""Train the vocoder on the voice's own recordings.

    python -m pocket.vocoder WORK [--steps 2400]

It reads `WORK/waves/` and `WORK/units.safetensors`, which `pocket.corpus` and `pocket.fit_units`
write, and uses training answers only.  The state is in `WORK/vocoder.pt`; a second run continues
from it.  `WORK/vocoder.safetensors` is the vocoder, a running mean of its weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from eepolicy.io import append_line, read_json, write_atomically
from eepolicy.speech.neural_vocoder import VocoderNetwork, save_network
from eepolicy.speech.source_filter import PERIOD, SpeechParameters, noise_at, phase_of, synthesize
from eepolicy.speech.units import Units
from pocket.corpus import read_waves
from pocket.vocoder_data import CONTEXT, Batch, Clip, clips_of, draw
from pocket.vocoder_loss import spectral_loss

ANSWERS = 2500  # training answers, about two hours of speech
ROWS = 12
RATE = 6e-4
DECAY = 0.998  # of the running mean of the weights
SAVE = 250  # steps


def training_waves(work: Path) -> dict[str, Any]:
    """Return the speech of some training answers."""
    train = {p["answer"] for p in read_json(work / "pairs.json")["train"]}
    waves = {x: w for x, w in read_waves(work / "waves").items() if x in train}
    chosen = random.Random(0).sample(sorted(waves), min(ANSWERS, len(waves)))
    return {x: waves[x] for x in chosen}


class Training:
    """The vocoder and its optimizer.

    Args:
        steps: steps of the whole training.
    """

    def __init__(self, steps: int) -> None:
        torch.manual_seed(0)
        self.steps = steps
        self.network = VocoderNetwork()
        self.mean = copy.deepcopy(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), RATE, betas=(0.8, 0.99), weight_decay=0.01
        )
        self.step = 0
        self.seconds = 0.0

    def state(self) -> dict[str, Any]:
        """Return all that a later run needs."""
        parts = ("network", "mean", "optimizer")
        return {
            **{name: getattr(self, name).state_dict() for name in parts},
            "step": self.step,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from the state of an earlier run."""
        for name, value in state.items():
            if isinstance(value, dict):
                getattr(self, name).load_state_dict(value)
            else:
                setattr(self, name, value)

    def run(self, batch: Batch, generator: np.random.Generator) -> dict[str, float]:
        """Make one step.

        Returns:
            The losses by name.
        """
        done = self.step / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1, (self.step + 1) / 100) * max(0.02, 1 - done)
        with torch.autocast("cpu", torch.bfloat16):
            raw = self.network.raw(batch.log_mel, batch.mask)
        parameters = self.network.parameters_of(raw.float())
        wave = middle(synthesized(parameters, batch, generator))
        true = middle(batch.wave)
        pitch = (parameters.pitch.log() - batch.pitch.log()).abs() * batch.voiced
        voicing = F.binary_cross_entropy(parameters.voiced.clamp(1e-4, 1 - 1e-4), batch.voiced)
        losses = {
            "spectral": spectral_loss(wave, true),
            "pitch": 10 * pitch.sum() / batch.voiced.sum().clamp_min(1),
            "voicing": voicing,
        }
        self.optimizer.zero_grad()
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        with torch.no_grad():
            for mean, new in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - min(DECAY, self.step / (self.step + 10)))
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()}


def synthesized(
    parameters: SpeechParameters, batch: Batch, generator: np.random.Generator
) -> Tensor:
    """Synthesize with the true pitch and voicing, from random phases: (rows, samples)."""
    rows, samples = batch.wave.shape
    start = torch.from_numpy(generator.random(rows))
    noise = torch.stack([noise_at(int(i), samples) for i in generator.integers(PERIOD, size=rows)])
    known = parameters._replace(pitch=batch.pitch, voiced=batch.voiced)
    return synthesize(known, phase_of(batch.pitch, start)[:, :-1], noise)


def middle(wave: Tensor) -> Tensor:
    """Leave out the ends of parts, which lack context: (rows, samples) -> (rows, fewer)."""
    return wave[:, CONTEXT * 160 : -CONTEXT * 160]


def train(work: Path, training: Training, clips: list[Clip], units: Units) -> None:
    """Run the remaining steps, and write the vocoder and its log."""
    bar = tqdm(initial=training.step, total=training.steps, desc="vocoder", unit="step")
    sums: dict[str, list[float]] = {}
    began = time.perf_counter()
    while training.step < training.steps:
        generator = np.random.default_rng(training.step)
        losses = training.run(draw(clips, units, ROWS, generator), generator)
        for name, value in losses.items():
            sums.setdefault(name, []).append(value)
        bar.update()
        if training.step % SAVE == 0 or training.step == training.steps:
            training.seconds += time.perf_counter() - began
            began = time.perf_counter()
            means = {name: round(sum(values) / len(values), 4) for name, values in sums.items()}
            sums.clear()
            row = {"step": training.step, "seconds": round(training.seconds), **means}
            bar.write(str(row))
            append_line(work / "vocoder.jsonl", json.dumps(row))
            write_atomically(work / "vocoder.pt", lambda part: torch.save(training.state(), part))
            save_network(training.mean, work / "vocoder.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    args = parser.parse_args()
    units = Units.load(args.work / "units.safetensors")
    clips = clips_of(training_waves(args.work), units)
    training = Training(args.steps)
    if (args.work / "vocoder.pt").exists():
        training.load(torch.load(args.work / "vocoder.pt"))
    train(args.work, training, clips, units)


if __name__ == "__main__":
    main()
