"""Decoding at full depth against llama.cpp, with the same weights, in float32, 16 and 8 bits.

    pip install llama-cpp-python    # compiles llama.cpp for this machine, which takes minutes
    python -m benchmarks.llama_cpp work/SmolLM2-135M-Instruct [--threads 1] [--write FILE.md]
    python -m benchmarks.llama_cpp random-1b

The weights are written to a GGUF file, and llama.cpp converts it.  `random-1b` is a Llama with a
billion random weights, more than any cache holds.  All decoders take turns in one run.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import eepolicy
from benchmarks.gguf_file import weight_bytes, write_gguf
from benchmarks.precision import DTYPES
from eepolicy.analysis.stats import bootstrap
from eepolicy.analysis.tables import markdown_table
from eepolicy.analysis.timing.contenders import GENERATION_LOG, NO_END
from eepolicy.analysis.timing.roofline import Sizes, measure_bandwidth
from eepolicy.heads.fingerprint import fingerprint
from eepolicy.io import read_json, write_atomically, write_json, write_text
from eepolicy.logs import only_errors

#: a Llama of 1.04 billion weights
RANDOM, RANDOM_CONFIG = (
    "random-1b",
    LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    ),
)
#: type of the weights -> type of llama.cpp
THEIRS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}
#: type of llama.cpp -> ours with as many bits a weight
SAME_BITS = {"F32": "float32", "F16": "bfloat16", "BF16": "bfloat16", "Q8_0": "int8"}
PROMPT = 16  # tokens of a prompt
HEADINGS = (
    "decoder",
    "weights",
    "MB a token",
    "ms a token",
    "share of the bandwidth",
    "speed-up over llama.cpp",
)

#: prompt (tokens,), number of tokens -> ids of the reply, and seconds a token after the first
Decode = Callable[[Sequence[int], int], tuple[list[int], float]]


@dataclass(frozen=True)
class Decoder:
    """A decoder of one model.

    Attributes:
        library: `"eepolicy"` or `"llama.cpp"`.
        weights: type of the weights.
        bytes: bytes of the weights that a token reads.
        decode: decodes greedily.
    """

    library: str
    weights: str
    bytes: int
    decode: Decode


def our_decoder(model: eepolicy.HookedModel, weights: str) -> Decoder:
    """Our compiled decoder."""
    options: dict[str, Any] = dict(NO_END)

    def decode(prompt: Sequence[int], tokens: int) -> tuple[list[int], float]:
        with only_errors(GENERATION_LOG):
            out = model.generate(
                torch.tensor(prompt), "full", max_new_tokens=tokens, compile=True, **options
            )
        return out.tokens.tolist(), (out.seconds - out.ttft) / (tokens - 1)

    sizes = Sizes.of(model)
    return Decoder(
        "eepolicy", weights, round(model.depth * sizes.layer_bytes + sizes.head_bytes), decode
    )


@contextmanager
def their_decoder(file: Path, weights: str, threads: int) -> Iterator[Decoder]:
    """The decoder of llama.cpp.

    Raises:
        RuntimeError: llama.cpp cannot load the file.
    """
    import llama_cpp

    model = llama_cpp.llama_model_load_from_file(
        f"{file}".encode(), llama_cpp.llama_model_default_params()
    )
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {file}")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch = 512, threads, threads
    context = llama_cpp.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError(f"llama.cpp cannot decode with {file}")
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def step(ids: Sequence[int]) -> int:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama.cpp cannot decode")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())

    def decode(prompt: Sequence[int], tokens: int) -> tuple[list[int], float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        reply = [step(prompt)]
        began = time.perf_counter()
        while len(reply) < tokens:
            reply.append(step(reply[-1:]))
        return reply, (time.perf_counter() - began) / (tokens - 1)

    try:
        yield Decoder("llama.cpp", weights, weight_bytes(file), decode)
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def silence() -> Any:
    """Let llama.cpp print nothing; keep the result as long as it is used."""
    import llama_cpp

    ignore = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(ignore, ctypes.c_void_p(0))
    return ignore


def convert(source: Path, file_type: int, target: Path) -> None:
    """Let llama.cpp convert the weights of a GGUF file to another type.

    Raises:
        RuntimeError: it cannot.
    """
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = file_type
    if llama_cpp.llama_model_quantize(f"{source}".encode(), f"{target}".encode(), options):
        raise RuntimeError(f"llama.cpp cannot convert {source}")


@dataclass(frozen=True)
class Measured:
    """Measurements of some decoders.

    Attributes:
        seconds: seconds a token of each prompt, medians over the rounds, by decoder.
        agreement: share of tokens equal to those of the first decoder, by decoder.
        bytes_per_second: measured read-only bandwidth.
    """

    seconds: list[list[float]]
    agreement: list[float]
    bytes_per_second: float


class Table(NamedTuple):
    """Decoders that were timed in one run."""

    decoders: list[Decoder]
    measured: Measured


def measure(
    decoders: Sequence[Decoder],
    prompts: Sequence[Sequence[int]],
    tokens: int,
    rounds: int,
    bandwidth: Callable[[], float],
) -> Measured:
    """Time all decoders in turn.

    Args:
        decoders: decoders; the first gives the tokens that the others are compared with.
        prompts: token ids.
        tokens: tokens of a reply.
        rounds: trials on each prompt.
        bandwidth: measures the read-only bandwidth, in bytes a second; called for each prompt.
    """
    replies = [
        [d.decode(prompt, tokens)[0] for prompt in prompts] for d in tqdm(decoders, "replies")
    ]
    agreement = [float(np.mean(np.array(reply) == np.array(replies[0]))) for reply in replies]
    seconds: list[list[float]] = [[] for _ in decoders]
    reading = []
    for number, prompt in enumerate(tqdm(prompts, "prompts")):
        reading.append(bandwidth())
        trials: list[list[float]] = [[] for _ in decoders]
        for trial in range(rounds):
            for i in range(len(decoders)):
                which = (i + number + trial) % len(decoders)
                trials[which].append(decoders[which].decode(prompt, tokens)[1])
        for all_seconds, values in zip(seconds, trials, strict=True):
            all_seconds.append(statistics.median(values))
    return Measured(seconds, agreement, statistics.median(reading))


def rows(decoders: Sequence[Decoder], measured: Measured) -> list[list[str]]:
    """Cells of the table."""
    named = {d.weights: values for d, values in zip(decoders, measured.seconds, strict=True)}
    table = []
    for decoder, values in zip(decoders, measured.seconds, strict=True):
        median = statistics.median(values)
        share = decoder.bytes / median / measured.bytes_per_second
        peers = [
            theirs
            for theirs, ours in SAME_BITS.items()
            if ours == decoder.weights and theirs in named
        ]
        speedups = [f"{bootstrap.ratio(named[peer], values).text()} ({peer})" for peer in peers]
        table.append(
            [
                decoder.library,
                decoder.weights,
                f"{decoder.bytes / 1e6:.0f}",
                f"{1e3 * median:.2f}",
                f"{share:.2f}",
                "; ".join(speedups) or "–",
            ]
        )
    return table


def page(tables: dict[int, Table], args: argparse.Namespace, version: str) -> str:
    """The page: settings, command, and a table for each number of threads."""
    first = next(iter(tables.values()))
    agreement = dict(
        zip((d.weights for d in first.decoders), first.measured.agreement, strict=True)
    )
    lines = [
        f"# Full depth against llama.cpp: {Path(args.model).name}",
        "",
        f"One row on a CPU, {args.prompts} prompts of {PROMPT} random ids, exactly {args.tokens} "
        f"tokens a reply, greedy. torch {torch.__version__}, llama-cpp-python {version}. Medians "
        f"of {args.rounds} trials a prompt, in milliseconds for each token after the first. All "
        "decoders take turns in one run. Intervals are over prompts.",
        "",
        f"    python -m benchmarks.llama_cpp {args.model} --weights {' '.join(args.weights)} "
        f"--prompts {args.prompts} --tokens {args.tokens} --rounds {args.rounds} --threads "
        f"{' '.join(map(str, args.threads))}",
        "",
        "Our decoder is compiled. llama.cpp reads the same weights: they are written to a GGUF "
        "file in float32, and its own quantiser converts that. *MB a token*: weights that a token "
        "reads. *Share of the bandwidth*: the time to read them at the measured bandwidth, divided "
        "by the time of a token. The bandwidth is that of reading alone. It is measured before "
        "each prompt, with the threads of the decoders and on as much memory as the weights of the "
        "first decoder take, by sums and by products with a vector in torch; the faster counts. "
        "Prefetching reads faster, so a share can exceed 1.",
    ]
    if {"float32", "F32"} <= agreement.keys():
        equal = f"{100 * agreement['F32']:.1f} %"
        lines += ["", f"Of the tokens in float32, {equal} are equal in both libraries."]
    for threads, (decoders, measured) in tables.items():
        unit = "thread" if threads == 1 else "threads"
        lines += [
            "",
            f"## {threads} {unit}",
            "",
            f"The machine reads {measured.bytes_per_second / 1e9:.1f} GB/s.",
            "",
            markdown_table(HEADINGS, rows(decoders, measured)),
        ]
    return "\n".join(lines)


def prepare(name: str, folder: Path, weights: Sequence[str]) -> Path:
    """Write the files that are missing: the model in Hugging Face format, and GGUF files.

    Args:
        name: folder of a Llama, or `random-1b`.
        folder: folder for the GGUF files.
        weights: types of the weights, ours and theirs.

    Returns:
        The folder of the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, source, seen = Path(name), folder / "F32.gguf", folder / "fingerprint.json"
    if name == RANDOM:
        model = folder / RANDOM
        if not model.is_dir():
            torch.manual_seed(0)
            unfinished = folder / f"{RANDOM}.part"
            LlamaForCausalLM(RANDOM_CONFIG).save_pretrained(unfinished)
            unfinished.rename(model)
    stock = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    weights_of = fingerprint(stock)
    if not seen.is_file() or read_json(seen) != weights_of:  # files of another model
        for file in folder.glob("*.gguf"):
            file.unlink()
        write_json(seen, weights_of)
    if not source.is_file():
        write_atomically(source, lambda part: write_gguf(stock, part))
    for kind in weights:
        target = folder / f"{kind}.gguf"
        if kind in THEIRS and not target.is_file():
            write_atomically(target, partial(convert, source, THEIRS[kind]))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a Llama in Hugging Face format, or random-1b")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[*DTYPES, *THEIRS],
        choices=[*DTYPES, *THEIRS],
        metavar="TYPE",
    )
    parser.add_argument("--prompts", type=int, default=4, help="number of prompts")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of a reply")
    parser.add_argument("--rounds", type=int, default=3, help="trials on each prompt")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="CPU threads")
    parser.add_argument("--files", type=Path, default=Path("work/gguf"), help="folder for files")
    parser.add_argument("--write", type=Path, help="file for the page")
    args = parser.parse_args()
    if not DTYPES.keys() & {*args.weights} or args.tokens < 2:
        parser.error("give at least one of our types of weights, and two tokens or more")
    args.weights.sort(key=lambda kind: [*DTYPES, kind].index(kind))  # the first gives the tokens
    folder = args.files / Path(args.model).name
    model = prepare(args.model, folder, args.weights)
    draw = torch.Generator().manual_seed(0)
    ours = {w: eepolicy.load(model, DTYPES[w]) for w in args.weights if w in DTYPES}
    first = next(iter(ours.values()))
    prompts = torch.randint(first.vocab_size, (args.prompts, PROMPT), generator=draw).tolist()
    log = silence()
    tables: dict[int, Table] = {}
    for threads in args.threads:
        torch.set_num_threads(threads)
        with ExitStack() as stack:
            decoders = [
                our_decoder(ours[w], w)
                if w in ours
                else stack.enter_context(their_decoder(folder / f"{w}.gguf", w, threads))
                for w in args.weights
            ]
            measured = measure(
                decoders, prompts, args.tokens, args.rounds, partial(measure_bandwidth, first)
            )
        tables[threads] = Table(decoders, measured)
    del log
    text = page(tables, args, version("llama-cpp-python"))
    print(text)
    if args.write:
        write_text(args.write, text + "\n")


if __name__ == "__main__":
    main()
