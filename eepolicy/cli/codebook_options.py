"""Options of commands for models with several codebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: heading of these options in the help
CODEBOOK_PANEL = "Options of models with several codebooks"
DepthPolicyOption = Annotated[
    str | None,
    typer.Option(help="exit policy of the depth decoder", rich_help_panel=CODEBOOK_PANEL),
]
CodebooksOption = Annotated[
    str | None,
    typer.Option(
        help="codebooks of each frame, such as first:8 or entropy>4@4; all by default",
        rich_help_panel=CODEBOOK_PANEL,
    ),
]
MissingOption = Annotated[
    str | None,
    typer.Option(
        help="rule for codes that are not computed: leave-out, previous or code:NUMBER",
        rich_help_panel=CODEBOOK_PANEL,
    ),
]
DepthHeadsOption = Annotated[
    Path | None,
    typer.Option(
        help="file with exit heads of the depth decoder, from eepolicy.fitting.fit_depth_decoder",
        rich_help_panel=CODEBOOK_PANEL,
    ),
]
