"""One function a figure: rows -> a matplotlib Figure, its caption and the rows behind it. Neither torch nor a store."""

from supermask.figures.accuracy import accuracy_figure, early_stop_figure
from supermask.figures.curves import curves_figure
from supermask.figures.panels import heuristic_figure, is_heuristic
from supermask.figures.save import Drawn, save, slug
from supermask.figures.supermasks import has_supermasks, supermask_figure

__all__ = [
    "Drawn",
    "accuracy_figure",
    "curves_figure",
    "early_stop_figure",
    "has_supermasks",
    "heuristic_figure",
    "is_heuristic",
    "save",
    "slug",
    "supermask_figure",
]
