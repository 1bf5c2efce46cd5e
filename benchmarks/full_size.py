"""Decoding with the paper's models at full size and random weights, on a CUDA device.

    python -m benchmarks.full_size RECORDS [--models ...] [--batch 1,4,16] [--prompt 32]
    python -m benchmarks.full_size RECORDS --write FILE.md

The command measures what the folder RECORDS does not contain yet, one file for each model, prompt
length and batch size.  `--write` makes the page from all records and needs no GPU.  Random weights
in bfloat16 are made on the device, so nothing is downloaded; a text model reads the same bytes as a
speech model of its shape.
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
from eepolicy.analysis.tables import markdown_table
from eepolicy.analysis.timing import figure as timing
from eepolicy.analysis.timing.contenders import PROBED_DEPTHS, BenchConfig, Contender
from eepolicy.analysis.timing.runner import Bench
from eepolicy.analysis.timing.table import section
from eepolicy.errors import EepolicyError
from eepolicy.loading.upstream import glm4_voice, step_audio2

#: shapes of the authors' checkpoints (config.json of each)
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
SHORT = 128  # longest prompt, in tokens, with which slow methods are timed as well
HALF, THREE_QUARTERS = 1 / 2, 3 / 4  # exit depths, as shares of full depth
AIMS = {"roofline": 0.8, "stock": 1.0, "efficiency": 0.95}


def random_model(name: str) -> eepolicy.HookedModel:
    """A model with random weights on the GPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.bfloat16)
    return eepolicy.HookedModel(model)


def device_of(model: eepolicy.HookedModel) -> str:
    """Name of the device of a model."""
    device = model.model.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def triple(model: eepolicy.HookedModel, share: float) -> str:
    """Spec string of SPAR-K's triple schedule with exits at a share of full depth."""
    return f"text=spark:triple@{round(share * model.depth)}"


def contenders(bench: Bench, rows: int) -> list[Contender]:
    """All methods for one short row; in batches and after long prompts only the main ones."""
    model = bench.model
    main = [
        bench.policy("full"),
        bench.stock(COMPILED, cache_implementation="static"),
        *(bench.policy(triple(model, share)) for share in (THREE_QUARTERS, HALF)),
    ]
    if rows > 1 or max(map(len, bench.prompts)) > SHORT:
        return main
    depths = ",".join(str(round(share * model.depth)) for share in PROBED_DEPTHS)
    return [
        *main,
        bench.policy(f"text=static@{round(HALF * model.depth)}"),
        bench.policy(f"text=confidence>1.0@[{depths}]"),
        bench.stock("stock generate"),
        *stock_self_speculation(bench, round(THREE_QUARTERS * model.depth)),
    ]


def stock_self_speculation(bench: Bench, depth: int) -> list[Contender]:
    """The stock self-speculation; none if it fails, as in transformers 5.17 on some replies."""
    contender = bench.stock(f"stock assistant_early_exit={depth}", assistant_early_exit=depth)
    try:
        contender.decode(list(bench.prompts))
    except TypeError as error:
        print(f"left out: {contender.name}: {error}", flush=True)
        return []
    return [contender]


