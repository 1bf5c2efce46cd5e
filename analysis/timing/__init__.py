"""Decoding time, and what the machine would allow."""
