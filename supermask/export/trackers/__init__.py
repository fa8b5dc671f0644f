"""Offline export of finished runs to TensorBoard, Weights & Biases and MLflow. The store stays the source of truth."""

from supermask.export.trackers.record import TrackerRun, to_tracker_run
from supermask.export.trackers.send import TRACKERS, ExportSummary, send_runs, view_command

__all__ = ["TRACKERS", "ExportSummary", "TrackerRun", "send_runs", "to_tracker_run", "view_command"]
