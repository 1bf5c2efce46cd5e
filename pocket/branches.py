"""Add fitted branches and a drafter to the heads that ship with the pocket model.

    python -m pocket.branches FILE [FILE ...] [--to FOLDER]

The files come from `eepolicy fit pocket --heads branch` or `--heads drafter`.  The tuned lens stays
at every depth; at a depth with a branch, the branch is the preferred head.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from eepolicy.heads import FittedHead, load_heads, read_notes
from eepolicy.heads.fitted import DepthHead
from eepolicy.loading.pocket import load_spoken, pocket_folder


def add_branches(files: list[Path], to: Path) -> FittedHead:
    """Write the heads of some files beside the tuned lens of a model folder.

    Args:
        files: files of branches and drafters; of a depth that several have, the last one is kept.
        to: model folder with `heads.safetensors`.

    Returns:
        The heads that the folder now prefers at each depth.
    """
    model, file = load_spoken(to), to / "heads.safetensors"
    tuned = load_heads(file, model.lens, model.model, kind="tuned")
    branches: dict[int, DepthHead] = {}
    notes = {key: value for key, value in read_notes(file)["notes"].items() if key != "branches"}
    notes["branches"] = []
    for each in files:
        fitted = load_heads(each, model.lens, model.model)
        branches |= {depth: fitted.at(depth) for depth in fitted.branch_depths}
        notes["branches"].append(read_notes(each)["notes"])
    FittedHead(dict(sorted(branches.items()))).save(file, model.model, notes, others=[tuned])
    return load_heads(file, model.lens, model.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, default=pocket_folder())
    args = parser.parse_args()
    print(add_branches(args.files, args.to))


if __name__ == "__main__":
    main()
