"""Train the pocket model.

    python -m pocket.train WORK [--steps N] [--init MODEL]

reads `WORK/pairs.json` and `WORK/units.json`, writes `WORK/checkpoint.pt` as it goes (run again, it
resumes) and the model with the best held-out loss to `WORK/model`.  With `--init` it starts from
the weights and the tokenizer of an earlier model; `WORK` then holds that model's
`units.safetensors` before `pocket.fit_units` is run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pocket import sequences as s
from pocket.network import TrainingForward, check_parity

BATCH_TOKENS = 6144
BUCKET = 24  # widths of batches are multiples of it
LEAST_BUCKETS = 3
TEXT_WEIGHT = 2.0  # of a text token in the loss; there are ten times as many units
NOISE = 0.05  # share of the units in the input that are replaced by random ones
LEARNING_RATE = 3e-3
WARM_UP = 50  # steps
CONSTANT = 0.35  # share of the steps before the learning rate falls linearly to zero
PARITY = 1e-4  # of logits in float32; measured 1e-6
PATIENCE = 4  # evaluations without a better held-out loss before training ends


@dataclass(frozen=True)
class Example:
    """A prompt and its answers, one for each reading of the speech."""

    prompt: list[int]
    answers: list[list[int]]


def config() -> LlamaConfig:
    """The architecture: 20 layers, 16 million parameters."""
    return LlamaConfig(
        vocab_size=s.VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=20,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=s.QUESTION,
        eos_token_id=s.END,
        pad_token_id=s.PAD,
    )


def examples(
    pairs: list[dict[str, Any]],
    units: dict[str, list[list[int]]],
    tokenizer: PreTrainedTokenizerFast,
) -> list[Example]:
    """Pairs and the readings of their answers' speech as token sequences."""
    found = []
    for pair in pairs:
        text = tokenizer(pair["answer"], add_special_tokens=False).input_ids
        answers = [s.interleave(text, reading) for reading in units[pair["answer"]]]
        found.append(Example(s.prompt_ids(tokenizer, pair["question"]), answers))
    return found


def batches(data: list[Example], rng: random.Random | None) -> list[tuple[Tensor, Tensor]]:
    """Batches of about equally long sequences: ids and targets, (rows, tokens) each.

    Widths are multiples of `BUCKET`, and all batches of a width have the same number of rows, so
    that few shapes are compiled; rows that fill none are padding.  Targets are -100 on the question
    and on padding.  With `rng` the reading of the speech and the order are drawn and units are
    replaced by noise; without it nothing is random.
    """
    buckets: dict[int, list[tuple[list[int], list[int]]]] = defaultdict(list)
    for example in data:
        answer = rng.choice(example.answers) if rng else example.answers[0]
        ids = [*example.prompt, *answer]
        targets = [-100] * (len(example.prompt) - 1) + answer + [-100]
        seen = [
            rng.randrange(s.UNIT_OFFSET, s.VOCABULARY)
            if rng and i >= s.UNIT_OFFSET and rng.random() < NOISE
            else i
            for i in ids
        ]
        width = max(math.ceil(len(ids) / BUCKET), LEAST_BUCKETS) * BUCKET
        buckets[width].append((seen, targets))
    made = []
    for width, rows in sorted(buckets.items()):
        if rng:
            rng.shuffle(rows)
        size = BATCH_TOKENS // width
        made += [padded(rows[i : i + size], size, width) for i in range(0, len(rows), size)]
    if rng:
        rng.shuffle(made)
    return made


