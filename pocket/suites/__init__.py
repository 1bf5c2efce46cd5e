"""Generators of questions, one module per suite."""
