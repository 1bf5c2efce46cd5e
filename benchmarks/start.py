"""What comes before the first token: imports, loading, compiling, fitting exit heads.

    python -m benchmarks.start [--rounds 5] [--write docs/benchmarks/start.md]

Each is timed in a fresh process, in turns.  A round begins without what the compiler left on the
disk, and each process of it finds what those before it left; what torch itself takes to compile
one addition has a folder of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

LOADED = "import eepolicy; model = eepolicy.load('pocket')"
ASKED = "model.generate('What color is snow?', 'spark:triple@14', compile={}, max_new_tokens=20)"
REPLIES = """
from eepolicy.fitting import FitConfig, fit, generate_replies
replies = generate_replies(model, [q["question"] for q in eepolicy.held_out("dev")[:12]])
"""
ADDED = "torch.compile(lambda x: x + 1)(torch.ones(8))"
FITTED = "fit(model, replies[:8], replies[8:], FitConfig(epochs=1))"
#: name: what comes before, and what is timed
STARTS = {
    "import transformers' causal language models": (
        "",
        "from transformers import LlamaForCausalLM",
    ),
    "import eepolicy": ("", "import eepolicy"),
    "import eepolicy after them": (
        "from transformers import LlamaForCausalLM, AutoModelForCausalLM",
        "import eepolicy",
    ),
    "load the pocket model": ("import eepolicy", "eepolicy.load('pocket')"),
    "first 20 tokens": (LOADED, ASKED.format(False)),
    "first 20 tokens, compiled": (LOADED, ASKED.format(True)),
    "first 20 tokens, compiled before": (LOADED, ASKED.format(True)),
    "torch compiles x + 1": ("", ADDED),
    "torch compiles x + 1, compiled before": ("", ADDED),
    "one epoch of heads at 19 depths on 8 replies, judged on 4": (LOADED + REPLIES, FITTED),
}


def seconds(before: str, timed: str, kernels: str) -> float:
    """Of a statement in a fresh process, with a folder of kernels that were compiled before."""
    code = (
        f"import time, torch; torch.set_num_threads(1)\n{before}\nbegan = time.perf_counter()\n"
        f"{timed}\nprint(time.perf_counter() - began)"
    )
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": kernels, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="write the page here as well")
    args = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as kernels:
            for name, (before, timed) in STARTS.items():
                folder = "torch" if timed == ADDED else "ours"
                taken[name].append(seconds(before, timed, f"{kernels}/{folder}"))
                print(f"{name}: {taken[name][-1]:.2f} s", flush=True)
    page = [
        "# Before the first token",
        "",
        f"The pocket model, one thread, torch {torch.__version__}, {args.rounds} fresh process(es) "
        "each, in turns; torch itself is imported before the clock starts.",
        "",
        f"    python -m benchmarks.start --rounds {args.rounds}",
        "",
        "| | seconds, median [least, most] |",
        "|---|---|",
        *(
            f"| {name} | {np.median(each):.2f} [{min(each):.2f}, {max(each):.2f}] |"
            for name, each in taken.items()
        ),
    ]
    if args.write:
        args.write.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
