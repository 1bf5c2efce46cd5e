"""`eepolicy policies`: how they are written."""

from __future__ import annotations

from eepolicy.cli.shared import app, out


@app.command("policies")
def list_policies() -> None:
    """How policies are written."""
    from eepolicy.policies.spec import GRAMMAR

    out.print(f"A policy is one of: {GRAMMAR}", highlight=False, markup=False)
