"""The report page and the leaderboard as HTML: one file with its data, styles and scripts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from eepolicy.analysis.evaluation.page_plot import bokeh_script, plot_item

TEMPLATES = Path(__file__).parent / "templates"
#: the report's scripts in their order; all share one scope
SCRIPTS = ("page.js", "plot.js", "table.js", "questions.js")
#: the leaderboard's scripts
TABLE_SCRIPTS = ("page.js", "table.js")


def render(data: Mapping[str, Any]) -> str:
    """Write the report page of a document.

    Args:
        data: the document of `page_data`.

    Returns:
        The page's HTML.
    """
    scripts = [bokeh_script(), _own(SCRIPTS)]
    return _fill("report.html", data, scripts, figure=script_json(plot_item()))


def render_leaderboard(data: Mapping[str, Any]) -> str:
    """Write the leaderboard's page of a document.

    Args:
        data: the document of `eepolicy.analysis.evaluation.leaderboard.page_document`.

    Returns:
        The page's HTML.
    """
    return _fill("leaderboard.html", data, [_own(TABLE_SCRIPTS)])


def _own(names: Sequence[str]) -> str:
    """Scripts of the package as one, in a scope of its own."""
    own = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names)
    return f'(() => {{\n"use strict";\n{own}}})();\n'


def _fill(template: str, data: Mapping[str, Any], scripts: Sequence[str], **further: Markup) -> str:
    """Fill a template of a page.

    The page's security policy names the digests of its scripts.  A browser then runs no other
    script, and fetches nothing but sound beside the page.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    page: str = environment.get_template(template).render(
        about=data,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        data=script_json(data),
        scripts=[Markup(script) for script in scripts],
        digests=[_digest(script) for script in scripts],
        **further,
    )
    return page


def script_json(value: object) -> Markup:
    r"""Encode JSON types for a `<script>`: no `<` is left that could end it or open a comment.

    Args:
        value: JSON types.

    Examples:
        >>> from eepolicy.analysis.evaluation.page_template import script_json
        >>> print(script_json({"text": "</script>"}))
        {"text":"\u003c/script>"}
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _digest(script: str) -> str:
    """Digest of a script for the security policy of a page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
