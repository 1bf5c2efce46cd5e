"""Decoding: the step, the loop, sampling."""
