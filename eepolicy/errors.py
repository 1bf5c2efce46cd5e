"""The error class of the library."""

from __future__ import annotations


class EepolicyError(ValueError):
    """An input cannot be used.  The message says what was given, what is possible, what to do."""
