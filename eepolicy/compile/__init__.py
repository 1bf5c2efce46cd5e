"""Compiled layers: `torch.compile` and CUDA graphs."""
