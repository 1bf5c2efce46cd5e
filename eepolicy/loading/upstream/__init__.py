"""Checkpoints in their authors' layout, one module per model."""
