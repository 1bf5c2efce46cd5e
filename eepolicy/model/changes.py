"""What has changed on a model: replaced modules, hooks, adapters, moved weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import fields, replace
from itertools import chain
from operator import is_, itemgetter
from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from transformers import PreTrainedModel

from eepolicy.errors import EepolicyError
from eepolicy.heads.base import ExitHead
from eepolicy.heads.lens import LogitLens
from eepolicy.heads.weights import COMPILED_MODULE, PLAIN_TENSORS
from eepolicy.model.families import DecoderParts
from eepolicy.model.families.layers import AdaptedLayer

#: containers that a module may change in place
CONTAINERS = (dict, list, set)
#: attributes of every module
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


class PartPlaces:
    """The places of a model's parts in it, to notice when another module takes a place.

    An adapter on the output embedding, for example, replaces the module `lm_head`.

    Args:
        model: the model.
        parts: its parts; those that are no modules have no place.
    """

    def __init__(self, model: nn.Module, parts: DecoderParts) -> None:
        name_of = {id(module): name for name, module in model.named_modules()}
        self.model = model
        #: name in the model of each field of the parts
        self.names: dict[str, str] = {}
        for field in fields(parts):
            part = getattr(parts, field.name)
            if isinstance(part, nn.Module) and id(part) in name_of:
                self.names[field.name] = name_of[id(part)]
        #: name in the model of each layer, where the layers are in no module, such as adapted ones
        self.layer_names: list[str | None] = []
        if not isinstance(parts.layers, nn.Module):
            self.layer_names = [name_of.get(id(_stock_layer(layer))) for layer in parts.layers]
        parents: dict[int, nn.Module] = {}
        for name in filter(None, (*self.names.values(), *self.layer_names)):
            parent = model
            for step in name.split("."):
                parents[id(parent)] = parent
                parent = getattr(parent, step)
        if isinstance(parts.layers, nn.ModuleList):
            parents[id(parts.layers)] = parts.layers
        self._dicts = [parent._modules for parent in parents.values()]
        self._modules = self._now()

    def are_current(self) -> bool:
        """Whether the places have the modules that they had at first."""
        return self._now() == self._modules  # modules are compared by identity

    def resolve(self, parts: DecoderParts) -> DecoderParts:
        """The parts with the modules that are at their places now."""
        now: dict[str, Any] = {f: self.model.get_submodule(name) for f, name in self.names.items()}
        if self.layer_names:
            now["layers"] = tuple(
                layer if name is None else _with_stock_layer(layer, self.model.get_submodule(name))
                for layer, name in zip(parts.layers, self.layer_names, strict=True)
            )
        return replace(parts, **now)

    def _now(self) -> list[nn.Module | None]:
        return [*chain.from_iterable(map(dict.values, self._dicts))]


def _stock_layer(layer: nn.Module) -> nn.Module:
    """The layer of the stock model, without an adapter around it."""
    return layer.stock if isinstance(layer, AdaptedLayer) else layer


def _with_stock_layer(layer: nn.Module, stock: nn.Module) -> nn.Module:
    """A layer of the parts around another layer of the stock model."""
    if not isinstance(layer, AdaptedLayer):
        return stock
    own = copy.copy(layer)
    own._modules = dict(layer._modules)  # a shallow copy shares the dictionary
    own.stock = stock
    return own


def lens_of(parts: DecoderParts) -> LogitLens:
    """The logit lens of a model with these parts."""
    return LogitLens(parts.norm, parts.head, parts.logit_softcap, parts.layers)


def update_lenses(heads: Iterable[ExitHead], before: DecoderParts, now: DecoderParts) -> None:
    """Let the lenses of heads refer to the modules that have replaced those of the model.

    Args:
        heads: exit heads; lenses of other models stay.
        before: parts to which the lenses refer.
        now: parts to which they shall refer.
    """
    changed = [(before.norm, now.norm), (before.head, now.head), (before.layers, now.layers)]
    new_of: dict[int, Any] = {id(old): new for old, new in changed}
    for module in chain.from_iterable(head.modules() for head in heads):
        lens = module if isinstance(module, LogitLens) else getattr(module, "lens", None)
        if isinstance(lens, LogitLens):
            norm, head, layers = (
                new_of.get(id(part), part) for part in (lens.norm, lens.head, lens.layers)
            )
            softcap = lens.logit_softcap
            if softcap is before.logit_softcap:
                softcap = now.logit_softcap
            lens.refer_to(norm, head, softcap, layers)


def stock_model(model: Any, has_parts: bool = False) -> PreTrainedModel:
    """The stock model that is to be wrapped, without what is around it.

    Args:
        model: a stock model, a `peft.PeftModel` whose adapters are in the layers of one, or the
            result of `torch.compile`.
        has_parts: whether its parts are given, so that nobody looks for an output embedding.

    Raises:
        EepolicyError: something else, with what to give instead.
    """
    if type(model).__name__ == COMPILED_MODULE:  # the layer loop calls the layers, not the model
        model = model._orig_mod
    if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        for name, config in model.peft_config.items():
            if config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None):
                raise EepolicyError(
                    f"the adapter {name!r} of type {config.peft_type} works outside the layers of "
                    "the model, on its prompt; only adapters inside the layers, such as LoRA, can "
                    "be used: load one of these, or wrap the base model"
                )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise EepolicyError(
            f"expected a causal language model of transformers; got {type(model).__name__}"
        )
    if not has_parts and model.get_output_embeddings() is None:
        raise EepolicyError(
            f"{type(model).__name__} has no output embedding; load the model with "
            "AutoModelForCausalLM"
        )
    return model


class Snapshot:
    """What some modules consist of, to notice later whether anything has changed.

    It notices replaced modules and tensors, moved tensors, hooks, and attributes, such as the
    active adapters of a layer of PEFT.  It does not notice weights that are changed in place,
    which compiled code reads anyway.

    Args:
        roots: modules to watch, with all modules in them.
    """

    def __init__(self, roots: Iterable[object]) -> None:
        self.roots = [*roots]
        modules = {
            id(module): module
            for root in self.roots
            if isinstance(root, nn.Module)
            for module in root.modules()
        }
        own = [vars(module) for module in modules.values()]
        containers = [*chain.from_iterable(map(_containers, own))]
        keyed = [container for container in containers if isinstance(container, dict)]
        parts = [d[name] for d in own for name in ("_parameters", "_buffers", "_modules")]
        self._dicts = [part for part in (*parts, *keyed) if part]
        # reading some attributes takes a third of the time of reading all twenty of each module
        self._own, self._getters = own, [*map(_getter, own)]
        self._listed = containers  # of a dict, the keys
        hooks = [d[name] for d in own for name in ("_forward_hooks", "_forward_pre_hooks")]
        # of many dictionaries only the number of entries matters, or they are empty
        self._counted = [*own, *hooks, *(part for part in (*parts, *keyed) if not part)]
        self._values = self._values_now()
        self._plain = [t for t in self._values if type(t) in PLAIN_TENSORS and not t.is_meta]
        self._numbers = self._numbers_now()

    def is_current(self, roots: Iterable[object]) -> bool:
        """Whether nothing has changed.

        Args:
            roots: modules to watch; others than at first are a change.
        """
        try:
            for now, then in (([*roots], self.roots), (self._values_now(), self._values)):
                if len(now) != len(then) or not all(map(is_, now, then)):
                    return False
        except KeyError:  # an attribute was deleted
            return False
        return self._numbers_now() == self._numbers

    def _values_now(self) -> list[Any]:
        """Tensors, modules and other values of attributes, which are compared by identity."""
        values: list[Any] = [*chain.from_iterable(map(dict.values, self._dicts))]
        values += chain.from_iterable(map(itemgetter.__call__, self._getters, self._own))
        for container in self._listed:
            values += container
        return values

    def _numbers_now(self) -> list[object]:
        """Numbers of hooks and attributes, and addresses of tensors."""
        counts: list[object] = [_has_any_global_hook(), *map(len, self._counted)]
        return counts + [tensor.data_ptr() for tensor in self._plain]


def _getter(attributes: dict[str, Any]) -> itemgetter[Any]:
    """Reads those attributes of a module that say how it computes."""
    own = [name for name in attributes if name not in MODULE_ATTRIBUTES or name == "training"]
    return itemgetter("_modules", "_parameters", *own)


def _containers(attributes: dict[str, Any]) -> list[Any]:
    """Containers among the own attributes of a module, and in them."""
    waiting = [value for name, value in attributes.items() if name not in MODULE_ATTRIBUTES]
    containers: dict[int, Any] = {}
    while waiting:
        value = waiting.pop()
        if isinstance(value, CONTAINERS) and id(value) not in containers:
            containers[id(value)] = value
            waiting += value.values() if isinstance(value, dict) else value
    return [*containers.values()]
