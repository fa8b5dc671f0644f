"""One function a figure: rows or arrays -> a matplotlib Figure, its caption and the rows behind it.

Neither torch nor a store.
"""

from supermask.figures.accuracy import ACCURACY, EARLY_STOP, accuracy_figure, early_stop_figure
from supermask.figures.curves import curves_figure
from supermask.figures.density import density_figure, density_over_levels_figure
from supermask.figures.differences import difference_figure, differences_of
from supermask.figures.distributions import distribution_figure
from supermask.figures.overlap import overlap_by_layer_figure, overlap_figure
from supermask.figures.overview import overview_figure, overview_of
from supermask.figures.panels import heuristic_figure, is_heuristic
from supermask.figures.pixel_maps import pixel_map_figure
from supermask.figures.planes import plane_figure
from supermask.figures.points import Summary, summarise
from supermask.figures.ranking import ranking_figure, ranking_of
from supermask.figures.save import Drawn, png, save, save_table, slug
from supermask.figures.supermasks import has_supermasks, supermask_figure
from supermask.figures.table_one import has_table_one, table_one_figure, table_one_rows

__all__ = [
    "ACCURACY",
    "EARLY_STOP",
    "Drawn",
    "Summary",
    "accuracy_figure",
    "curves_figure",
    "density_figure",
    "density_over_levels_figure",
    "difference_figure",
    "differences_of",
    "distribution_figure",
    "early_stop_figure",
    "has_supermasks",
    "has_table_one",
    "heuristic_figure",
    "is_heuristic",
    "overlap_by_layer_figure",
    "overlap_figure",
    "overview_figure",
    "overview_of",
    "pixel_map_figure",
    "plane_figure",
    "png",
    "ranking_figure",
    "ranking_of",
    "save",
    "save_table",
    "slug",
    "summarise",
    "supermask_figure",
    "table_one_figure",
    "table_one_rows",
]
