"""The report page as HTML: one file with its data, styles and scripts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from eepolicy.analysis.evaluation.page_plot import bokeh_script, plot_item

TEMPLATES = Path(__file__).parent / "templates"
#: the page's scripts in their order; all share one scope
SCRIPTS = ("page.js", "plot.js", "table.js", "questions.js")


def render(data: Mapping[str, Any]) -> str:
    """Write the page of a document.

    The page's security policy names the digests of its scripts.  A browser then runs no other
    script, and fetches nothing but sound beside the page.

    Args:
        data: the document of `page_data`.

    Returns:
        The page's HTML.
    """
    own = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    scripts = [bokeh_script(), f'(() => {{\n"use strict";\n{own}}})();\n']
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    page: str = environment.get_template("report.html").render(
        about=data,
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        data=script_json(data),
        figure=script_json(plot_item()),
        scripts=[Markup(script) for script in scripts],
        digests=[_digest(script) for script in scripts],
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
