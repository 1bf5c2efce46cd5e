"""`eepolicy policies`: which there are, and how they are written."""

from __future__ import annotations

from rich import box
from rich.table import Table

from eepolicy.cli.shared import JsonOption, app, note, out, tell


@app.command("policies")
def list_policies(as_json: JsonOption = False) -> None:
    """List the policies: how each is written, what it does, and the paper it is from.

    Example: eepolicy policies --json
    """
    from eepolicy.policies.spec import CATALOGUE, GRAMMAR

    if as_json:
        keys = ("spec", "what", "from")
        tell([dict(zip(keys, entry, strict=True)) for entry in CATALOGUE])
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("written", "policy", "from"):
        table.add_column(heading, no_wrap=heading == "written")
    for entry in CATALOGUE:
        table.add_row(*entry)
    out.print(table)
    note(f"In full: {GRAMMAR}")
