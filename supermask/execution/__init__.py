"""Execution of plans: scheduler, coordinator, workers and executors. They decide where and when a run trains, and
never change its result.
"""
