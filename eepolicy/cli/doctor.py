"""`eepolicy doctor`: versions, devices, and which optional parts are there."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from eepolicy.cli.shared import JsonOption, app, out, tell

PACKAGES = ("eepolicy", "torch", "transformers", "numpy", "safetensors", "matplotlib")


@app.command()
def doctor(
    strict: Annotated[bool, typer.Option(help="exit status 1 where a part is missing")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine has, which optional parts are missing, and what installs them.

    Example: eepolicy doctor --json
    """
    found = examine()
    missing = {name: part for name, part in found["parts"].items() if part}
    if as_json:
        tell(found)
    else:
        for name, what in {**found["versions"], **found["machine"]}.items():
            out.print(f"{name:14} {what}", highlight=False, markup=False)
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("optional part", "", "what installs it"):
            table.add_column(heading)
        for name, install in found["parts"].items():
            table.add_row(name, "missing" if install else "there", install or "")
        out.print(table)
    raise typer.Exit(1 if strict and missing else 0)


def examine() -> dict[str, Any]:
    """Versions, machine, and of each optional part what installs it; None where it is there."""
    import torch

    from eepolicy.speech.asr import missing_asr
    from eepolicy.speech.mos import NEEDS, missing_mos

    def lacking(modules: tuple[str, ...], install: str) -> str | None:
        return None if all(find_spec(m) for m in modules) else install

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {"Python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "machine": {
            "CPU threads": torch.get_num_threads(),
            "GPUs": ", ".join(devices) or "none",
        },
        "parts": {
            "speech recognition": missing_asr(),
            **{f"rating: {rater}": missing_mos(rater) for rater in NEEDS},
            "voice of Step-Audio-2": lacking(
                ("token2wav",), "clone github.com/stepfun-ai/Step-Audio2, put it on PYTHONPATH"
            ),
            "voice of GLM-4-Voice": lacking(
                ("flow_inference",), "clone github.com/zai-org/GLM-4-Voice, put it on PYTHONPATH"
            ),
            "tasks and results in Parquet": lacking(("pyarrow",), "pip install pyarrow"),
            "models over devices": lacking(("accelerate",), "pip install accelerate"),
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
