"""A branch and a drafter for SmolLM2, fitted on its own replies: lossless speed against peers.

    python -m benchmarks.smollm2 work/SmolLM2-135M-Instruct
    python -m benchmarks.smollm2_exits prompts work/prompts.txt
    eepolicy fit work/SmolLM2-135M-Instruct --prompts work/prompts.txt --heads drafter ...
    python -m benchmarks.smollm2_exits time work/SmolLM2-135M-Instruct --heads ... --write PAGE

The prompts to fit on ask about other subjects than the prompts that are timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import eepolicy
from benchmarks.peers import peer_contender, theirs
from eepolicy.analysis.tables import MISSING, markdown_table, number
from eepolicy.analysis.timing.contenders import BenchConfig, Contender
from eepolicy.analysis.timing.runner import Bench
from eepolicy.analysis.timing.table import LAYER_CALLS, SECONDS, SPEEDUP, cells
from eepolicy.heads.files import load_heads, read_notes
from eepolicy.heads.fitted import FittedHead
from eepolicy.io import write_text

SUBJECTS = """
    bread, glass, the moon, a violin, rivers, honey, chess, the heart, snow, a compass, coffee,
    volcanoes, paper, whales, the wheel, gardens, salt, bridges, sleep, clouds, the piano, deserts,
    cheese, magnets, bees, maps, the brain, rain, football, silk, stars, soap, mountains, trains,
    tea, earthquakes, ink, horses, money, kites, the lungs, forests, rice, clocks, cats, rainbows,
    swimming, cotton, the sun, batteries, islands, apples, telescopes, owls, poetry, the stomach,
    fog, tennis, wool, comets, candles, lakes, chocolate, bicycles, sharks, painting, teeth, wind,
    running, leather, tides, lamps, caves, pepper, ships, ants, drums, the skin, thunder, sailing,
    bricks, planets, mirrors, beaches, olives, radios, dogs, theatre, the eye, frost, dancing, iron
""".replace("\n", " ").split(",")
HELD_OUT_SUBJECTS = """
    the ear, copper, penguins, a guitar, waterfalls, sugar, cameras, hail, cycling, glaciers,
    butter, elephants
