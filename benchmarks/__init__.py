"""Timings beside PyTorch, each a command: `python -m benchmarks.NAME`."""
