"""How the cost of a step grows with context, rows, layers, exit depth and vocabulary.

    python -m benchmarks.growth [--threads 1] [--compile] [--write docs/benchmarks/growth.md]

Random weights in the shape of SmolLM2-135M.  Points are medians over steps, sweeps run to and fro,
and a line is fitted to each; beside it stands the line by which reading alone would grow.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.stats import linregress
from transformers import LlamaConfig, LlamaForCausalLM

import eepolicy
from eepolicy.analysis.style import figures
from eepolicy.analysis.timing.roofline import Machine, Sizes, measure_machine
from eepolicy.analysis.timing.runner import call_costs
from eepolicy.decode.batch import Batch

LAYERS, VOCABULARY, CONTEXT = 30, 49152, 128
SWEEPS = 2  # to and fro
STEPS = 15  # that a point is the median of


@dataclass
class Curve:
    """One thing that varies.

    Attributes:
        name: of what varies, with its unit.
        cost: of what is timed.
        values: it takes.
        seconds: of a value.
        bound: seconds more for each one more, by reading alone; None where it is compared with
            nothing.
    """

    name: str
    cost: str
    values: Sequence[int]
    seconds: Callable[[int], float]
    bound: float | None


def model_of(layers: int, vocabulary: int = VOCABULARY) -> eepolicy.HookedModel:
    """Random weights in the shape of SmolLM2-135M, but for layers and vocabulary."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    return eepolicy.wrap(LlamaForCausalLM(shape).eval())


@torch.no_grad()
def exit_seconds(model: eepolicy.HookedModel, depth: int, compiled: bool) -> float:
    """Of a step that exits at a depth, its readout included."""
    ids = torch.randint(VOCABULARY, (1, CONTEXT + STEPS))
    batch = Batch(
        model, [0], ids.shape[1], executor=model.compiled_executor() if compiled else None
    )
    batch.prefill(ids[:, :CONTEXT])
    times = []
    for column in range(CONTEXT, ids.shape[1]):
        began = time.perf_counter()
        block = batch.begin_step(ids[:, column : column + 1], [0])
        batch.run(block, depth)
        batch.exit(block)
        batch.read(block.hidden[:, -1], depth).argmax(-1)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def curves(compiled: bool) -> tuple[list[Curve], Machine]:
    """What is measured."""
    whole, machine = model_of(LAYERS), None
    machine, sizes = measure_machine(whole), Sizes.of(whole)
    by_layers = {n: model_of(n, 4096) for n in (2, 8, 16, 24)}
    by_vocabulary = {n: model_of(1, n) for n in (4096, 16384, 32768, 65536, 131072)}

    def costs(model: eepolicy.HookedModel, rows: int, tokens: int) -> tuple[float, float]:
        return call_costs(
            model, rows, model.compiled_executor() if compiled else None, tokens, STEPS
        )

    rate = machine.bytes_per_second
    embedding = sizes.head_bytes / VOCABULARY
    return [
        Curve(
            "context, tokens",
            "a layer call",
            (128, 512, 1024, 2048, 4096),
            lambda n: costs(whole, 1, n)[0],
            sizes.column_bytes / rate,
        ),
        Curve(
            "rows of the batch",
            "a layer call",
            (1, 2, 4, 8, 16, 32),
            lambda n: costs(whole, n, CONTEXT)[0],
            None,
        ),
        Curve(
            "layers of the model",
            "a step through all of them",
            tuple(by_layers),
            lambda n: n * costs(by_layers[n], 1, CONTEXT)[0],
            sizes.layer_bytes / rate,
        ),
        Curve(
            "exit depth, layers",
            "a step and its readout",
            (3, 9, 15, 21, 27),
            lambda n: exit_seconds(whole, n, compiled),
            sizes.layer_bytes / rate,
        ),
        Curve(
            "ids of the vocabulary",
            "a head call",
            tuple(by_vocabulary),
            lambda n: costs(by_vocabulary[n], 1, CONTEXT)[1],
            embedding / rate,
        ),
    ], machine


