"""The generators of questions, suite by suite."""
