"""Finished runs for TensorBoard, Weights & Biases and MLflow: offline, into a folder. The store stays the truth."""

from supermask.trackers.exported import Exported, exported
from supermask.trackers.sending import TRACKERS, Report, export_tracker, look_at

__all__ = ["TRACKERS", "Exported", "Report", "export_tracker", "exported", "look_at"]
