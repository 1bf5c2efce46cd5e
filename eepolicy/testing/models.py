"""Small random models for the conformance checks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from eepolicy.heads import ExitHead
from eepolicy.hooked import HookedModel
from eepolicy.modality import TokenLayout
from eepolicy.testing.configs import small_config

#: ids 0 to 19 are text and 20 to 59 speech; replies have chunks of 3 and 7 tokens
LAYOUT = TokenLayout(
    text=(0, 20), speech=(20, 60), text_chunk=3, speech_chunk=7, end_of_text=3, end=4
)
#: prompts of several lengths, so that a batch of them is padded
PROMPTS = tuple(torch.tensor(ids) for ids in ([1, 7, 30, 12, 2], [1, 9], [44, 3, 21, 8, 40, 50, 6]))


def random_model(
    config: PreTrainedConfig, seed: int = 0, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """A stock model with random weights, norms and biases.

    transformers initialises norms with ones and biases with zeros.  A norm that is applied twice,
    or a bias that is left out, then hardly changes the logits, so both are randomised here.

    Args:
        config: config of the model.
        seed: seed of the weights.
        dtype: precision; float64 by default, so that no comparison depends on rounding.
    """
    torch.manual_seed(seed)
    # sdpa has no soft-capped attention, and some families have no sdpa
    capped = getattr(config, "attn_logit_softcapping", None)
    cls = model_class(config)
    attention = "sdpa" if cls._supports_sdpa and not capped else "eager"
    # kernels for all experts at once have no float64
    model = cls._from_config(config, attn_implementation=attention, experts_implementation="eager")
    randomise(model)
    return model.to(dtype).eval()


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of causal language models of a config."""
    cls: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return cls


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    """Randomise norms and biases in place."""
    # Gemma adds one to the weight of its norms
    mean = 0.0 if "gemma" in model.config.model_type else 1.0
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0.0, 0.3)
        elif "norm" in name or "ln_" in name:
            parameter.normal_(mean, 0.3)


def random_llama(layers: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> HookedModel:
    """A hooked random Llama that replies in chunks of text and speech."""
    return HookedModel(random_model(small_config("llama", layers), seed, dtype), layout=LAYOUT)


class LayerCounter:
    """Counts layer calls with forward hooks on the layers; a context manager.

    The layers of the model are its first `ModuleList`, so nothing here depends on an adapter.

    Args:
        model: a stock model.
        heads: exit heads, whose own layers are counted too.

    Attributes:
        calls: layer, rows and columns of each call of a layer of the model.
        branch_calls: the same of the layers of the heads.
    """

    def __init__(self, model: PreTrainedModel, heads: ExitHead | None = None) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self.branch_calls: list[tuple[int, int, int]] = []
        self._layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
        self._branches: list[nn.Module] = []
        if heads is not None:
            self._branches = [x for d in heads.branch_depths for x in heads.layers_at(d)]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> LayerCounter:
        for layers, calls in ((self._layers, self.calls), (self._branches, self.branch_calls)):
            for index, layer in enumerate(layers):
                hook = layer.register_forward_pre_hook(self._hook(index, calls))
                self._handles.append(hook)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(
        self, index: int, calls: list[tuple[int, int, int]]
    ) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def count(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows, columns = args[0].shape[:2]
            calls.append((index, rows, columns))

        return count

    def depths(self, skip: int = 0) -> list[int]:
        """The number of layers of each position, for one row without verification.

        A call of layer 0 starts a position, and its last call is its deepest layer.

        Args:
            skip: number of first calls to leave out, those of a separate prefill.
        """
        depths: list[int] = []
        for index, _, _ in self.calls[skip:]:
            if index == 0:
                depths.append(0)
            depths[-1] = index + 1
        return depths
