"""Executors: they decide where and when a run trains, never what it computes."""
