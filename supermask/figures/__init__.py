"""One function a figure: rows -> a matplotlib Figure, its caption and the rows behind it. Neither torch nor a store."""

from supermask.figures.accuracy import accuracy_figure, early_stop_figure
from supermask.figures.save import Drawn, save, slug

__all__ = ["Drawn", "accuracy_figure", "early_stop_figure", "save", "slug"]
