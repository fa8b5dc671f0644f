"""One function a figure: rows or arrays -> a matplotlib Figure, its caption and the rows behind it.

Neither torch nor a store.
"""

from supermask.figures.accuracy import accuracy_figure, early_stop_figure
from supermask.figures.curves import curves_figure
from supermask.figures.density import density_figure, density_over_levels_figure
from supermask.figures.distributions import distribution_figure
from supermask.figures.overlap import overlap_by_layer_figure, overlap_figure
from supermask.figures.panels import heuristic_figure, is_heuristic
from supermask.figures.pixel_maps import pixel_map_figure
from supermask.figures.planes import plane_figure
from supermask.figures.save import Drawn, png, save, save_table, slug
from supermask.figures.supermasks import has_supermasks, supermask_figure

__all__ = [
    "Drawn",
    "accuracy_figure",
    "curves_figure",
    "density_figure",
    "density_over_levels_figure",
    "distribution_figure",
    "early_stop_figure",
    "has_supermasks",
    "heuristic_figure",
    "is_heuristic",
    "overlap_by_layer_figure",
    "overlap_figure",
    "pixel_map_figure",
    "plane_figure",
    "png",
    "save",
    "save_table",
    "slug",
    "supermask_figure",
]
