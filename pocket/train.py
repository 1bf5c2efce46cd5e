"""Train the pocket model.

    python -m pocket.train WORK [--steps N] [--init MODEL]

It reads `WORK/pairs.json` and `WORK/units.json`.  It writes the model with the lowest held-out loss
to `WORK/model`, and `WORK/checkpoint.pt`, from which a second run resumes.  With `--init` it starts
from the weights and the tokenizer of an earlier model.  Copy the `units.safetensors` of that model
to `WORK` before you run `pocket.fit_units`.
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

from eepolicy.io import read_text, write_atomically, write_json
from pocket import sequences as s
from pocket.network import TrainingForward, check_parity

BATCH_TOKENS = 6144
BUCKET = 24  # tokens; the width of a batch is a multiple of it
MIN_BUCKETS = 3
TEXT_WEIGHT = 2.0  # weight of a text token in the loss; there are ten times as many units
NOISE = 0.05  # share of input units that random ones replace
LEARNING_RATE = 3e-3
WARM_UP = 50  # steps in which the learning rate rises
CONSTANT = 0.35  # share of the steps before the learning rate falls, linearly to zero
PARITY = 1e-4  # largest difference of logits in float32; measured 1e-6
PATIENCE = 4  # evaluations without a lower held-out loss before training ends


@dataclass(frozen=True)
class Example:
    """A prompt and its answer, once for each encoding of the speech."""

    prompt: list[int]
    answers: list[list[int]]


def config() -> LlamaConfig:
    """Return the architecture: 20 layers, 16 million parameters."""
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
    """Turn pairs and the encodings of their speech into token sequences."""
    made = []
    for pair in pairs:
        text = tokenizer(pair["answer"], add_special_tokens=False).input_ids
        answers = [s.interleave(text, encoding) for encoding in units[pair["answer"]]]
        made.append(Example(s.prompt_ids(tokenizer, pair["question"]), answers))
    return made


def batches(data: list[Example], rng: random.Random | None) -> list[tuple[Tensor, Tensor]]:
    """Make batches of sequences with similar lengths.

    Widths are multiples of `BUCKET`, and all batches of a width have the same number of rows, so
    that few shapes are compiled.  Missing rows are padding.  Targets are -100 on the question and
    on padding.

    Args:
        data: examples.
        rng: chooses the encoding of the speech, the order, and the noise in the units.  Without it
            nothing is random.

    Returns:
        Ids and targets of each batch, both (rows, tokens).
    """
    buckets: dict[int, list[tuple[list[int], list[int]]]] = defaultdict(list)
    for example in data:
        answer = rng.choice(example.answers) if rng else example.answers[0]
        ids = [*example.prompt, *answer]
        targets = [-100] * (len(example.prompt) - 1) + answer + [-100]
        inputs = [
            rng.randrange(s.UNIT_OFFSET, s.VOCABULARY)
            if rng and i >= s.UNIT_OFFSET and rng.random() < NOISE
            else i
            for i in ids
        ]
        width = max(math.ceil(len(ids) / BUCKET), MIN_BUCKETS) * BUCKET
        buckets[width].append((inputs, targets))
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
    """Pad rows of ids and targets to (size, width), on the right and with empty rows."""
    ids = torch.full((size, width), s.PAD)
    targets = torch.full((size, width), -100)
    for i, (row_ids, row_targets) in enumerate(rows):
        ids[i, : len(row_ids)] = torch.tensor(row_ids)
        targets[i, : len(row_targets)] = torch.tensor(row_targets)
    return ids, targets


def losses(forward: TrainingForward, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross-entropy, correctness and target of each answer token, all (answer tokens,)."""
    keep = targets != -100
    logits = forward.logits(forward.hidden(ids)[keep]).float()
    kept = targets[keep]
    return F.cross_entropy(logits, kept, reduction="none"), logits.argmax(-1) == kept, kept


