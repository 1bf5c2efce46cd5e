"""Timings against stock transformers, taken in turns in one run."""
