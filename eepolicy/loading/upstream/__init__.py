"""Checkpoints in their authors' layout."""
