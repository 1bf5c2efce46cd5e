"""The one error that users of the library are meant to see."""

from __future__ import annotations


class EepolicyError(ValueError):
    """What was given cannot be used; the message says what was expected and what to do."""
