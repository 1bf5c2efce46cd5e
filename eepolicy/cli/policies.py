"""`eepolicy policies`: list the exit policies."""

from __future__ import annotations

from rich import box
from rich.table import Table

from eepolicy.cli.options import JsonOption
from eepolicy.cli.shared import app, out, print_json, print_note


@app.command("policies")
def list_policies(as_json: JsonOption = False) -> None:
    """List the exit policies: spec string, description, and the paper of each.

    Example: eepolicy policies --json
    """
    from eepolicy.policies import POLICIES
    from eepolicy.policies.spec import policy_entries

    entries = policy_entries(installed=True)

    if as_json:
        print_json([{"spec": e.example, "what": e.summary, "from": e.paper} for e in entries])
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("spec string", "description", "source"):
        table.add_column(heading, no_wrap=heading == "spec string")
    for entry in entries:
        table.add_row(entry.example, entry.summary, entry.paper)
    out.print(table)
    print_note(f"Grammar: {POLICIES.usage()}")