def measure(
    model: eepolicy.HookedModel, rows: int, prompt: int, config: BenchConfig
) -> dict[str, Any]:
    """Times of one batch size, with the settings and the device.

    Args:
        model: model on its device.
        rows: number of rows in a batch.
        prompt: tokens of a prompt.
        config: how to decode.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.model.config.vocab_size, (rows, prompt), generator=generator)
    bench = Bench(model, list(ids), config)
    records = bench.run(contenders(bench, rows), rows)
    machine = bench.roofline.machine
    return {
        "rows": rows,
        "records": records,
        "depth": model.depth,
        "prompt": prompt,
        "tokens": config.max_new_tokens,
        "rounds": config.rounds,
        "bytes_per_second": machine.bytes_per_second,
        "flops": machine.flops,
        "device": device_of(model),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def against_aims(measurement: dict[str, Any]) -> str:
    """A Markdown table of the aims and what was reached."""
    records, depth = measurement["records"], measurement["depth"]
    full, stock, three_quarters, half = records[:4]
    ratios = np.array(stock["trials"]) / three_quarters["trials"]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    values = {
        "full depth, TPOT: share of the roofline": (
            full["tpot_roofline_share"],
            AIMS["roofline"],
        ),
        "full depth: speed-up over the stock generate compiled": (
            stock["seconds"] / full["seconds"],
            AIMS["stock"],
        ),
        f"efficiency of `{half['decoding']}`": (half["efficiency"], AIMS["efficiency"]),
    }
    rows = [[name, f"{value:.2f}", f"{aim:.2f}"] for name, (value, aim) in values.items()]
    aim = AIMS["efficiency"] * depth / three_quarters["layer_calls"]
    rows.append(
        [
            f"`{three_quarters['decoding']}`: speed-up over the stock generate compiled",
            f"{middle:.2f} [{low:.2f}, {high:.2f}]",
            f"{aim:.2f} ({AIMS['efficiency']} of the ratio of layer calls)",
        ]
    )
    return markdown_table(["quantity", "measured", "aim"], rows)


def title(measurement: dict[str, Any]) -> str:
    """Heading of one measurement."""
    model, rows, prompt = (measurement[name] for name in ("model", "rows", "prompt"))
    return f"{model}, batch {rows}, prompts of {prompt} tokens"


def page(measurements: Sequence[dict[str, Any]], picture: Path) -> list[str]:
    """Lines of the page of all measurements.

    Args:
        measurements: results of `measure`, each with the name of its model.
        picture: path of the figure relative to the page.

    Raises:
        EepolicyError: the measurements have different settings, devices or versions.
    """
    first = measurements[0]
    for name in ("device", "torch", "transformers", "tokens", "rounds"):
        values = sorted({str(measurement[name]) for measurement in measurements})
        if len(values) > 1:
            raise EepolicyError(
                f"records of one page need the same {name}; got {', '.join(values)}: use one "
                "folder for each"
            )
    lines = [
        "# Decoding at full size on a GPU",
        "",
        f"Decoders of the paper's models with random weights in bfloat16, {first['device']}, torch "
        f"{first['torch']}, transformers {first['transformers']}; exactly {first['tokens']} tokens "
        f"a reply, {first['rounds']} rounds. The trials of all methods are interleaved, on the "
        "same prompts. [Explanation of the columns](compiled.md). TPOT is the time per output "
        "token after the first, over the tokens of all rows.",
        "",
        "    python -m benchmarks.full_size RECORDS",
        "    python -m benchmarks.full_size RECORDS --models Step-Audio-2-mini --prompt 4096",
        "    python -m benchmarks.full_size RECORDS --write docs/benchmarks/gpu.md",
        "",
        f"![Milliseconds a token of each decoding method]({picture})",
    ]
    for measurement in measurements:
        reads, computes = measurement["bytes_per_second"] / 1e12, measurement["flops"] / 1e12
        lines += [
            "",
            f"## {title(measurement)}",
            "",
            f"{measurement['depth']} layers. The device reads {reads:.2f} TB/s and computes "
            f"{computes:.0f} TFLOP/s.",
            "",
            against_aims(measurement),
            "",
            section(measurement["records"]),
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the records")
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--batch", default="1,4,16", help="batch sizes, separated by commas")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a reply")
    parser.add_argument("--rounds", type=int, default=3, help="trials of each method")
    parser.add_argument("--write", type=Path, help="write the page of all records to this file")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    transformers.logging.set_verbosity_error()  # warnings about options that the bench sets
    if args.write:
        write_page(args.folder, args.write)
        return
    config = BenchConfig(args.tokens, True, args.rounds, compiled=True, time_first_token=True)
    for name in args.models:
        model = None
        for rows in map(int, args.batch.split(",")):
            file = args.folder / f"{name}-{args.prompt}-{rows}.json"
            if file.is_file():
                continue
            model = model or random_model(name)
            measurement = {"model": name} | measure(model, rows, args.prompt, config)
            file.write_text(json.dumps(measurement))
            print(title(measurement), against_aims(measurement), sep="\n", flush=True)
            print(section(measurement["records"]), flush=True)


def write_page(folder: Path, file: Path) -> None:
    """Write the page and the figure of all records of a folder.

    Raises:
        EepolicyError: the folder has no records.
    """
    measurements = [json.loads(record.read_text()) for record in folder.glob("*.json")]
    if not measurements:
        raise EepolicyError(f"{folder} has no records; run without --write first")
    names = list(CONFIGS)
    measurements.sort(key=lambda m: (names.index(m["model"]), m["prompt"], m["rows"]))
    picture = Path("images") / f"{file.stem}.svg"
    timing.draw({title(m): m["records"] for m in measurements}, file.parent / picture)
    file.write_text("\n".join(page(measurements, picture)) + "\n")


if __name__ == "__main__":
    main()
