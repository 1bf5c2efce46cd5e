"""All options of early exit with several codebooks in one object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eepolicy.codebooks.missing import LeaveOut, MissingCodes, parse_missing
from eepolicy.codebooks.policies import (
    AllCodebooks,
    CodebookPolicy,
    FirstCodebooks,
    parse_codebooks,
)
from eepolicy.decode.config import EarlyExitConfig, plugin_of
from eepolicy.errors import EepolicyError
from eepolicy.fields import check_fields


@dataclass(frozen=True)
class CodebookConfig:
    """How a model with several codebooks exits early.

    Spec strings become objects.

    Attributes:
        backbone: options of the backbone, whose positions are frames.
        depth_decoder: options of the depth decoder, whose positions are the codes of a frame.
        codebooks: number of codebooks of each frame.
        missing: the codes that are not computed.

    Raises:
        EepolicyError: an option has the wrong type, or is not supported with several codebooks.

    Examples:
        >>> from eepolicy.codebooks import CodebookConfig
        >>> CodebookConfig(codebooks="first:8", missing="previous").missing
        PreviousFrame()
    """

    backbone: EarlyExitConfig = field(default_factory=EarlyExitConfig)
    depth_decoder: EarlyExitConfig = field(default_factory=EarlyExitConfig)
    codebooks: CodebookPolicy = field(default_factory=AllCodebooks)
    missing: MissingCodes = field(default_factory=LeaveOut)

    def __post_init__(self) -> None:
        parsed = {
            "codebooks": plugin_of(self.codebooks, CodebookPolicy, parse_codebooks, "codebooks"),
            "missing": plugin_of(self.missing, MissingCodes, parse_missing, "missing"),
        }
        for name, value in parsed.items():
            object.__setattr__(self, name, value)
        check_fields(self)
        for name in ("backbone", "depth_decoder"):
            _check(name, getattr(self, name))

    def replace(self, **changes: Any) -> CodebookConfig:
        """A copy with other options.

        Args:
            **changes: values of `CHANGES` by name; None leaves one as it is.

        Raises:
            EepolicyError: a value has the wrong type, or is not supported.
            TypeError: a name is unknown.

        Examples:
            >>> config = CodebookConfig().replace(policy="static@2", depth_policy="static@1")
            >>> config.backbone.policy.spec, config.depth_decoder.policy.spec
            ('static@2', 'static@1')
        """
        unknown = changes.keys() - CHANGES.keys()
        if unknown:
            raise TypeError(f"replace() got an unexpected keyword argument {min(unknown)!r}")
        changes = {name: value for name, value in changes.items() if value is not None}
        parts: dict[str, dict[str, Any]] = {"backbone": {}, "depth_decoder": {}}
        for name, value in changes.items():
            for part, field_name in CHANGES[name]:
                parts[part][field_name] = value
        codebooks = changes.get("codebooks", self.codebooks)
        if isinstance(codebooks, int) and not isinstance(codebooks, bool):
            codebooks = FirstCodebooks(codebooks)
        return CodebookConfig(
            self.backbone.replace(**parts["backbone"]),
            self.depth_decoder.replace(**parts["depth_decoder"]),
            codebooks,
            changes.get("missing", self.missing),
        )


#: arguments of `generate`, and the fields of `CodebookConfig` that they set, as part and name
CHANGES: dict[str, tuple[tuple[str, str], ...]] = {
    "policy": (("backbone", "policy"),),
    "depth_policy": (("depth_decoder", "policy"),),
    "fill": (("backbone", "fill"),),
    "depth_fill": (("depth_decoder", "fill"),),
    "max_pending": (("backbone", "max_pending"),),
    "compile": (("backbone", "compile"), ("depth_decoder", "compile")),
    "record": (("backbone", "record"),),
    "codebooks": (),
    "missing": (),
}


#: options of one stream that are refused, and why
REFUSED = {
    "rebatch": "all rows of a batch go through the depth decoder together",
    "restrict_vocab": "a codebook has no text ids to leave out",
    "seed": "it is an argument of generate",
}


def _check(name: str, config: EarlyExitConfig) -> None:
    """Refuse options that are for one stream of tokens only."""
    if config.accept.verifies or config.policy.needs_verification:
        raise EepolicyError(
            f"{config.accept!r} verifies drafts of single tokens, and a frame has several codes: "
            f"use accept='all' for the {name}"
        )
    if config.policy.needs_costs:
        raise EepolicyError(
            f"{config.policy!r} measures the costs of layers, which is not supported with several "
            f"codebooks ({name})"
        )
    if config.record and name == "depth_decoder":
        raise EepolicyError(
            "a record has the layers of the backbone; the depth decoder keeps none, because its "
            "cache begins anew with each frame"
        )
    default = EarlyExitConfig()
    for option, reason in REFUSED.items():
        if getattr(config, option) != getattr(default, option):
            raise EepolicyError(
                f"{option} is not supported with several codebooks ({name}): {reason}"
            )
