"""Decoders of the paper's models at full size, with random weights, on a CUDA device.

    python -m benchmarks.full_size RECORDS [--models ...] [--batch 1,4,16] [--prompt 32]
    python -m benchmarks.full_size RECORDS --write FILE.md

What is not in the folder RECORDS yet is measured, one file for each model, length of the prompts
and batch size; the page is made of all that is there, and needs no such device.  Weights in
bfloat16 are drawn on the device, so that nothing is downloaded; a model of text alone reads the
same bytes as one that speaks.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

import eepolicy
from eepolicy.analysis.timing import figure as timing
from eepolicy.analysis.timing.runner import Bench, Way, markdown, pipes
from eepolicy.errors import EepolicyError
from eepolicy.loading.upstream import glm4_voice, step_audio2

#: the shapes that the authors' checkpoints have (config.json of each)
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "Step-Audio-2-mini": lambda: step_audio2.native_config(
        {
            "vocab_size": 158720,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 16384,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
        }
    ),
    "GLM-4-Voice": lambda: glm4_voice.native_config(
        {
            "padded_vocab_size": 168960,
            "hidden_size": 4096,
            "ffn_hidden_size": 13696,
            "num_layers": 40,
            "num_attention_heads": 32,
            "multi_query_group_num": 2,
            "kv_channels": 128,
            "seq_length": 8192,
            "layernorm_epsilon": 3.90625e-08,
            "add_qkv_bias": True,
        }
    ),
}
COMPILED = "stock generate, static cache, compiled"
SHORT = 128  # tokens of a prompt, up to which the slow ways are timed too
HALF, MOST = 1 / 2, 3 / 4  # of the depth


def built(name: str) -> eepolicy.HookedModel:
    """A model with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.bfloat16)
    return eepolicy.HookedModel(model)


def device_of(model: eepolicy.HookedModel) -> str:
    """What the device of a model calls itself."""
    device = model.model.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def triple(model: eepolicy.HookedModel, share: float) -> str:
    return f"text=spark:triple@{round(share * model.depth)}"


def ways(bench: Bench, rows: int) -> list[Way]:
    """What is timed: all of it on one row, and what matters in batches."""
    model = bench.model
    found = [
        bench.ours("full"),
        bench.stock(COMPILED, cache_implementation="static"),
        *(bench.ours(triple(model, share)) for share in (MOST, HALF)),
    ]
    if rows > 1 or max(map(len, bench.prompts)) > SHORT:
        return found
    looks = ",".join(str(round(share * model.depth)) for share in (0.5, 0.65, 0.8))
    return [
        *found,
        bench.ours(f"text=static@{round(HALF * model.depth)}"),
        bench.ours(f"text=confidence>1.0@[{looks}]"),
        bench.stock("stock generate"),
        *self_speculation(bench, round(MOST * model.depth)),
    ]


def self_speculation(bench: Bench, early: int) -> list[Way]:
    """The stock one, where it does not break off, as transformers 5.17 does at some replies."""
    way = bench.stock(f"stock assistant_early_exit={early}", assistant_early_exit=early)
    try:
        way.decode(list(bench.prompts))
    except TypeError as error:
        print(f"left out: {way.name}: {error}", flush=True)
        return []
    return [way]


