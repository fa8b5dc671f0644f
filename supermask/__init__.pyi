"""Public names of the package and the modules that define them, for type checkers and for `__init__.py`."""

from . import analysis, api
from .analysis.comparisons import ResultComparison
from .analysis.masks import MaskInfo
from .api.comparisons import compare
from .api.mask_loading import load_masks
from .api.masks import analyze_masks
from .api.notebook import figure, run, table
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
from .export.tickets import Ticket, load_ticket, pack_run, save_ticket
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
    "certify",
    "compare",
    "export_tracker",
    "figure",
    "keep_top",
    "load_masks",
    "load_study",
    "load_ticket",
    "make_plan",
    "pack_run",
    "prune_and_reset",
    "run",
    "save_ticket",
    "study_from_dict",
    "table",
]
