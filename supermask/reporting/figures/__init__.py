"""Figures: one function per figure, from rows or arrays to a matplotlib Figure, its caption and its data rows.

Importing this package loads neither torch nor matplotlib.
"""

from supermask.analysis.summary import Summary, summarize
from supermask.core.text import slugify
from supermask.reporting.figures.accuracy import ACCURACY, EARLY_STOP, accuracy_figure, convergence_figure
from supermask.reporting.figures.comparison import comparison_figure
from supermask.reporting.figures.criteria_table import criteria_table_figure
from supermask.reporting.figures.differences import compute_differences, difference_figure
from supermask.reporting.figures.learned import has_learned_masks, supermask_figure
from supermask.reporting.figures.learning_curves import learning_curves_figure
from supermask.reporting.figures.mask_density import density_by_level_figure, density_figure
from supermask.reporting.figures.mask_overlap import overlap_by_layer_figure, overlap_figure
from supermask.reporting.figures.network_panels import collect_panels, make_store_finder, network_panels_figure
from supermask.reporting.figures.overview import compute_overview, overview_figure
from supermask.reporting.figures.pixel_maps import pixel_map_figure
from supermask.reporting.figures.ranking import compute_ranking, ranking_figure
from supermask.reporting.figures.save import RenderedFigure, save_figure, save_table, to_png
from supermask.reporting.figures.style import FigureOptions
from supermask.reporting.figures.supermask_curves import (
    curve_points,
    has_untrained_masks,
    supermask_curves_figure,
    untrained_masks_figure,
)
from supermask.reporting.figures.table_one import has_table_one, table_one_figure, table_one_rows
from supermask.reporting.figures.untrained import is_heuristic, untrained_figure
from supermask.reporting.figures.weight_changes import has_weight_changes, weight_changes_figure
from supermask.reporting.figures.weight_distribution import distribution_figure
from supermask.reporting.figures.weight_plane import weight_plane_figure

__all__ = [
    "ACCURACY",
    "EARLY_STOP",
    "FigureOptions",
    "RenderedFigure",
    "Summary",
    "accuracy_figure",
    "collect_panels",
    "comparison_figure",
    "compute_differences",
    "compute_overview",
    "compute_ranking",
    "convergence_figure",
    "criteria_table_figure",
    "curve_points",
    "density_by_level_figure",
    "density_figure",
    "difference_figure",
    "distribution_figure",
    "has_learned_masks",
    "has_table_one",
    "has_untrained_masks",
    "has_weight_changes",
    "is_heuristic",
    "learning_curves_figure",
    "make_store_finder",
    "network_panels_figure",
    "overlap_by_layer_figure",
    "overlap_figure",
    "overview_figure",
    "pixel_map_figure",
    "ranking_figure",
    "save_figure",
    "save_table",
    "slugify",
    "summarize",
    "supermask_curves_figure",
    "supermask_figure",
    "table_one_figure",
    "table_one_rows",
    "to_png",
    "untrained_figure",
    "untrained_masks_figure",
    "weight_changes_figure",
    "weight_plane_figure",
]
