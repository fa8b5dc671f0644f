"""Public names of the package and the modules that define them, for type checkers and for `__init__.py`."""

from . import analysis, api
from .analysis.comparisons import ResultComparison
from .analysis.masks import MaskInfo
from .api.commands import claims, export_run, merge, plan, query, report, reproduce, status, studies, verify
from .api.comparisons import compare
from .api.data import get_dataset, inspect_dataset, list_datasets
from .api.mask_loading import load_masks
from .api.masks import analyze_masks
from .api.notebook import figure, run, table
from .api.tickets import build_tickets, evaluate_ticket, find_tickets, inspect_ticket, pack, push
from .api.trackers import export_tracker
from .core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from .core.certificate import Certificate, certify
from .core.criteria import CRITERIA
from .core.errors import SystemFailure, UserError
from .core.learned_masks import METHODS, MaskLearning
from .core.masks import keep_top
from .core.pruning import ParentRun, PruneStep, prune_and_reset
from .core.types import InitialState, Layer, TrainingResult
from .datasets import DATASETS
from .export.tickets import Ticket, hold, load_ticket, pack_run, save_ticket, save_ticket_folder
from .store import CorruptEntry, Store
from .store.replay import StateReplayer
from .study import Study, Treatment, load_study, study_from_dict
from .study.plan import Plan, make_plan
from .study.run import Run

__version__: str

__all__ = [
    "CRITERIA",
    "DATASETS",
    "MASK0_ACTIONS",
    "MASK1_ACTIONS",
    "METHODS",
    "Certificate",
    "CorruptEntry",
    "InitialState",
    "Layer",
    "MaskInfo",
    "MaskLearning",
    "ParentRun",
    "Plan",
    "PruneStep",
    "ResultComparison",
    "Run",
    "StateReplayer",
    "Store",
    "Study",
    "SystemFailure",
    "Ticket",
    "TrainingResult",
    "Treatment",
    "UserError",
    "analysis",
    "analyze_masks",
    "api",
    "build_tickets",
    "certify",
    "claims",
    "compare",
    "evaluate_ticket",
    "export_run",
    "export_tracker",
    "figure",
    "find_tickets",
    "get_dataset",
    "hold",
    "inspect_dataset",
    "inspect_ticket",
    "keep_top",
    "list_datasets",
    "load_masks",
    "load_study",
    "load_ticket",
    "make_plan",
    "merge",
    "pack",
    "pack_run",
    "plan",
    "prune_and_reset",
    "push",
    "query",
    "report",
    "reproduce",
    "run",
    "save_ticket",
    "save_ticket_folder",
    "status",
    "studies",
    "study_from_dict",
    "table",
    "verify",
]