@torch.no_grad()
def evaluate(forward: TrainingForward, data: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Compute the held-out loss and accuracy on text and on speech."""
    parts = [losses(forward, ids, targets) for ids, targets in data]
    loss, right, target = (torch.cat(x) for x in zip(*parts, strict=True))
    speech = target >= s.UNIT_OFFSET
    return {
        "loss": loss.mean().item(),
        "speech_loss": loss[speech].mean().item(),
        "speech_accuracy": right[speech].float().mean().item(),
        "text_loss": loss[~speech].mean().item(),
        "text_accuracy": right[~speech].float().mean().item(),
    }


def rate(step: int, steps: int) -> float:
    """Return the learning rate at a step, as a share of its maximum."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return min(1.0, (steps - step) / (steps * (1 - CONSTANT)))


def digest(model: Path) -> str:
    """Return a hash of a model's weights."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:16]


class Trainer:
    """Model, optimizers and progress of a training.

    Args:
        work: work folder.
        steps: number of steps.
        seed: seed of the initial weights.
        data: hash of the training data.
        init: folder of a model to start from.
    """

    def __init__(
        self, work: Path, steps: int, seed: int, data: str, init: Path | None = None
    ) -> None:
        torch.manual_seed(seed)
        self.work, self.steps = work, steps
        #: settings that a checkpoint must share
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
        self.optimizers = [
            torch.optim.Muon(
                matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def update(self, ids: Tensor, targets: Tensor) -> float:
        """Run one step and return the loss."""
        token_losses, _, target = losses(self.forward, ids, targets)
        weights = torch.where(target < s.UNIT_OFFSET, TEXT_WEIGHT, 1.0)
        loss = (token_losses * weights).sum() / weights.sum()
        loss.backward()
        self.forward.push_gradients()
        torch.nn.utils.clip_grad_norm_(self.forward.masters.values(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * rate(self.step, self.steps)
            optimizer.step()
        self.forward.pull_masters()
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "recipe": self.recipe,
            "progress": (self.step, self.best, self.bad, self.seconds, self.log),
        }
        write_atomically(self.work / "checkpoint.pt", lambda part: torch.save(state, part))

    def resume(self) -> None:
        """Resume from the checkpoint, if there is one.

        Raises:
            RuntimeError: the checkpoint belongs to another training.
        """
        path = self.work / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            if state["recipe"] != self.recipe:
                raise RuntimeError(
                    f"{path} belongs to another training: it has {state['recipe']}, this one has "
                    f"{self.recipe}; remove the file to start again"
                )
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.best, self.bad, self.seconds, self.log = state["progress"]
            self.forward.pull_masters()
            print(f"resumed at step {self.step}")

    def export(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write the model in Hugging Face format and in bfloat16."""
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

    pairs, units_text = (read_text(args.work / f"{n}.json") for n in ("pairs", "units"))
    data = hashlib.sha256((pairs + units_text).encode()).hexdigest()[:16]
    splits, units = json.loads(pairs), json.loads(units_text)
    texts = [t for p in splits["train"] for t in (p["question"], p["answer"])]
    if args.init:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.init)
    else:
        tokenizer = s.fit_tokenizer(texts)
    dev = batches(examples(splits["dev"], units, tokenizer), None)
    train = examples(splits["train"], units, tokenizer)
    tokens = sum(len(e.prompt) + len(e.answers[0]) for e in train)
    print(f"{len(train)} answers, {tokens} tokens, {len(batches(train, None))} batches per epoch")

    trainer = Trainer(args.work, args.steps, args.seed, data, args.init)
    trainer.resume()
    error = check_parity(trainer.model, dev[0][0][:2])
    if error > PARITY:
        raise RuntimeError(
            f"the logits differ from the stock model's by {error:.1e}; at most {PARITY} is allowed"
        )
    start = time.time() - trainer.seconds
    while trainer.step < args.steps and trainer.bad < PATIENCE:
        for ids, targets in batches(train, random.Random(f"{args.seed} {trainer.step}")):
            loss = trainer.update(ids, targets)
            if trainer.step % 20 == 0:
                minutes = (time.time() - start) / 60
                print(f"step {trainer.step} loss {loss:.3f} {minutes:.1f} min", flush=True)
            if trainer.step % args.every == 0 or trainer.step == args.steps:
                trainer.seconds = time.time() - start
                result = evaluate(trainer.forward, dev)
                trainer.log.append({"step": trainer.step, "seconds": trainer.seconds, **result})
                write_json(args.work / "log.json", trainer.log, indent=1)
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
