"""All options of early-exit decoding in one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from pydantic import Field

from eepolicy.arguments import checked
from eepolicy.decode.acceptance import AcceptAll, Acceptance, parse_acceptance
from eepolicy.decode.fills import CatchUp, KVFill, parse_fill
from eepolicy.decode.rebatch import check_rebatch
from eepolicy.decode.verify import MAX_UNVERIFIED
from eepolicy.errors import EepolicyError
from eepolicy.fields import Positive, Seed, build, check_fields
from eepolicy.guard import Guard, wrong_result
from eepolicy.modality import TokenLayout
from eepolicy.policies import ExitPolicy, FullDepth, parse_policy
from eepolicy.policies.base import check_depth
from eepolicy.returned import check_depths
from eepolicy.speech.vocoders import Vocoder


@dataclass(frozen=True)
class EarlyExitConfig:
    """How `generate` exits early.

    Spec strings become objects: `EarlyExitConfig(policy="static@16").policy` is `Static(16)`.

    Attributes:
        policy: exit policy.
        fill: what becomes of the keys and values above an exit.
        accept: which tokens of early exits stay once the full model has verified them.
        max_pending: with a fill that defers, the largest number of pending positions of a row.  A
            step that would exceed it continues to full depth after its exit.  With an acceptance
            rule that verifies, the number of drafts that may stay unverified; default: 8.
        rebatch: with a fill that defers, whether exited rows of a batch run on with the others:
            `"never"`, `"always"`, `"auto"` (by measured costs), or the smallest share of continuing
            rows.  Tokens stay the same; costs then depend on the neighbours of a row.
        restrict_vocab: where the alternation of chunks expects speech, compute the logits of
            speech ids and end tokens only.
        compile: run the layers with code made by `torch.compile`.
        record: record hidden states and statistics of the layers that run; True, or the options of
            `eepolicy.probe`.
        seed: seed of sampling; None for the global generator of PyTorch.  A tuple has a seed for
            each row of the batch: each row is then sampled as if it were alone.

    Raises:
        EepolicyError: a value has the wrong type or is out of range.

    Examples:
        >>> config = eepolicy.EarlyExitConfig(policy="spark:triple@14", max_pending=4)
        >>> config.to_dict()["policy"]
        'spark:triple@14'
        >>> eepolicy.EarlyExitConfig.from_dict(config.to_dict()) == config
        True
    """

    policy: ExitPolicy = field(default_factory=FullDepth)
    fill: KVFill = field(default_factory=CatchUp)
    accept: Acceptance = field(default_factory=AcceptAll)
    max_pending: Positive | None = None
    rebatch: str | float = "never"
    restrict_vocab: bool = False
    compile: bool = False
    record: bool | Mapping[str, Any] = False
    seed: Seed | Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None

    def __init__(
        self,
        policy: ExitPolicy | str | None = None,
        fill: KVFill | str | None = None,
        accept: Acceptance | str | None = None,
        *,
        max_pending: int | None = None,
        rebatch: str | float = "never",
        restrict_vocab: bool = False,
        compile: bool = False,
        record: bool | Mapping[str, Any] = False,
        seed: int | Sequence[int] | None = None,
    ) -> None:
        # the items of bytes are integers, as seeds are
        has_seeds = isinstance(seed, Sequence) and not isinstance(seed, (str, bytes, bytearray))
        values = {
            "policy": plugin_of(
                FullDepth() if policy is None else policy, ExitPolicy, parse_policy, "policy"
            ),
            "fill": plugin_of(CatchUp() if fill is None else fill, KVFill, parse_fill, "fill"),
            "accept": plugin_of(
                AcceptAll() if accept is None else accept, Acceptance, parse_acceptance, "accept"
            ),
            "max_pending": max_pending,
            "rebatch": rebatch,
            "restrict_vocab": restrict_vocab,
            "compile": compile,
            "record": record,
            "seed": tuple(seed) if has_seeds else seed,  # type: ignore[arg-type]
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        """Check values that do not depend on a model."""
        check_fields(self)
        check_rebatch(self.rebatch)
        if not self.fill.defers and (self.max_pending is not None or self.rebatch != "never"):
            raise EepolicyError(
                f"max_pending and rebatch treat pending positions, and {self.fill!r} leaves none; "
                "use fill='catch_up'"
            )
        if self.accept.verifies and (not self.fill.defers or self.policy.needs_full_pass):
            raise EepolicyError(
                f"{self.accept!r} verifies what a catch-up computed; with the fill {self.fill!r} "
                f"and {self.policy!r} there is nothing to verify"
            )
        if self.max_pending is not None and self.policy.max_drafts is not None:
            raise EepolicyError(
                f"{self.policy!r} limits its drafts itself; use it without max_pending"
            )
        if self.policy.needs_verification and not self.accept.verifies:
            raise EepolicyError(
                f"{self.policy!r} makes drafts for the full model to verify, and {self.accept!r} "
                "verifies nothing: use it with accept='exact' or another rule that verifies"
            )
        if self.accept.verifies and self.rebatch != "never":
            raise EepolicyError(
                f"{self.accept!r} verifies pending positions, and rows that run on leave none: "
                f"use it without rebatch={self.rebatch!r}"
            )
        if not self.fill.defers and self.policy.needs_full_pass:
            raise EepolicyError(
                f"{self.policy!r} runs all layers and leaves nothing for the fill {self.fill!r}"
            )

    @property
    def max_unverified(self) -> int:
        """Drafts of a row that may stay unverified."""
        return self.max_pending or self.policy.max_drafts or MAX_UNVERIFIED

    @property
    def needs_costs(self) -> bool:
        """Whether decoding depends on measured costs of layer calls."""
        return self.rebatch == "auto" or self.policy.needs_costs

    def validate(
        self, depth: int, layout: TokenLayout, vocoder: Vocoder | None = None
    ) -> EarlyExitConfig:
        """Check the options against a model.

        Args:
            depth: number of layers of the model.
            layout: layout of the model.
            vocoder: vocoder of the model, for acceptance rules that compare sounds.

        Returns:
            The config with an acceptance rule that is bound to the model.

        Raises:
            EepolicyError: the policy has depths that the model lacks, or acts on speech and the
                model has none, or the model does not support another option.
        """
        self._check_policy(depth)
        if self.policy.on == "speech" and not layout.has_speech:
            raise EepolicyError(
                f"{self.policy!r} acts on speech, and this model has none: put 'text=' in front, "
                "or give the model a layout"
            )
        needs_full = self.accept.verifies or self.policy.needs_full_pass
        if self.restrict_vocab and (needs_full or not layout.has_speech):
            raise EepolicyError(
                "restrict_vocab reads speech out over its own ids: it needs a model with speech, "
                f"and excludes options that read the full model ({self.policy!r}, {self.accept!r})"
            )
        with Guard(self.accept, "bind"):
            accept = self.accept.bind(layout, vocoder)
        if not isinstance(accept, Acceptance):
            raise wrong_result(self.accept, "bind", accept, "an acceptance rule")
        return self.replace(accept=accept)

    def _check_policy(self, depth: int) -> None:
        """Check what a policy says of a model of `depth` layers."""
        policy = self.policy
        with Guard(policy, "check"):
            policy.check(depth)
        with Guard(policy, "min_depth"):
            least = policy.min_depth(depth)
        if type(least) is not int:
            raise wrong_result(policy, "min_depth", least, "an integer")
        if least:  # 0 is the drafter
            check_depth(least, depth, f"min_depth of {policy!r}")
        with Guard(policy, "possible_depths"):
            possible = policy.possible_depths(depth)
        if possible is not None:
            check_depths(policy, "possible_depths", possible, 0, depth)
        with Guard(policy, "predicted_depths"):
            predicted = policy.predicted_depths(depth)
        check_depths(policy, "predicted_depths", predicted, 1, depth)

    def replace(self, **changes: Any) -> EarlyExitConfig:
        """A copy with other values."""
        return EarlyExitConfig(**{f.name: getattr(self, f.name) for f in fields(self)} | changes)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON types; policy, fill and acceptance rule as spec strings.

        Raises:
            EepolicyError: one of them has no spec string.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {name: values[name].spec for name in ("policy", "fill", "accept")}

    @classmethod
    @checked()
    def from_dict(cls, values: Mapping[str, Any]) -> EarlyExitConfig:
        """Read what `to_dict` returns."""
        return build(cls, values)


def plugin_of(value: Any, base: type, parse: Any, name: str) -> Any:
    """An object of a plug-in class from an object or a spec string.

    Args:
        value: the object or the spec string.
        base: base class of the plug-ins.
        parse: builds an object from a spec string.
        name: name of the option, for the message.

    Raises:
        EepolicyError: the value is neither.
    """
    plugin = parse(value) if isinstance(value, str) else value
    if not isinstance(plugin, base):
        raise EepolicyError(
            f"{name} is a spec string or an instance of {base.__name__}; got {value!r}"
        )
    return plugin
