"""`eepolicy report`: write the report of a comparison again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eepolicy.cli.options import (
    DeviceOption,
    DtypeOption,
    HeadsOption,
    JsonOption,
    ModelOption,
    ThreadsOption,
    load_model,
)
from eepolicy.cli.shared import app, command_line, print_json, print_note
from eepolicy.errors import EepolicyError


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="folder of a comparison")],
    model: ModelOption = "pocket",
    heads: HeadsOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the tables, figures and page of a comparison again; no reply is decoded.

    Example: eepolicy report my-report
    """
    from eepolicy.analysis.evaluation.load import load_comparison
    from eepolicy.analysis.evaluation.report import write_report
    from eepolicy.analysis.evaluation.spark_table2 import rows_in, write_table2
    from eepolicy.heads.fingerprint import digest, fingerprint

    comparison = load_comparison(folder)
    identity, _ = comparison.folder.read()
    spoken = load_model(model, dtype, device, threads, heads)
    if fingerprint(spoken.model) != identity.get("model"):
        raise EepolicyError(f"{folder} contains a run of another model than {model}: give --model")
    if digest(spoken.heads) != identity.get("heads"):
        raise EepolicyError(f"{folder} contains a run with other exit heads: give its --heads")
    results = write_report(spoken, comparison, command_line(), again=True)
    rows = rows_in(spoken, comparison)
    if rows:
        write_table2(rows, comparison)
    if as_json:
        patterns = ("table2.md", "results.*", "*.png", "*.svg", "*.pdf", "index.html")
        files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
        print_json({"model": model, "folder": folder, "results": results, "files": files})
        return
    print_note(
        f"{results[0]['prompts']} questions, {len(results)} policies: {folder / 'index.html'}"
    )
