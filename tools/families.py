"""Write the table of model families into docs/families.md: `python -m tools.families`.

Every causal language model of transformers is in the table.  Those with an adapter are checked on a
small random model by `eepolicy.testing.check_family`; a family that fails stops the script.  This
takes two minutes.  `--check` runs no model and fails if the page leaves out a family.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import transformers
from torch import nn

from benchmarks.sections import filled, section
from eepolicy.hooked import HookedModel
from eepolicy.model.families import CHUNKED, SLIDING, AdaptedLayer, DecoderParts, parts_of
from eepolicy.model.families.refused import refused_types
from eepolicy.testing import check_family
from eepolicy.testing.families import check_generate, text_families
from eepolicy.testing.models import random_model
from eepolicy.testing.multimodal import MULTIMODAL, small_multimodal
from eepolicy.testing.sizes import sized_config

PAGE = Path(__file__).parents[1] / "docs" / "families.md"


def features(parts: DecoderParts) -> str:
    """What a family has beside rotary positions and full attention."""
    kinds, layers = set(parts.attention), parts.layers
    present = {
        "windows in all layers": kinds == {SLIDING},
        "windows in some layers": SLIDING in kinds and len(kinds) > 1,
        "chunks in some layers": CHUNKED in kinds,
        "learned or sinusoidal positions": parts.position_embedding is not None,
        "ALiBi": parts.key_bias is not None,
        "scaled, normed or projected embeddings": parts.scale_input is not None,
        "scaled or projected final states": not isinstance(parts.norm, nn.Module),
        "scaled or capped logits": parts.logit_softcap is not None,
        "experts": any(_has_experts(layer) for layer in layers),
        "layers with other arguments": isinstance(layers[0], AdaptedLayer),
    }
    return "; ".join(name for name, is_so in present.items() if is_so)


def _has_experts(layer: nn.Module) -> bool:
    return any("expert" in name or "moe" in name for name, _ in layer.named_modules())


def exact_rows() -> list[str]:
    """One line for each family with an adapter, once its checks have passed."""
    rows = []
    for name in sorted(text_families()):
        config = sized_config(name, layers=3)
        check_family(config)
        parts = parts_of(random_model(config))
        rows.append(f"| `{name}` | {features(parts)} |")
        print(rows[-1], flush=True)
    return rows


def multimodal_rows() -> list[str]:
    """One line for each multimodal model, once its replies to text have been checked."""
    rows = []
    for name in sorted(MULTIMODAL):
        model = HookedModel(small_multimodal(name))
        check_generate(name, model)
        cls, decoder = type(model.model).__name__, model.text_config.model_type
        rows.append(f"| `{cls}` | `{decoder}` |")
        print(rows[-1], flush=True)
    return rows


def tables() -> str:
    """All tables of the page."""
    exact, multimodal = exact_rows(), multimodal_rows()
    refused = [
        f"| {', '.join(f'`{name}`' for name in names)} | {reason} |"
        for reason, names in refused_types().items()
    ]
    count = sum(map(len, refused_types().values()))
    lines = [
        f"Checked with transformers {transformers.__version__}: {len(exact)} model types of causal "
        f"language models are exact, {count} are refused.",
        "",
        "| exact | beside rotary positions and full attention |",
        "|---|---|",
        *exact,
        "",
        "| multimodal model, exact for prompts in text | its decoder |",
        "|---|---|",
        *multimodal,
        "",
        "| refused | reason |",
        "|---|---|",
        *refused,
    ]
    return "\n".join(lines)


def left_out(text: str) -> list[str]:
    """Families that the page does not name in its tables."""
    table = section(text, "families")
    names = [*text_families(), *(name for names in refused_types().values() for name in names)]
    return [name for name in names if f"`{name}`" not in table]


def main() -> int:
    """Write the tables, or check that they name all families."""
    text = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        missing = left_out(text)
        if missing:
            print(f"{PAGE.name} leaves out {', '.join(missing)}; run python -m tools.families")
        return len(missing) > 0
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = tables()
    PAGE.write_text(filled(text, "families", table), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
