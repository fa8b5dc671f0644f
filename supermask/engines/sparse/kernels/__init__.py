"""Compute kernels of the sparse engine, compiled by numba."""
