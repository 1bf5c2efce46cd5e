"""Wrong inputs of every kind, and what the library makes of them: see `__main__`."""
