"""`eepolicy report`: the page of a comparison, written anew from what was measured."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from eepolicy.cli.shared import (
    DtypeOption,
    JsonOption,
    ModelOption,
    app,
    load,
    note,
    tell,
    torch_dtype,
)
from eepolicy.errors import EepolicyError


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="of a comparison")],
    model: ModelOption = "pocket",
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Write table, figures and page of a comparison anew; nothing is decoded.

    Example: eepolicy report my-report
    """
    from eepolicy.analysis.evaluation.records import RunFolder
    from eepolicy.analysis.evaluation.report import write_report
    from eepolicy.analysis.evaluation.run import FULL
    from eepolicy.heads.fingerprint import fingerprint

    run = RunFolder(folder)
    done = run.records()
    if not done:
        raise EepolicyError(f"{folder} holds no records of a comparison")
    held = json.loads((folder / "run.json").read_text())
    rows = held["notes"].get("rows") or list(dict.fromkeys(policy for _, policy in done))
    if FULL not in rows:
        raise EepolicyError(f"{folder} holds no reply at full depth yet: run the comparison on")
    spoken = load(model, dtype=torch_dtype(dtype))
    if fingerprint(spoken.model) != held["identity"]["model"]:
        raise EepolicyError(f"{folder} holds a run of another model than {model}: give --model")
    rows.sort(key=lambda policy: policy != FULL)
    questions = [{"question": q} for q in dict.fromkeys(question for question, _ in done)]
    command = "eepolicy " + shlex.join(sys.argv[1:])
    results = write_report(spoken, rows, questions, run, command)
    if as_json:
        kinds = ("results.*", "*.png", "*.svg", "index.html")
        files = [file for kind in kinds for file in sorted(folder.glob(kind))]
        tell({"model": model, "folder": folder, "results": results, "files": files})
        return
    note(f"{results[0]['prompts']} questions, {len(rows)} policies: {folder / 'index.html'}")