def measure(
    model: eepolicy.HookedModel, rows: int, prompt: int, tokens: int, rounds: int
) -> dict[str, Any]:
    """Times of one batch size, and where they were taken."""
    generator = torch.Generator().manual_seed(0)
    shape = (rows, prompt)
    ids = torch.randint(model.model.config.vocab_size, shape, generator=generator)
    bench = Bench(model, list(ids), tokens, True, rounds, compiled=True, first_token=True)
    records = bench.run(ways(bench, rows), rows)
    return {
        "rows": rows,
        "records": records,
        "depth": model.depth,
        "prompt": prompt,
        "tokens": tokens,
        "rounds": rounds,
        "bytes_per_second": bench.machine.bytes_per_second,
        "flops": bench.machine.flops,
        "device": device_of(model),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def against_aims(found: dict[str, Any]) -> list[str]:
    """A table of what was aimed at."""
    records, depth = found["records"], found["depth"]
    full, stock, most, half = records[:4]
    ratios = np.array(stock["turns"]) / most["turns"]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    wanted = depth / most["layer_calls"]
    rows = [
        ["full depth, share of the limit behind the first token", full["later_of_limit"], 0.8],
        ["full depth against the stock generate compiled", stock["seconds"] / full["seconds"], 1.0],
        [f"harvest of `{half['decoding']}`", half["harvest"], 0.95],
    ]
    cells = [[what, f"{value:.2f}", f"{aim:.2f}"] for what, value, aim in rows]
    spread = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
    against = f"`{most['decoding']}` against the stock generate compiled"
    cells.append([against, spread, f"{0.95 * wanted:.2f} (0.95 of the depths' ratio)"])
    return pipes(["figure", "measured", "aim"], cells)


def title(what: dict[str, Any]) -> str:
    """Of the section of one measurement."""
    return f"{what['model']}, batch {what['rows']}, prompts of {what['prompt']} tokens"


def page(found: Sequence[dict[str, Any]], picture: Path) -> list[str]:
    """The page of all that was measured.

    Args:
        found: of each measurement, see `measure`, with the model's name.
        picture: of them, from where the page lies.
    """
    first = found[0]
    for name in ("device", "torch", "transformers", "tokens", "rounds"):
        if len({what[name] for what in found}) > 1:
            raise EepolicyError(f"records of one page have the same {name}; got several")
    lines = [
        "# Decoding at full size on a GPU",
        "",
        f"Decoders of the paper's models with random weights in bfloat16, {first['device']}, torch "
        f"{first['torch']}, transformers {first['transformers']}; exactly {first['tokens']} tokens "
        f"a reply, {first['rounds']} rounds in which all ways take turns on the same prompts. "
        "Columns are explained [here](benchmarks/compiled.md); *behind it* is what comes behind "
        "the first token.",
        "",
        "    python -m benchmarks.full_size RECORDS",
        "    python -m benchmarks.full_size RECORDS --models Step-Audio-2-mini --prompt 4096",
        "    python -m benchmarks.full_size RECORDS --write docs/benchmarks/gpu.md",
        "",
        f"![Milliseconds a token of each way of decoding]({picture})",
    ]
    for what in found:
        reads, multiplies = what["bytes_per_second"] / 1e12, what["flops"] / 1e12
        lines += [
            "",
            f"## {title(what)}",
            "",
            f"{what['depth']} layers. The device reads {reads:.2f} TB/s and multiplies "
            f"{multiplies:.0f} TFLOP/s.",
            "",
            *against_aims(what),
            "",
            *markdown(what["records"]),
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the records")
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--batch", default="1,4,16", help="rows, one or several")
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--tokens", type=int, default=64, help="of a reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="write the page of what is there")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    transformers.logging.set_verbosity_error()  # of options that the bench itself gives
    for name in () if args.write else args.models:
        model = None
        for rows in map(int, args.batch.split(",")):
            file = args.folder / f"{name}-{args.prompt}-{rows}.json"
            if file.is_file():
                continue
            model = model or built(name)
            what = {"model": name} | measure(model, rows, args.prompt, args.tokens, args.rounds)
            file.write_text(json.dumps(what))
            print(f"{name}, batch {rows}", *against_aims(what), sep="\n", flush=True)
            print(*markdown(what["records"]), sep="\n", flush=True)
    if args.write:
        found = [json.loads(file.read_text()) for file in args.folder.glob("*.json")]
        if not found:
            parser.error(f"{args.folder} holds no records")
        names = list(CONFIGS)
        found.sort(key=lambda f: (names.index(f["model"]), f["prompt"], f["rows"]))
        picture = Path("images") / f"{args.write.stem}.svg"
        timing.draw({title(what): what["records"] for what in found}, args.write.parent / picture)
        args.write.write_text("\n".join(page(found, picture)) + "\n")


if __name__ == "__main__":
    main()
