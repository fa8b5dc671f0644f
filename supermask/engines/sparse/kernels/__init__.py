"""The sparse engine's inner loops, compiled by numba."""
