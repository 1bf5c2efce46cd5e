"""Write the training questions to a text file, one a line, for `eepolicy fit --prompts`.

    python -m pocket.prompts FILE

No dev or test question is among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from eepolicy.io import write_text
from pocket.questions import HELD_OUT, split


def training_questions() -> list[str]:
    """Return the training questions, in the order of `split`."""
    return [pair.question for pair in split(2 * HELD_OUT)[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    write_text(parser.parse_args().file, "\n".join(training_questions()) + "\n")


if __name__ == "__main__":
    main()