""".replace("\n", " ").split(",")
REQUESTS = (
    "Explain {} to a child.",
    "What are three facts about {}?",
    "Write a short story about {}.",
    "Why do people care about {}?",
    "Describe {} in two sentences.",
    "What should I know before I read a book about {}?",
    "Give me a short history of {}.",
    "Write a short poem about {}.",
)
COLUMNS = (LAYER_CALLS, SECONDS, SPEEDUP)
FIRST_RATE = 1.5e-3  # default learning rate of a branch or drafter
HEADINGS = ("head", "layers", "replies", "learning rate", "agreement, %", "accepted of 3 drafts")


def prompts(subjects: Sequence[str]) -> list[str]:
    """Every request about every subject."""
    return [r.format(s.strip()) for s, r in product(subjects, REQUESTS)]


def model_of(folder: str, files: Sequence[Path]) -> eepolicy.HookedModel:
    """The model with the heads of all files."""
    model = eepolicy.load(folder, threads=1)
    heads = [load_heads(file, model.lens, model.model) for file in files]
    by_depth = {d: each.at(d) for each in heads for d in map(int, each.heads)}
    model.heads = FittedHead(dict(sorted(by_depth.items())))
    return model


def contenders(bench: Bench, depth: int, drafts: Sequence[int]) -> list[Contender]:
    """Full depth, lossless decoding of ours and of peers, and an exit that is not lossless."""
    tokens = bench.config.max_new_tokens
    exact: dict[str, Any] = {"accept": "exact"}
    chains = [bench.policy(f"both=draft:{k}", f"draft:{k}, accept=exact", **exact) for k in drafts]
    chains += [
        bench.policy(
            f"both=static@{depth}",
            f"static@{depth}, accept=exact, max_pending={k}",
            max_pending=k,
            **exact,
        )
        for k in drafts
    ]
    return [
        bench.policy("full"),
        *chains,
        bench.policy(f"text=static@{depth}"),
        bench.stock("stock generate"),
        bench.stock(f"stock assistant_early_exit={depth}", assistant_early_exit=depth),
        *economize(bench.model, depth, tokens),
    ]


def economize(model: eepolicy.HookedModel, depth: int, tokens: int) -> list[Contender]:
    """The lossless decoder of economize; none without the package."""
    try:
        from economize import DecodeConfig
        from economize.techniques.early_exit import EarlyExitConfig
    except ImportError:
        return []
    early = EarlyExitConfig(exit_layer=depth, head="shared")
    lossless = DecodeConfig(cycle_length=5, lossless=True)
    contender = peer_contender(theirs(model, tokens, early, decoding=lossless))
    contender.name = f"economize, lossless, exit {depth}"
    return [contender]


def heads_of(file: Path) -> list[str]:
    """Row of a file of heads: what was fitted, on what, and figures on held-out replies."""
    notes = read_notes(file)["notes"]
    fitting, row = notes["fitting"], notes["rounds"][-1]
    return [
        f"{row['kind']} at depth {row['depth']}",
        f"{row['layers']}",
        f"{notes['replies']}, {row['epochs']} times",
        f"{fitting['learning_rate'] or FIRST_RATE:g}",
        number(row["agreement"], 1, 100),
        number(row["accepted"], 2) if "accepted" in row else MISSING,
    ]


def page(records: Sequence[dict[str, Any]], args: argparse.Namespace, count: int) -> str:
    """The page: how the heads were fitted, and the table with its settings and command."""
    name = Path(args.model).name
    fits = [
        f"    eepolicy fit work/{name} --prompts work/prompts.txt --on text --max-new-tokens 96 "
        "--precision bfloat16 --compile --learning-rate 1e-3 --batch-replies 12 --epochs 4 "
        f"--threads 1 {options}"
        for options in (
            f"--heads branch --layers 2 --depths {args.depth} --out work/branch.safetensors",
            "--heads drafter --layers 1 --out work/drafter.safetensors",
        )
    ]
    return "\n".join(
        [
            "# Lossless decoding of SmolLM2 with a branch and a drafter of its own",
            "",
            f"`{name}`: 30 layers, a text model. A branch and a drafter are fitted on its own "
            f"replies to {len(prompts(SUBJECTS))} prompts, a tenth of which is held out: at most "
            "96 tokens a reply, so fewer than 70,000 tokens. Agreement is with the last layer, on "
            "held-out full-depth replies.",
            "",
            f"    python -m benchmarks.smollm2 work/{name}",
            "    python -m benchmarks.smollm2_exits prompts work/prompts.txt",
            *fits,
            "",
            markdown_table(HEADINGS, [heads_of(file) for file in args.heads]),
            "",
            "## Speed",
            "",
            f"{count} prompts about subjects that no prompt of the fit has, exactly {args.tokens} "
            f"tokens a reply, batch 1, {args.rounds} rounds, 1 thread, float32, torch "
            f"{torch.__version__}. All trials are interleaved in one run, on the same prompts. "
            "Speed-ups are over `full`, which is compiled. The rows with `accept=exact` give the "
            "tokens of `full`; `static` alone does not. The peers do not compile.",
            "",
            f"    python -m benchmarks.smollm2_exits time work/{name} --heads "
            f"{' '.join(f'work/{file.name}' for file in args.heads)} --depth {args.depth} "
            f"--drafts {' '.join(map(str, args.drafts))} --prompts {count} --tokens "
            f"{args.tokens} --rounds {args.rounds}",
            "",
            markdown_table(
                ["decoding", *(column.heading for column in COLUMNS)],
                [cells(record, COLUMNS) for record in records],
            ),
        ]
    )


def measure(args: argparse.Namespace) -> str:
    """Time every method, and write the table."""
    model = model_of(args.model, args.heads)
    every = prompts(HELD_OUT_SUBJECTS)
    spread = every[:: max(1, len(every) // args.prompts)]
    encoded = [model.encode(text) for text in spread[: args.prompts]]
    config = BenchConfig(args.tokens, exact_length=True, rounds=args.rounds, compiled=True)
    bench = Bench(model, encoded, config)
    records = bench.run(contenders(bench, args.depth, args.drafts), 1, tqdm)
    return page(records, args, len(encoded))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    write = commands.add_parser("prompts", help="write the prompts to fit on")
    write.add_argument("file", type=Path)
    timed = commands.add_parser("time", help="time lossless decoding against peers")
    timed.add_argument("model", help="folder of the model")
    timed.add_argument("--heads", type=Path, nargs="+", required=True, help="files of the heads")
    timed.add_argument("--depth", type=int, required=True, help="depth of the branch")
    timed.add_argument("--drafts", type=int, nargs="+", default=[2, 3], help="drafts in a chain")
    timed.add_argument("--prompts", type=int, default=8, help="number of prompts")
    timed.add_argument("--tokens", type=int, default=64, help="tokens of a reply")
    timed.add_argument("--rounds", type=int, default=2, help="trials on each prompt")
    timed.add_argument("--write", type=Path, help="file for the table")
    args = parser.parse_args()
    if args.command == "prompts":
        write_text(args.file, "\n".join(prompts(SUBJECTS)) + "\n")
        return
    text = measure(args)
    print(text)
    if args.write:
        write_text(args.write, text + "\n")


if __name__ == "__main__":
    main()
