"""Compiled layers and readouts: `torch.compile` and CUDA graphs."""
