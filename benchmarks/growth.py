"""Growth of the cost of a step with context, rows, layers, exit depth and vocabulary.

    python -m benchmarks.growth [--threads 1] [--compile] [--write docs/benchmarks/growth.md]

The model has random weights in the shape of SmolLM2-135M.  Each point is a median over steps, in
sweeps of alternating direction.  A line is fitted to each curve and compared with the growth that
memory reads alone would give.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from eepolicy.analysis.tables import MISSING, markdown_table
from eepolicy.analysis.timing.call_costs import call_costs
from eepolicy.analysis.timing.figure import MEASURED
from eepolicy.analysis.timing.roofline import Machine, Roofline
from eepolicy.decode.batch import Batch
from eepolicy.io import make_folder, write_figure, write_text

SWEEPS = 2  # in alternating direction
STEPS = 15  # a point is the median of so many steps


@dataclass(frozen=True)
class Sizes:
    """The model, and the values of each variable.

    Attributes:
        layers: number of layers.
        vocabulary: size of the vocabulary.
        small_vocabulary: size of the vocabulary where the number of layers changes.
        context: tokens before the step.
        shape: further fields of the model's config.
        contexts: tokens before the step, for its curve.
        rows: rows in the batch, for its curve.
        by_layers: numbers of layers, for its curve.
        depths: exit depths, for its curve.
        vocabularies: sizes of the vocabulary, for its curve.
    """

    layers: int = 30
    vocabulary: int = 49152
    small_vocabulary: int = 4096
    context: int = 128
    shape: Mapping[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        }
    )
    contexts: tuple[int, ...] = (128, 512, 1024, 2048, 4096)
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    by_layers: tuple[int, ...] = (2, 8, 16, 24)
    depths: tuple[int, ...] = (3, 9, 15, 21, 27)
    vocabularies: tuple[int, ...] = (4096, 16384, 32768, 65536, 131072)


@dataclass
class Curve:
    """One variable and the cost that depends on it.

    Attributes:
        name: the variable with its unit.
        cost: name of the cost.
        values: values of the variable.
        seconds: measures the cost at a value.
        bound: additional seconds for each additional unit by memory reads alone; None if unknown.
    """

    name: str
    cost: str
    values: Sequence[int]
    seconds: Callable[[int], float]
    bound: float | None


def model_of(sizes: Sizes, layers: int, vocabulary: int) -> eepolicy.HookedModel:
    """A model with random weights.

    Args:
        sizes: its shape.
        layers: number of layers.
        vocabulary: size of the vocabulary.
    """
    torch.manual_seed(0)
    shape = LlamaConfig(
        **sizes.shape,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    return eepolicy.wrap(LlamaForCausalLM(shape).eval())


@torch.no_grad()
def exit_seconds(model: eepolicy.HookedModel, depth: int, context: int, compiled: bool) -> float:
    """Seconds of a step that exits at a depth after some context, its readout included."""
    ids = torch.randint(model.vocab_size, (1, context + STEPS))
    batch = Batch(
        model, [0], ids.shape[1], executor=model.compiled_executor() if compiled else None
    )
    batch.prefill(ids[:, :context])
    times = []
    for column in range(context, ids.shape[1]):
        began = time.perf_counter()
        block = batch.begin_step(ids[:, column : column + 1], [0])
        batch.run(block, depth)
        batch.exit(block)
        batch.read(block.hidden[:, -1], depth).argmax(-1)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def curves(sizes: Sizes, compiled: bool) -> tuple[list[Curve], Machine]:
    """The curves to measure, and the limits of the device."""
    whole = model_of(sizes, sizes.layers, sizes.vocabulary)
    roofline = Roofline.measure(whole)
    read, rate = roofline.sizes, roofline.machine.bytes_per_second
    by_layers = {n: model_of(sizes, n, sizes.small_vocabulary) for n in sizes.by_layers}
    by_vocabulary = {n: model_of(sizes, 1, n) for n in sizes.vocabularies}

    def costs(model: eepolicy.HookedModel, rows: int, tokens: int) -> tuple[float, float]:
        return call_costs(
            model, rows, model.compiled_executor() if compiled else None, tokens, STEPS
        )

    return [
        Curve(
            "context, tokens",
            "a layer call",
            sizes.contexts,
            lambda n: costs(whole, 1, n)[0],
            read.column_bytes / rate,
        ),
        Curve(
            "rows in the batch",
            "a layer call",
            sizes.rows,
            lambda n: costs(whole, n, sizes.context)[0],
            None,
        ),
        Curve(
            "layers of the model",
            "a step at full depth",
            tuple(by_layers),
            lambda n: n * costs(by_layers[n], 1, sizes.context)[0],
            read.layer_bytes / rate,
        ),
        Curve(
            "exit depth, layers",
            "a step and its readout",
            sizes.depths,
            lambda n: exit_seconds(whole, n, sizes.context, compiled),
            read.layer_bytes / rate,
        ),
        Curve(
            "size of the vocabulary, ids",
            "a head call",
            tuple(by_vocabulary),
            lambda n: costs(by_vocabulary[n], 1, sizes.context)[1],
            read.head_bytes / sizes.vocabulary / rate,
        ),
    ], roofline.machine


def measure(curves: Sequence[Curve]) -> list[NDArray[np.float64]]:
    """Seconds of each curve: (values, sweeps)."""
    seconds: dict[tuple[int, int], list[float]] = defaultdict(list)
    points = [(c, v) for c, curve in enumerate(curves) for v in curve.values]
    for c, value in points:
        curves[c].seconds(value)  # warm up
    for sweep in range(SWEEPS):
        for c, value in points if sweep % 2 == 0 else points[::-1]:
            seconds[c, value].append(curves[c].seconds(value))
            print(f"{curves[c].name} {value}: {1e3 * seconds[c, value][-1]:.3f} ms", flush=True)
    return [
        np.array([seconds[c, value] for value in curve.values]) for c, curve in enumerate(curves)
    ]


def fitted(curve: Curve, seconds: NDArray[np.float64]) -> tuple[float, float, float]:
    """Slope of the fitted line, half the width of its 95 % interval, and intercept.

    Args:
        curve: the curve.
        seconds: (values, sweeps).
    """
    x = np.repeat(curve.values, seconds.shape[1])
    line = linregress(x, seconds.ravel())
    return float(line.slope), 1.96 * float(line.stderr), float(line.intercept)


def table(curves: Sequence[Curve], measured: Sequence[NDArray[np.float64]]) -> str:
    """Points and slopes, as Markdown."""
    rows = []
    for curve, seconds in zip(curves, measured, strict=True):
        slope, half_width, intercept = fitted(curve, seconds)
        medians = zip(curve.values, np.median(seconds, 1), strict=True)
        rows.append(
            [
                curve.name,
                curve.cost,
                ", ".join(f"{value}: {1e3 * s:.2f}" for value, s in medians),
                f"{1e6 * slope:.3g} ± {1e6 * half_width:.2g}",
                f"{1e3 * intercept:.2f}",
                MISSING if curve.bound is None else f"{1e6 * curve.bound:.3g}",
            ]
        )
    headings = ["variable", "cost", "points, ms", "slope, µs ± 95 %", "intercept, ms"]
    return markdown_table([*headings, "slope by memory reads, µs"], rows)


def draw(curves: Sequence[Curve], measured: Sequence[NDArray[np.float64]], path: Path) -> None:
    """Draw points, fitted lines, and the growth by memory reads alone."""
    with figures():
        figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained")
        for ax, curve, seconds in zip(axes.flat, curves, measured, strict=False):
            x = np.array(curve.values)
            ends = np.array([0, x[-1]])
            slope, _, start = fitted(curve, seconds)
            ax.plot(
                ends, 1e3 * (start + slope * ends), color="#000000", lw=1.2, label="fitted line"
            )
            if curve.bound is not None:
                by_reads = 1e3 * (start + curve.bound * ends)
                ax.plot(ends, by_reads, "--", color="#777777", label="slope by memory reads")
            for sweep in seconds.T:
                ax.plot(x, 1e3 * sweep, "o", color=MEASURED, ms=4)
            ax.set(xlabel=curve.name, ylabel=f"{curve.cost}, ms", ylim=(0, None))
            ax.locator_params(axis="x", nbins=5)
        axes.flat[-1].axis("off")
        ax = axes.flat[0]
        marks = [
            Line2D([], [], marker="o", ls="", ms=4, color=MEASURED, label="measured, one sweep"),
            *ax.lines[:2],
        ]
        axes.flat[-1].legend(handles=marks, loc="center", fontsize=10)
        write_figure(path, figure)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    parser.add_argument("--write", type=Path, help="write the page to this file, and its figure")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = Sizes()
    variables, machine = curves(sizes, args.compile)
    measured = measure(variables)
    page = [
        "# Growth of costs",
        "",
        f"Random weights in the shape of SmolLM2-135M: {sizes.layers} layers of width "
        f"{sizes.shape['hidden_size']}, vocabulary {sizes.vocabulary}, {sizes.context} tokens of "
        "context and one row unless stated otherwise; "
        f"{'compiled layers, ' if args.compile else ''}{args.threads} thread(s), float32, torch "
        f"{torch.__version__}. Points are medians over {STEPS} steps, in {SWEEPS} sweeps of "
        f"alternating direction. The device reads {machine.bytes_per_second / 1e9:.1f} GB/s, "
        "measured in the same run. *Slope by memory reads* is the cost of one more unit if its "
        "bytes were read at that rate.",
        "",
        f"    python -m benchmarks.growth --threads {args.threads}"
        + (" --compile" if args.compile else ""),
        "",
        table(variables, measured),
    ]
    if args.write:
        image = args.write.parent / "images" / "growth.svg"
        make_folder(image.parent)
        draw(variables, measured, image)
        page += ["", "![Cost of a layer call, a step and a head call](images/growth.svg)"]
        write_text(args.write, "\n".join(page) + "\n")
    print("\n".join(page))


if __name__ == "__main__":
    main()
