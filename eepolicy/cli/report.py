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
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the tables, figures and page of a comparison again; no reply is decoded.

    Example: eepolicy report my-report
    """
    from eepolicy.analysis.evaluation.records import RunFolder
    from eepolicy.analysis.evaluation.report import write_report
    from eepolicy.analysis.evaluation.run import FULL
    from eepolicy.analysis.evaluation.table import Comparison
    from eepolicy.analysis.evaluation.verdict import Margins
    from eepolicy.analysis.stats.sequential import UntilDecided
    from eepolicy.heads.fingerprint import fingerprint

    run_folder = RunFolder(folder)
    records = run_folder.records()
    if not records:
        raise EepolicyError(f"{folder} contains no records of a comparison")
    identity, notes = run_folder.read()
    policies = notes.get("rows") or list(dict.fromkeys(policy for _, policy in records))
    if FULL not in policies:
        raise EepolicyError(
            f"{folder} contains no reply at full depth yet: continue the comparison"
        )
    spoken = load_model(model, dtype, device, threads, heads)
    if fingerprint(spoken.model) != identity["model"]:
        raise EepolicyError(f"{folder} contains a run of another model than {model}: give --model")
    policies.sort(key=lambda policy: policy != FULL)
    questions = [line.model_dump() for line in run_folder.questions().values()]
    rule = notes.get("looks")
    comparison = Comparison(
        tuple(policies),
        tuple(questions),
        run_folder,
        margins=Margins(**notes.get("margins", {})),
        looks=UntilDecided(tuple(rule)) if rule else None,
    )
    results = write_report(spoken, comparison, command_line(), again=True)
    if as_json:
        patterns = ("results.*", "*.png", "*.svg", "*.pdf", "index.html")
        files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
        print_json({"model": model, "folder": folder, "results": results, "files": files})
        return
    print_note(
        f"{results[0]['prompts']} questions, {len(policies)} policies: {folder / 'index.html'}"
    )
