"""Runs as jobs of Slurm, through submitit: arrays of lines of ready runs, requeued when they are preempted."""

from __future__ import annotations

WORKERS = 64
"""Jobs at once, where nothing is said."""
