"""Run studies and write their tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eepolicy.analysis.studies.base import Study, Workspace
from eepolicy.analysis.style import figures


def write_studies(
    workspace: Workspace, folder: Path, studies: Sequence[type[Study]]
) -> dict[str, Study]:
    """Run studies, and write the table and the figure of each.

    Args:
        workspace: model, questions and stored measurements.
        folder: where `<name>.md` and `<name>.svg` are written, with dashes in the name; created if
            it does not exist.  A PNG file goes to the folder of the workspace.
        studies: classes to run, such as `eepolicy.analysis.studies.STUDIES` or your own.

    Returns:
        Results by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    with figures():
        for study in studies:
            result = results[study.name] = study.run(workspace)
            stem = study.name.replace("_", "-")
            (folder / f"{stem}.md").write_text(result.table() + "\n")
            figure = result.figure()
            figure.savefig(folder / f"{stem}.svg")
            figure.savefig(workspace.folder / f"{stem}.png", dpi=150)
    return results
