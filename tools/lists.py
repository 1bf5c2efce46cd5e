"""Write the lists of plug-ins into README and docs: `python -m tools.lists`.

A page has a list between `<!-- list: NAME -->` and `<!-- end of list -->`.  The lines come from the
classes, so a plug-in is described in its own file only.  `--check` changes nothing and fails if a
page is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from eepolicy.decode.acceptance import ACCEPTANCE_RULES
from eepolicy.decode.fills import FILLS
from eepolicy.heads import KINDS
from eepolicy.policies import POLICIES
from eepolicy.policies.spec import policy_entries
from eepolicy.registry import Entry

ROOT = Path(__file__).parents[1]
_LIST = re.compile(r"(<!-- list: ([a-z-]+) -->).*?(<!-- end of list -->)", re.DOTALL)


def table(entries: Iterable[Entry]) -> str:
    """A Markdown table with one line for each example of a plug-in."""
    lines = ["", "", "| string | what it does | from |", "|---|---|---|"]
    for entry in entries:
        paper = f"[{entry.paper}]({entry.source})" if entry.source else entry.paper
        # a pipe would end the cell
        summary = entry.summary.replace("|", "\\|")
        lines.append(f"| `{entry.example}` | {summary} | {paper} |")
    return "\n".join([*lines, "", ""])


def names(every: Iterable[str]) -> str:
    """Names in one line."""
    return ", ".join(f"`{name}`" for name in every)


LISTS: dict[str, Callable[[], str]] = {
    "policies": lambda: table(policy_entries()),
    "fills": lambda: table(FILLS.entries()),
    "acceptance-rules": lambda: table(ACCEPTANCE_RULES.entries()),
    "heads": lambda: table(KINDS.entries()),
    "policy-names": lambda: names(dict.fromkeys(entry.name for entry in POLICIES.entries())),
    "fill-names": lambda: names(FILLS.names()),
    "acceptance-names": lambda: names(ACCEPTANCE_RULES.names()),
}


def updated(text: str) -> str:
    """The text of a page with its lists written anew.

    Raises:
        KeyError: a page names a list that does not exist.
    """
    return _LIST.sub(lambda match: f"{match[1]}{LISTS[match[2]]()}{match[3]}", text)


def main() -> int:
    """Update all pages, or check them."""
    stale = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text()
        if (new := updated(text)) != text:
            stale.append(page.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv:
                page.write_text(new)
    if stale and "--check" in sys.argv:
        print(f"out of date: {', '.join(stale)}; run python -m tools.lists")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
