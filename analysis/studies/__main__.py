"""Run the studies of the docs on the pocket model.

    python -m eepolicy.analysis.studies WORK --write docs/findings/generated

WORK stores the measurements.  A run that was stopped goes on from there: with the next batch of
replies or the next run of a policy, or with the whole measurement where a study stores it as one
file.  Studies that transcribe replies are left out without a speech recognition package (`make
compare` installs one).  Each study prints the time that it took when it was measured, and then its
own.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from eepolicy import held_out, load
from eepolicy.analysis.studies import STUDIES, Workspace, write_studies
from eepolicy.speech import asr


def main() -> None:
    names = "\n".join(f"  {study.name:14} {study.help}" for study in STUDIES)
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nstudies:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("work", type=Path, help="folder of the measurements")
    parser.add_argument(
        "--write",
        type=Path,
        default=Path("docs/findings/generated"),
        help="folder of the tables and figures",
    )
    parser.add_argument("--prompts", type=int, default=200, help="number of held-out questions")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--only", nargs="+", choices=[study.name for study in STUDIES], help="studies to run"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    can_transcribe = not asr.missing_asr()
    if args.only:
        chosen = [study for study in STUDIES if study.name in args.only]
    else:
        chosen = [s for s in STUDIES if s.by_default and (can_transcribe or not s.needs_asr)]
    questions = held_out("test")[: args.prompts]
    workspace = Workspace.open(load("pocket"), questions, args.work)
    for number, study in enumerate(chosen, 1):
        expected = study.measured_time or "not measured"
        print(f"[{number}/{len(chosen)}] {study.name}: expected time: {expected}", flush=True)
        began = time.perf_counter()
        write_studies(workspace, args.write, [study])
        minutes = (time.perf_counter() - began) / 60
        print(f"[{number}/{len(chosen)}] {study.name}: {minutes:.1f} minutes", flush=True)
    left_out = [study.name for study in STUDIES if study not in chosen]
    if left_out and not args.only:
        print(f"left out: {', '.join(left_out)}; run them with --only")


if __name__ == "__main__":
    main()
