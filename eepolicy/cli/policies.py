"""`eepolicy policies`: list the policies and their spec strings."""

from __future__ import annotations

from rich import box
from rich.table import Table

from eepolicy.cli.shared import JsonOption, app, note, out, tell


@app.command("policies")
def list_policies(as_json: JsonOption = False) -> None:
    """List the policies with their spec strings, effects and papers.

    Example: eepolicy policies --json
    """
    from eepolicy.policies import POLICIES
    from eepolicy.policies.spec import policy_entries

    entries = policy_entries(installed=True)

    if as_json:
        tell([{"spec": e.example, "what": e.summary, "from": e.paper} for e in entries])
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("written", "policy", "from"):
        table.add_column(heading, no_wrap=heading == "written")
    for entry in entries:
        table.add_row(entry.example, entry.summary, entry.paper)
    out.print(table)
    note(f"Grammar: {POLICIES.usage()}")
