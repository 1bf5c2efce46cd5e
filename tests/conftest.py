"""Small random models with randomised norms and biases, so that no mistake is hidden by ones."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file
from sampling import mark_unsampled
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import eepolicy
from eepolicy import HookedModel, TokenLayout
from eepolicy.cli import main
from eepolicy.cli.shared import out
from eepolicy.decode.output import Output
from eepolicy.registry import Registry
from eepolicy.speech import units
from eepolicy.speech.mel import griffin_lim
from eepolicy.testing.configs import CONFIGS as SMALL_CONFIGS
from eepolicy.testing.configs import small_config

# tiny models run fastest on one thread, and a busy machine then slows them least
torch.set_num_threads(1)

# timings on shared machines vary too much for hypothesis to judge by them
settings.register_profile("shared", deadline=None, derandomize=True)
settings.load_profile("shared")

LAYERS = 6
LAYOUT = TokenLayout(
    text=(0, 20), speech=(20, 60), text_chunk=3, speech_chunk=7, end_of_text=3, end=4
)
#: config of each family; the short name of Gemma 3 is that of its tests
CONFIGS = {
    name.removesuffix("_text"): partial(small_config, name, LAYERS) for name in SMALL_CONFIGS
}
FAMILIES = list(CONFIGS)
#: families of the `family` fixture in each run: the plainest, and those with other norms, masks,
#: attention and positions.  Tests of a family itself list `FAMILIES`, and the covering array of
#: `test_matrix.py` has every policy, fill and rule with every family.
CORE_FAMILIES = ("llama", "gemma2", "gemma3", "gpt2")


def tiny(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of a family: width 32, vocabulary 60."""
    torch.manual_seed(seed)
    # sdpa has no soft-capped attention
    attention = "eager" if family == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            elif "norm" in name or "ln_" in name:
                # Gemma adds one to the weight of its norms
                parameter.normal_(0.0 if "gemma" in family else 1.0, 0.3)
    return model.to(dtype).eval()


#: policies and options of `generate`, which another path through the decoder must not change
DECODINGS = [
    ("full", {}),
    ("spark:triple@2", {}),
    ("spark:triple@2", {"fill": "propagate"}),
    ("spark:even@3", {"fill": "mask"}),
    ("both=static@2", {"max_pending": 3}),
    ("both=static@2", {"accept": "exact", "max_pending": 3}),
    ("both=entropy<2@2", {}),
    ("both=random:4.0@2", {"rebatch": 0.4}),
    ("spark:triple@2", {"restrict_vocab": True}),
    ("both=entropy<2@2", {"temperature": 0.8, "seed": 3}),
]


def assert_same_replies(ours: Sequence[Output], plain: Sequence[Output]) -> None:
    """The same tokens at the same depths for the same costs."""
    for left, right in zip(ours, plain, strict=True):
        assert left.tokens.tolist() == right.tokens.tolist()
        for column in ("depth", "layer_calls", "layer_positions", "readouts", "filled"):
            assert getattr(left.trace, column).tolist() == getattr(right.trace, column).tolist()


def write_shards(folder: Path, weights: dict[str, Tensor]) -> None:
    """Weights in two files with an index, as large checkpoints are published."""
    keys = list(weights)
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    parts = {names[0]: keys[: len(keys) // 2], names[1]: keys[len(keys) // 2 :]}
    for name, some in parts.items():
        save_file({k: weights[k] for k in some}, folder / name)
    index = {"weight_map": {k: name for name, some in parts.items() for k in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def own_plugins(table: Registry) -> dict[str, type]:
    """Classes of a registry by name, without those that other tests and examples register here."""
    return {
        name: plugin
        for name, plugin in table._objects.items()
        if plugin.__module__.startswith("eepolicy.")
        and getattr(sys.modules[plugin.__module__], plugin.__name__, None) is plugin
    }


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, looked up without the package."""
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList))


def plain_lens(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The model's own norm and head, written without the package."""
    norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
    logits = model.lm_head(norm(hidden))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Imports make a million objects that stay: nothing is gained by a search among them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(autouse=True, scope="module")
def small_garbage_collections() -> None:
    """What is alive before a file of tests stays, so that collections need not search it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Families are combined with other parameters as `sampling.py` says."""
    mark_unsampled(items)


@pytest.fixture(
    params=[
        name if name in CORE_FAMILIES else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in FAMILIES
    ]
)
def family(request) -> str:
    """Each family in turn; see `CORE_FAMILIES`."""
    return request.param


@pytest.fixture
def stock(family) -> PreTrainedModel:
    """A random stock model of the family."""
    return tiny(family)


@pytest.fixture
def hooked(stock) -> HookedModel:
    """The same model, hooked."""
    return HookedModel(stock, layout=LAYOUT)


@pytest.fixture(scope="session")
def pocket() -> HookedModel:
    """The model that ships with the package."""
    return eepolicy.load("pocket")


@pytest.fixture
def quick_sound(monkeypatch) -> None:
    """Sound of the right length in little time, where its quality does not matter."""
    monkeypatch.setattr(units, "griffin_lim", partial(griffin_lim, iterations=2))


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line in this process: gives what it wrote to stdout and stderr."""
    threads = torch.get_num_threads()

    def command(*arguments: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["eepolicy", *arguments])
        monkeypatch.setattr(out, "stderr", False)  # as in a new process
        with pytest.raises(SystemExit) as end:
            main()
        written = capsys.readouterr()
        assert end.value.code == code, written.err
        return written.out, written.err

    yield command
    torch.set_num_threads(threads)
