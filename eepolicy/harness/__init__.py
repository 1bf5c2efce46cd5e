"""Adapters to evaluation harnesses; each module imports its harness, an optional package."""
