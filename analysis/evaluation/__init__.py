"""Comparing policies on questions: the run, its records, the table, the report."""