def padded(rows: list[tuple[list[int], list[int]]], size: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows of ids and targets, padded on the right and below to (size, width)."""
    ids = torch.full((size, width), s.PAD)
    targets = torch.full((size, width), -100)
    for i, (row_ids, row_targets) in enumerate(rows):
        ids[i, : len(row_ids)] = torch.tensor(row_ids)
        targets[i, : len(row_targets)] = torch.tensor(row_targets)
    return ids, targets


def losses(forward: TrainingForward, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, correctness and target of every answer token: (answer tokens,) each."""
    keep = targets != -100
    logits = forward.logits(forward.hidden(ids)[keep]).float()
    wanted = targets[keep]
    return F.cross_entropy(logits, wanted, reduction="none"), logits.argmax(-1) == wanted, wanted


@torch.no_grad()
def evaluate(forward: TrainingForward, data: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Held-out loss and accuracy on text and on speech targets."""
    parts = [losses(forward, ids, targets) for ids, targets in data]
    loss, right, wanted = (torch.cat(x) for x in zip(*parts, strict=True))
    speech = wanted >= s.UNIT_OFFSET
    return {
        "loss": loss.mean().item(),
        "speech_loss": loss[speech].mean().item(),
        "speech_accuracy": right[speech].float().mean().item(),
        "text_loss": loss[~speech].mean().item(),
        "text_accuracy": right[~speech].float().mean().item(),
    }


def rate(step: int, steps: int) -> float:
    """The learning rate at a step, as a share of the highest."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return min(1.0, (steps - step) / (steps * (1 - CONSTANT)))


def digest(model: Path) -> str:
    """A hash of a model's weights."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:16]


class Trainer:
    """Model, optimisers, and where training stands."""

    def __init__(
        self, work: Path, steps: int, seed: int, data: str, init: Path | None = None
    ) -> None:
        torch.manual_seed(seed)
        self.work, self.steps = work, steps
        #: what must be the same for a checkpoint to be gone on with
        self.recipe = {"steps": steps, "seed": seed, "data": data, "init": init and digest(init)}
        self.step, self.best, self.bad, self.seconds = 0, math.inf, 0, 0.0
        self.log: list[dict[str, Any]] = []
        self.model = LlamaForCausalLM(config())
        if init is not None:
            self.model.load_state_dict(LlamaForCausalLM.from_pretrained(init).state_dict())
        self.forward = TrainingForward(self.model, torch.bfloat16, compiled=True)
        named = self.forward.masters
        matrices = [p for n, p in named.items() if p.ndim == 2 and "layers" in n]
        others = [p for n, p in named.items() if not (p.ndim == 2 and "layers" in n)]
        self.optimisers = [
            torch.optim.Muon(
                matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def update(self, ids: Tensor, targets: Tensor) -> float:
        """One step; gives the loss."""
        of_each, _, wanted = losses(self.forward, ids, targets)
        weights = torch.where(wanted < s.UNIT_OFFSET, TEXT_WEIGHT, 1.0)
        loss = (of_each * weights).sum() / weights.sum()
        loss.backward()
        self.forward.push_gradients()
        torch.nn.utils.clip_grad_norm_(self.forward.masters.values(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * rate(self.step, self.steps)
            optimiser.step()
        self.forward.pull_masters()
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        part = self.work / "checkpoint.part"
        state = {
            "model": self.model.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "recipe": self.recipe,
            "progress": (self.step, self.best, self.bad, self.seconds, self.log),
        }
        torch.save(state, part)
        part.rename(self.work / "checkpoint.pt")

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        path = self.work / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            if state["recipe"] != self.recipe:
                raise RuntimeError(
                    f"{path} is of another training, {state['recipe']} instead of {self.recipe}: "
                    "remove it to start anew"
                )
            self.model.load_state_dict(state["model"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.step, self.best, self.bad, self.seconds, self.log = state["progress"]
            self.forward.pull_masters()
            print(f"resumed at step {self.step}")

    def export(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write the model in Hugging Face format, in bfloat16."""
        half = LlamaForCausalLM(config()).to(torch.bfloat16)
        half.load_state_dict(self.model.state_dict())
        half.generation_config.update(max_new_tokens=400, pad_token_id=s.PAD, eos_token_id=s.END)
        part, model = self.work / "model.part", self.work / "model"
        half.save_pretrained(part)
        tokenizer.save_pretrained(part)
        shutil.rmtree(model, ignore_errors=True)
        part.rename(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="folder of a model to start from")
    args = parser.parse_args()
    torch.set_num_threads(2)

    pairs, units_text = ((args.work / f"{n}.json").read_text() for n in ("pairs", "units"))
    data = hashlib.sha256((pairs + units_text).encode()).hexdigest()[:16]
    sets, units = json.loads(pairs), json.loads(units_text)
    texts = [t for p in sets["train"] for t in (p["question"], p["answer"])]
    if args.init:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.init)
    else:
        tokenizer = s.fit_tokenizer(texts)
    dev = batches(examples(sets["dev"], units, tokenizer), None)
    train = examples(sets["train"], units, tokenizer)
    tokens = sum(len(e.prompt) + len(e.answers[0]) for e in train)
    print(f"{len(train)} answers, {tokens} tokens, {len(batches(train, None))} batches an epoch")

    trainer = Trainer(args.work, args.steps, args.seed, data, args.init)
    trainer.resume()
    error = check_parity(trainer.model, dev[0][0][:2])
    if error > PARITY:
        raise RuntimeError(f"the lean forward differs from the stock one by {error:.1e}")
    began, seen, epoch = time.time() - trainer.seconds, 0, 0
    while trainer.step < args.steps and trainer.bad < PATIENCE:
        epoch += 1
        for ids, targets in batches(train, random.Random(f"{args.seed} {trainer.step}")):
            loss = trainer.update(ids, targets)
            seen += ids.numel()
            if trainer.step % 20 == 0:
                spent = time.time() - began
                print(f"step {trainer.step} loss {loss:.3f} {spent / 60:.1f} min", flush=True)
            if trainer.step % args.every == 0 or trainer.step == args.steps:
                trainer.seconds = time.time() - began
                result = evaluate(trainer.forward, dev)
                trainer.log.append({"step": trainer.step, "seconds": trainer.seconds, **result})
                (args.work / "log.json").write_text(json.dumps(trainer.log, indent=1))
                print(json.dumps(trainer.log[-1]), flush=True)
                if result["loss"] < trainer.best:
                    trainer.best, trainer.bad = result["loss"], 0
                    trainer.export(tokenizer)
                else:
                    trainer.bad += 1
                trainer.save()
                if trainer.step >= args.steps or trainer.bad >= PATIENCE:
                    break


if __name__ == "__main__":
    main()