def measure(found: Sequence[Curve]) -> list[NDArray[np.float64]]:
    """Seconds of each curve: (values, sweeps)."""
    seconds: dict[tuple[int, int], list[float]] = defaultdict(list)
    points = [(c, v) for c, curve in enumerate(found) for v in curve.values]
    for c, value in points:
        found[c].seconds(value)  # warm up
    for sweep in range(SWEEPS):
        for c, value in points if sweep % 2 == 0 else points[::-1]:
            seconds[c, value].append(found[c].seconds(value))
            print(f"{found[c].name} {value}: {1e3 * seconds[c, value][-1]:.3f} ms", flush=True)
    return [
        np.array([seconds[c, value] for value in curve.values]) for c, curve in enumerate(found)
    ]


def fitted(curve: Curve, seconds: NDArray[np.float64]) -> tuple[float, float, float]:
    """Seconds more for each one more, half the width of its 95 % interval, and seconds at none."""
    x = np.repeat(curve.values, seconds.shape[1])
    line = linregress(x, seconds.ravel())
    return float(line.slope), 1.96 * float(line.stderr), float(line.intercept)


def table(found: Sequence[Curve], measured: Sequence[NDArray[np.float64]]) -> list[str]:
    """Points and slopes, as Markdown."""
    lines = [
        "| grows with | cost of | points, ms | µs for one more ± 95 % | at none, ms "
        "| by reading, µs |",
        "|---|---|---|---|---|---|",
    ]
    for curve, seconds in zip(found, measured, strict=True):
        slope, wide, start = fitted(curve, seconds)
        points = ", ".join(
            f"{value}: {1e3 * s:.2f}"
            for value, s in zip(curve.values, np.median(seconds, 1), strict=True)
        )
        bound = "–" if curve.bound is None else f"{1e6 * curve.bound:.3g}"
        lines.append(
            f"| {curve.name} | {curve.cost} | {points} | {1e6 * slope:.3g} ± {1e6 * wide:.2g} | "
            f"{1e3 * start:.2f} | {bound} |"
        )
    return lines


def draw(found: Sequence[Curve], measured: Sequence[NDArray[np.float64]], path: Path) -> None:
    """Points, fitted lines, and the lines of reading alone."""
    with figures():
        figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained")
        for ax, curve, seconds in zip(axes.flat, found, measured, strict=False):
            x = np.array(curve.values)
            ends = np.array([0, x[-1]])
            slope, _, start = fitted(curve, seconds)
            ax.plot(ends, 1e3 * (start + slope * ends), color="#0072B2", label="fitted")
            if curve.bound is not None:
                by_reading = 1e3 * (start + curve.bound * ends)
                ax.plot(ends, by_reading, "--", color="#777777", label="slope of reading alone")
            for sweep in seconds.T:
                ax.plot(x, 1e3 * sweep, "o", color="#D55E00", ms=4)
            ax.set(xlabel=curve.name, ylabel=f"{curve.cost}, ms", ylim=(0, None))
            ax.locator_params(axis="x", nbins=5)
        axes.flat[-1].axis("off")
        ax = axes.flat[0]
        marks = [
            Line2D(
                [], [], marker="o", ls="", ms=4, color="#D55E00", label="measured, a sweep each"
            ),
            *ax.lines[:2],
        ]
        axes.flat[-1].legend(handles=marks, loc="center", fontsize=10)
        figure.savefig(path)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="with compiled layers")
    parser.add_argument("--write", type=Path, help="write the page here, its figure beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found, machine = curves(args.compile)
    measured = measure(found)
    page = [
        "# How costs grow",
        "",
        f"Random weights in the shape of SmolLM2-135M: {LAYERS} layers of width 576, vocabulary "
        f"{VOCABULARY}, {CONTEXT} tokens of context and one row unless said otherwise; "
        f"{'compiled layers, ' if args.compile else ''}{args.threads} thread(s), float32, torch "
        f"{torch.__version__}. Points are medians over {STEPS} steps, in {SWEEPS} sweeps to and "
        f"fro. The machine reads {machine.bytes_per_second / 1e9:.1f} GB/s, measured in the same "
        "run, and *by reading* is what one more would cost if its bytes were read at that rate.",
        "",
        f"    python -m benchmarks.growth --threads {args.threads}"
        + (" --compile" if args.compile else ""),
        "",
        *table(found, measured),
    ]
    if args.write:
        image = args.write.parent / "images" / "growth.svg"
        draw(found, measured, image)
        page += ["", "![Cost of a layer call, a step and a head call](images/growth.svg)"]
        args.write.write_text("\n".join(page) + "\n")
    print("\n".join(page))


if __name__ == "__main__":
    main()
