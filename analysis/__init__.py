"""Reading what decoding recorded: comparison, intervals, figures, report."""
