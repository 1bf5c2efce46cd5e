"""Run studies and write their tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eepolicy.analysis.studies.base import Study, Workspace
from eepolicy.analysis.style import figures
from eepolicy.folder_lock import locked
from eepolicy.io import make_folder, write_figure, write_text


def write_studies(
    workspace: Workspace, folder: str | Path, studies: Sequence[type[Study]]
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
    folder = Path(folder)
    make_folder(folder)
    results = {}
    with locked(workspace.folder), figures():
        for study in studies:
            result = results[study.name] = study.run(workspace)
            stem = study.name.replace("_", "-")
            write_text(folder / f"{stem}.md", result.table() + "\n")
            figure = result.figure()
            write_figure(folder / f"{stem}.svg", figure)
            write_figure(workspace.folder / f"{stem}.png", figure, dpi=150)
    return results
