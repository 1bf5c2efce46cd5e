"""`eepolicy doctor`: versions, devices, optional parts, and the speed of the machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from eepolicy.cli.options import JsonOption
from eepolicy.cli.shared import app, out, print_json

if TYPE_CHECKING:
    from eepolicy.speech.authors_vocoders import Authors

PACKAGES = ("eepolicy", "torch", "transformers", "numpy", "safetensors", "matplotlib")


@app.command()
def doctor(
    strict: Annotated[
        bool, typer.Option("--strict", help="exit with status 1 if an optional part is missing")
    ] = False,
    speed: Annotated[
        bool, typer.Option("--speed", help="time a fixed loop on the CPU, to compare machines")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print versions and devices, and how to install the optional parts that are missing.

    Example: eepolicy doctor --json
    """
    report = examine()
    if speed:
        from eepolicy.analysis.timing.reference import reference_seconds

        reference = reference_seconds()
        report["speed"] = reference.to_dict()
    missing = [name for name, install in report["parts"].items() if install]
    if as_json:
        print_json(report)
    else:
        for name, value in {**report["versions"], **report["machine"]}.items():
            out.print(f"{name:14} {value}", highlight=False, markup=False)
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("optional part", "state", "how to install it"):
            table.add_column(heading)
        for name, install in report["parts"].items():
            table.add_row(name, "missing" if install else "installed", escape(install or ""))
        out.print(table)
        if speed:
            out.print(str(reference), highlight=False, markup=False)
    raise typer.Exit(1 if strict and missing else 0)


def examine() -> dict[str, Any]:
    """Collect versions, devices, and for each optional part how to install it.

    Returns:
        `versions`, `machine` and `parts`; a part that is installed has None.
    """
    import torch

    from eepolicy.speech.asr import missing_asr
    from eepolicy.speech.authors_vocoders import GLM, STEP
    from eepolicy.speech.covo_voice import COVO
    from eepolicy.speech.mos import NEEDS, missing_mos

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": {"Python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "machine": {
            "CPU threads": torch.get_num_threads(),
            "GPUs": ", ".join(devices) or "none",
        },
        "parts": {
            "speech recognition": missing_asr(),
            **{f"MOS by {rater}": missing_mos(rater) for rater in NEEDS},
            "vocoder of Step-Audio-2": _unless_complete(STEP),
            "vocoder of GLM-4-Voice": _unless_complete(GLM),
            "vocoder of Covo-Audio": _unless_complete(COVO),
            "Parquet files": _unless_installed("pyarrow", "pip install pyarrow"),
            "lm-evaluation-harness": _unless_installed(
                "lm_eval", "pip install 'eepolicy[lm-eval]'"
            ),
            "Inspect": _unless_installed("inspect_ai", "pip install 'eepolicy[inspect]'"),
            "models on several devices": _unless_installed("accelerate", "pip install accelerate"),
        },
    }


def _unless_installed(module: str, install: str) -> str | None:
    return None if find_spec(module) else install


def _unless_complete(authors: Authors) -> str | None:
    """What to install for a vocoder of a model's authors; None if nothing is missing."""
    missing = authors.missing()
    return f"{authors.install} (missing: {', '.join(missing)})" if missing else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
