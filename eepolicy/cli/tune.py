"""`eepolicy tune`: the policy that saves most within a stated loss."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from eepolicy.cli.shared import (
    JsonOption,
    ModelOption,
    ThreadsOption,
    app,
    load,
    note,
    numbers,
    out,
    tell,
)
from eepolicy.errors import EepolicyError


@app.command()
def tune(
    prompts: Annotated[int, typer.Option(help="dev questions to choose by", min=10)] = 300,
    check: Annotated[int, typer.Option(help="test questions to check by", min=2)] = 100,
    wer_loss: Annotated[
        float, typer.Option(help="allowed loss of the word error rate, in points", min=0)
    ] = 3.0,
    accuracy_loss: Annotated[
        float, typer.Option(help="allowed loss of replies that are right, in points", min=0)
    ] = 5.0,
    depths: Annotated[
        str | None, typer.Option(help="of the exits, such as 18,16,14; down to half if none")
    ] = None,
    confidence: Annotated[float, typer.Option(help="of the guarantee", min=0.5, max=0.999)] = 0.95,
    model: ModelOption = "pocket",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="write the table here (.md)")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="folder of what was heard; a stopped search goes on from it")
    ] = None,
    threads: ThreadsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Search schedules for the deepest saving within a loss, with a guarantee.

    Example: eepolicy tune --wer-loss 4 --accuracy-loss 8 --keep work/tune
    """
    import torch

    from eepolicy.analysis.studies import policy_search as tuning
    from eepolicy.loading import held_out
    from eepolicy.speech import asr

    if asr.missing_asr():
        raise EepolicyError(f"what is lost is heard, and needs ears: {asr.missing_asr()}")
    torch.set_num_threads(threads)
    spoken = load(model)
    source = None if model == "pocket" else Path(model)
    calibration, others = held_out("dev", source), held_out("test", source)
    if prompts > len(calibration) or check > len(others):
        raise EepolicyError(
            f"there are {len(calibration)} dev and {len(others)} test questions; "
            f"got --prompts {prompts} --check {check}"
        )
    allowed = tuning.Allowed(wer_loss / 100, accuracy_loss / 100, confidence)
    found = tuning.tune(
        spoken,
        calibration[:prompts],
        others[:check],
        asr.Whisper(threads=threads),
        allowed,
        candidates=tuning.chains(spoken.depth, None if depths is None else numbers(depths)),
        keep=keep,
        report=note,
    )
    seen = found.checked
    summary = (
        f"{found.best}: {seen['calls']:.2f} layer calls a token; on {check} other questions WER "
        f"{100 * seen['wer_loss']:+.1f} [{100 * seen['wer_loss_low']:+.1f}, "
        f"{100 * seen['wer_loss_high']:+.1f}] points, right "
        f"{-100 * seen['accuracy_loss']:+.1f} [{-100 * seen['accuracy_loss_high']:+.1f}, "
        f"{-100 * seen['accuracy_loss_low']:+.1f}] points"
    )
    if out_file:
        out_file.write_text(f"{found.table()}\n\n{summary}\n")
    if as_json:
        tell(
            {
                "model": model,
                "prompts": prompts,
                "check": check,
                "allowed": asdict(allowed),
                "best": found.best,
                "checked": seen,
                "results": found.tried,
                "files": [file for file in (out_file, keep) if file],
            }
        )
        return
    for told in (found.table(), summary):
        out.print(told, highlight=False, markup=False, soft_wrap=True)
