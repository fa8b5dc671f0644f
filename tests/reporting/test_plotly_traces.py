"""Building blocks of the interactive figures: bands, error bars, gaps."""

from __future__ import annotations

import pytest

from supermask.reporting.figures.style import style_for
from supermask.reporting.plotly.traces import PlotPoint, as_errors, line_traces


def point(x: float, low: float | None = 90.0, high: float | None = 96.0) -> PlotPoint:
    return PlotPoint(x, 94.0, low, high, "hover")


def test_an_interval_without_a_neighbor_is_an_error_bar() -> None:
    points = [point(100, None, None), point(50), None, point(20), point(10), point(5, None, None)]
    band, line = line_traces("a", style_for("a"), points)
    assert band["x"] == [20, 10, 10, 20]
    assert line["error_y"]["array"] == [None, 2.0, None, None, None, None]
    assert line["error_y"]["arrayminus"] == [None, 4.0, None, None, None, None]


def test_error_bars_of_errors_are_swapped() -> None:
    (line,) = line_traces("a", style_for("a"), as_errors([point(50)]))
    assert (line["y"], line["error_y"]["array"], line["error_y"]["arrayminus"]) == ([6.0], [4.0], [2.0])


@pytest.mark.parametrize("points", [[point(50), point(20)], [point(50, None, None)], []])
def test_bands_and_lines_without_intervals_have_no_error_bars(points: list[PlotPoint | None]) -> None:
    assert "error_y" not in line_traces("a", style_for("a"), points)[-1]
