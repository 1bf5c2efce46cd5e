"""Write the table of rows against static exits: `python -m tools.equal_cost results/pocket`.

The folder is one of `eepolicy leaderboard --run` or `eepolicy compare`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from eepolicy.analysis.evaluation.equal_cost import at_equal_cost, equal_cost_table
from eepolicy.analysis.evaluation.load import load_comparison
from eepolicy.io import write_text

PAGE = Path(__file__).parents[1] / "docs" / "findings" / "generated" / "equal-cost.md"


def main() -> None:
    """Write the table into the docs."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tools.equal_cost FOLDER_OF_A_COMPARISON")
    results = at_equal_cost(load_comparison(Path(sys.argv[1])))
    write_text(PAGE, equal_cost_table(results) + "\n")


if __name__ == "__main__":
    main()
