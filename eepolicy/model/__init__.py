"""The layer loop over stock models, and what it knows of model families."""
