"""One sentence per interactive figure that says what it shows: also the text for those who cannot see it.

The sentences name measured means; they give no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence

from supermask.analysis.summary import Summary, TreatmentPoint
from supermask.core.text import Row, format_number, format_percent, pluralize
from supermask.reporting.figures.caption import join_names
from supermask.reporting.figures.labels import escape_invisible
from supermask.reporting.figures.learned import MaskResult
from supermask.reporting.figures.ranking import Ranking, points_of_equal_density


def accuracy_takeaway(summary: Summary) -> str:
    """Return the best and the worst mean at the last level that all treatments have, with the dense network."""
    points = _last_common_level(summary)
    if not points:
        return _dense(summary, "The dense network has {}.")
    ordered = sorted(points, key=lambda point: -point.interval.mean)
    best, worst = ordered[0], ordered[-1]
    if len(ordered) > 1 and best.interval.mean == worst.interval.mean:
        text = (
            f"With {format_percent(best.remaining)}% of the weights, all treatments have the same mean test accuracy, "
        )
        return f"{text}{_percent(best.interval.mean)}{_dense(summary, '; the dense network has {}')}."
    text = f"With {format_percent(best.remaining)}% of the weights, {_mean(best)} is the highest mean test accuracy"
    if len(ordered) > 1:
        text += f" and {_mean(worst)} the lowest"
    return f"{text}{_dense(summary, '; the dense network has {}')}."


def iterations_takeaway(summary: Summary) -> str:
    """Return the earliest and the latest mean early-stopping iteration at the last common level."""
    points = _last_common_level(summary)
    if not points:
        return ""
    ordered = sorted(points, key=lambda point: point.interval.mean)
    first, last = ordered[0], ordered[-1]
    text = f"With {format_percent(first.remaining)}% of the weights, the validation loss is lowest at iteration "
    text += f"{format_number(first.interval.mean, 0)} on average for {escape_invisible(first.treatment)}"
    if len(ordered) > 1:
        text += f" and {format_number(last.interval.mean, 0)} for {escape_invisible(last.treatment)}"
    return f"{text}."


def overview_takeaway(summary: Summary) -> str:
    """Count the cells that differ from the reference after Holm's correction; without tests the extreme means."""
    compared = [point for point in summary.points if point.comparison]
    tested = sum(point.comparison is not None and point.comparison.p is not None for point in compared)
    if not tested:
        return _extreme_differences(summary, compared)
    marked = [point.comparison.difference for point in compared if point.significant and point.comparison]
    above = sum(difference > 0 for difference in marked)
    return (
        f"Of {pluralize(tested, 'tested cell')}, {above} {'is' if above == 1 else 'are'} significantly above "
        f"{escape_invisible(summary.reference)} and {len(marked) - above} below."
    )


def _extreme_differences(summary: Summary, points: Sequence[TreatmentPoint]) -> str:
    """Return the highest and the lowest mean difference to the reference."""
    ordered = sorted(points, key=lambda point: point.comparison.difference if point.comparison else 0.0)
    if len(ordered) == 1 and ordered[0].comparison:
        (point,) = ordered
        return (
            f"The mean difference of {escape_invisible(point.treatment)} to {escape_invisible(summary.reference)} with "
            f"{format_percent(point.remaining)}% of the weights is "
            f"{format_number(ordered[0].comparison.difference, signed=True)} points."
        )
    names = [
        f"{format_number(point.comparison.difference, signed=True)} points "
        f"({escape_invisible(point.treatment)} with {format_percent(point.remaining)}% of the weights)"
        for point in (ordered[-1], ordered[0])
        if point.comparison
    ]
    return f"Mean differences to {escape_invisible(summary.reference)} go from {names[1]} to {names[0]}."


def ranking_takeaway(ranking: Ranking) -> str:
    """Return the first and the last place at the last level; all treatments that share the first place are named."""
    level = ranking.levels[-1]
    first, last = level.first_places, level.places[-1]
    remaining = format_percent(level.weights_remaining_percent)
    best = format_number(first[0].mean_rank)
    if len(first) == len(level.places):
        return f"With {remaining}% of the weights, all treatments have the same mean rank, {best}."
    names = join_names([escape_invisible(place.treatment) for place in first])
    return (
        f"With {remaining}% of the weights, {names} {'has' if len(first) == 1 else 'have'} the best mean rank, "
        f"{best}, and {escape_invisible(last.treatment)} the last, {format_number(last.mean_rank)}."
    )


def supermasks_takeaway(results: Sequence[MaskResult]) -> str:
    """Return the network with the highest mean accuracy."""
    best = max(results, key=lambda result: result.interval.mean)
    return (
        f"The highest mean test accuracy is {_percent(best.interval.mean)}, of {escape_invisible(best.treatment)} with "
        f"{format_percent(best.density)}% of the weights in the mask."
    )


def learning_takeaway(curves: Sequence[Row]) -> str:
    """Return the highest mean validation accuracy at the end of a curve."""
    last = {str(row["treatment"]): row for row in sorted(curves, key=lambda row: int(row["iteration"] or 0))}
    best = max(last.values(), key=lambda row: float(row["mean"] or 0))
    return (
        f"At the end of learning, {escape_invisible(str(best['treatment']))} has the highest mean validation accuracy, "
        f"{_percent(float(best['mean'] or 0))}."
    )


def heuristic_takeaway(points: Sequence[Row]) -> str:
    """Return the heuristic mask with the highest mean accuracy of an untrained network."""
    best = max(points, key=lambda row: float(row["mean"] or 0))
    remaining = format_percent(float(best["weights_remaining_percent"] or 0))
    criterion, weights = (escape_invisible(str(best[name])) for name in ("criterion", "mask1"))
    return (
        f"The highest mean test accuracy without training is {_percent(float(best['mean'] or 0))}: {criterion} on "
        f"{weights} weights, {best['schedule']}, with {remaining}% of them left."
    )


def _last_common_level(summary: Summary) -> list[TreatmentPoint]:
    """Return the points of the deepest level that every treatment with points has; empty if there is none.

    Only those whose densities are alike: treatments of other networks or scopes may have more weights at one level.
    """
    series = [points for points in summary.series.values() if points]
    common = set.intersection(*({point.level for point in points} for points in series)) if series else set()
    if not common:
        return []
    level = [point for points in series for point in points if point.level == max(common)]
    return points_of_equal_density(level, summary.reference)


def _mean(point: TreatmentPoint) -> str:
    return f"{_percent(point.interval.mean)} ({escape_invisible(point.treatment)})"


def _dense(summary: Summary, text: str) -> str:
    return text.format(_percent(summary.dense.interval.mean)) if summary.dense else ""


def _percent(value: float) -> str:
    return f"{format_number(value)}%"
