"""The functions of the Python API, with the modules that define them."""

from .comparisons import compare
from .data import get_dataset, inspect_dataset, list_datasets
from .mask_loading import load_masks
from .masks import analyze_masks
from .reports import claims, report, reproduce
from .runs import export, figures, plan, query, recheck_accuracies, run, study_rows, verify
from .tickets import build_tickets, evaluate_ticket, find_tickets, inspect_ticket, pack, push
from .trackers import export_tracker

__all__ = [
    "analyze_masks",
    "build_tickets",
    "claims",
    "compare",
    "evaluate_ticket",
    "export",
    "export_tracker",
    "figures",
    "find_tickets",
    "get_dataset",
    "inspect_dataset",
    "inspect_ticket",
    "list_datasets",
    "load_masks",
    "pack",
    "plan",
    "push",
    "query",
    "recheck_accuracies",
    "report",
    "reproduce",
    "run",
    "study_rows",
    "verify",
]
