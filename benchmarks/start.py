"""Start-up times: imports, loading, compiling, fitting exit heads.

    python -m benchmarks.start [--rounds 5] [--write docs/benchmarks/start.md]

Each is timed in a fresh process, and rounds are interleaved.  A round begins with an empty kernel
cache, which its processes share in order.  The time that torch takes to compile one addition is
measured with a separate cache.
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

from eepolicy.analysis.tables import markdown_table

LOADED = "import eepolicy; model = eepolicy.load('pocket')"
REPLY = "model.generate('What color is snow?', 'spark:triple@14', compile={}, max_new_tokens=20)"
BATCH = (
    "model.generate([q['question'] for q in eepolicy.held_out('dev')[:8]], 'spark:triple@14', "
    "compile=True, max_new_tokens=20)"
)
REPLIES = """
from eepolicy.fitting import FitConfig, fit, generate_replies
replies = generate_replies(model, [q["question"] for q in eepolicy.held_out("dev")[:12]])
"""
ADDED = "torch.compile(lambda x: x + 1)(torch.ones(8))"
FITTED = "fit(model, replies[:8], replies[8:], FitConfig(epochs=1))"
#: name: setup, and the statement to time
STARTS = {
    "import transformers' causal language models": (
        "",
        "from transformers import LlamaForCausalLM",
    ),
    "import eepolicy": ("", "import eepolicy"),
    "import eepolicy after transformers": (
        "from transformers import LlamaForCausalLM, AutoModelForCausalLM",
        "import eepolicy",
    ),
    "load the pocket model": ("import eepolicy", "eepolicy.load('pocket')"),
    "first 20 tokens": (LOADED, REPLY.format(False)),
    "first 20 tokens, compiled": (LOADED, REPLY.format(True)),
    "first 20 tokens, kernels cached": (LOADED, REPLY.format(True)),
    "first 20 tokens of 8 replies in a batch, compiled": (LOADED, BATCH),
    "first 20 tokens of 8 replies in a batch, kernels cached": (LOADED, BATCH),
    "torch compiles x + 1": ("", ADDED),
    "torch compiles x + 1, kernels cached": ("", ADDED),
    "fit heads at 19 depths, one epoch: 8 replies, 4 for validation": (LOADED + REPLIES, FITTED),
}


def seconds(setup: str, timed: str, kernels: str) -> float:
    """Seconds of a statement in a fresh process.

    Args:
        setup: code to run first.
        timed: statement to time.
        kernels: folder of the kernel cache.
    """
    code = (
        f"import time, torch; torch.set_num_threads(1)\n{setup}\nbegan = time.perf_counter()\n"
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
    parser.add_argument("--write", type=Path, help="write the page to this file")
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as kernels:
            for name, (setup, timed) in STARTS.items():
                folder = {ADDED: "torch", BATCH: "batch"}.get(timed, "ours")
                times[name].append(seconds(setup, timed, f"{kernels}/{folder}"))
                print(f"{name}: {times[name][-1]:.2f} s", flush=True)
    page = [
        "# Start-up times",
        "",
        f"The pocket model, one thread, torch {torch.__version__}, {args.rounds} fresh process(es) "
        "each, interleaved. Times do not include the import of torch.",
        "",
        f"    python -m benchmarks.start --rounds {args.rounds}",
        "",
        markdown_table(
            ["", "seconds, median [min, max]"],
            [
                [name, f"{np.median(each):.2f} [{min(each):.2f}, {max(each):.2f}]"]
                for name, each in times.items()
            ],
        ),
    ]
    if args.write:
        args.write.write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
