"""Write the table of rows against static exits.

    python -m tools.equal_cost results/pocket [--write docs/findings/generated/equal-cost.md]

The folder is one of `eepolicy leaderboard --run` or `eepolicy compare`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from eepolicy.analysis.evaluation.equal_cost import at_equal_cost, equal_cost_table
from eepolicy.analysis.evaluation.load import load_comparison
from eepolicy.io import write_text

PAGE = Path(__file__).parents[1] / "docs" / "findings" / "generated" / "equal-cost.md"


def main() -> None:
    """Write the table into the docs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of a comparison")
    parser.add_argument("--write", type=Path, default=PAGE, help="file of the table")
    args = parser.parse_args()
    results = at_equal_cost(load_comparison(args.folder))
    write_text(args.write, equal_cost_table(results) + "\n")


if __name__ == "__main__":
    main()
