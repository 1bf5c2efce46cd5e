"""What a layer call and a readout cost in the backbone and in the depth decoder."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from eepolicy.codebooks.adapter import CodebookAdapter
from eepolicy.codebooks.executor import CodebookExecutor
from eepolicy.codebooks.trace import CodebookCosts
from eepolicy.decode.measure import measure_layers
from eepolicy.model.backbone import Backbone


def flops(backbone: Backbone, depth_decoder: Backbone) -> CodebookCosts:
    """Floating-point operations of one position in the products with weights.

    Two for each weight.  Products of attention with earlier positions are left out, since they
    depend on the length of the reply.

    Args:
        backbone: the backbone.
        depth_decoder: the depth decoder.
    """
    return CodebookCosts(
        _layer(backbone),
        _layer(depth_decoder),
        2.0 * backbone.width * backbone.vocab_size,
        2.0 * depth_decoder.width * depth_decoder.vocab_size,
        "FLOPs",
    )


def measured_costs(
    adapter: CodebookAdapter, backbone: Backbone, depth_decoder: Backbone
) -> CodebookCosts:
    """Seconds of a call on one position, on this machine.

    Args:
        adapter: parts of the stock model.
        backbone: the backbone.
        depth_decoder: the depth decoder.
    """
    first = measure_layers(backbone)
    other = measure_layers(depth_decoder, CodebookExecutor(depth_decoder, adapter.heads()))
    return CodebookCosts(
        first.of(1), other.of(1), first.readout_seconds, other.readout_seconds, "seconds"
    )


def _layer(backbone: Backbone) -> float:
    """Mean operations of a layer for one position."""
    return 2.0 * _weights(backbone.parts.layers, backbone.text_config) / backbone.depth


def _weights(layers: Iterable[nn.Module], config: object) -> float:
    """Weights that a position is multiplied with; of the experts, those that it is sent to."""
    share = 1.0
    if getattr(config, "num_experts", None):
        share = config.num_experts_per_tok / config.num_experts  # type: ignore[attr-defined]
    return sum(
        parameter.numel() * (share if ".experts." in name else 1.0)
        for layer in layers
        for name, parameter in layer.named_parameters()
        if parameter.ndim > 1
    )
