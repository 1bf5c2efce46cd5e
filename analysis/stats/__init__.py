"""Statistics of replies and tokens: bootstrap intervals, tests, divergences."""
