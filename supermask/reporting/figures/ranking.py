"""Which treatment is best, and how sure that is: ranks within each seed, level by level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from supermask.analysis.stats import mean_interval
from supermask.analysis.summary import DENSITY_TOLERANCE, Summary, TreatmentPoint, summarize
from supermask.core.errors import UserError
from supermask.core.text import Row, format_percent, format_range
from supermask.reporting.figures.accuracy import ACCURACY, MARKER
from supermask.reporting.figures.caption import data_notes, excluded_note, join_sentences
from supermask.reporting.figures.layout import FigurePage, fit_text, text_measure
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import INK, WIDTH, assign_styles, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS, ROW_HEIGHT, HEAD, BELOW, GAP, MOST_NAME = 5, 0.175, 0.20, 0.40, 0.10, 2.1
"""Levels side by side; inches: a treatment's row, heads of panels, the x axis, between panels, a row's name."""


@dataclass(frozen=True)
class RankedTreatment:
    """A treatment's place at one level; 1 is the highest accuracy, and equal ones share the mean of their places."""

    treatment: str
    mean: float
    """Of the seeds that are ranked, in the measure's unit: percent."""
    rank_of_mean: float
    mean_rank: float
    """Of the ranks within each seed."""
    low95: float | None
    """Of the t-interval of `mean_rank`, cut off at the first and the last place; None with one seed."""
    high95: float | None
    best_rank: float
    worst_rank: float


@dataclass(frozen=True)
class RankedLevel:
    """The treatments of one level, best first."""

    level: int
    weights_remaining_percent: float
    seeds: list[int]
    """Those in which every treatment ranked here has a value."""
    places: list[RankedTreatment]


@dataclass(frozen=True)
class Ranking:
    """By level; and the (treatment, level) that are not ranked because nothing else has as many weights remaining."""

    levels: list[RankedLevel]
    unranked: list[tuple[str, int]]


def compute_ranking(summary: Summary) -> Ranking:
    """Ranks within each seed, their mean over seeds and its 95% t-interval; each level by itself, never pooled.

    Runs of one seed share initial weights and data order, so that treatments are compared within it. At a level those
    with as many weights remaining as the reference are ranked (as the most, where it is not there), in the seeds in
    which all of them have finished. Levels with fewer than two treatments are left out. Source: paper.md section 7.
    """
    levels: list[RankedLevel] = []
    apart: list[tuple[str, int]] = []
    for level in sorted({point.level for point in summary.points}):
        points = [point for point in summary.points if point.level == level]
        alike = _same_density(points, summary.reference)
        apart += [(point.treatment, level) for point in points if point not in alike]
        seeds = sorted(set.intersection(*(set(point.values) for point in alike)))
        if len(alike) > 1 and seeds:
            levels.append(RankedLevel(level, alike[0].remaining, seeds, _places(alike, seeds)))
    return Ranking(levels, apart)


def _same_density(points: Sequence[TreatmentPoint], reference: str) -> list[TreatmentPoint]:
    def like(one: TreatmentPoint) -> list[TreatmentPoint]:
        return [p for p in points if math.isclose(p.remaining, one.remaining, rel_tol=DENSITY_TOLERANCE)]

    return next((like(p) for p in points if p.treatment == reference), max(map(like, points), key=len))


def _places(points: Sequence[TreatmentPoint], seeds: Sequence[int]) -> list[RankedTreatment]:
    within = [ranks([point.values[seed] for point in points]) for seed in seeds]
    means = [math.fsum(point.values[seed] for seed in seeds) / len(seeds) for point in points]
    found = []
    for place, (point, of_mean) in enumerate(zip(points, ranks(means), strict=True)):
        own = [by_treatment[place] for by_treatment in within]
        interval = mean_interval(own)
        low = None if interval.low is None else max(1.0, interval.low)
        high = None if interval.high is None else min(float(len(points)), interval.high)
        found.append(
            RankedTreatment(
                point.treatment,
                means[place],
                of_mean,
                interval.mean,
                low,
                high,
                best_rank=min(own),
                worst_rank=max(own),
            )
        )
    return sorted(found, key=lambda each: (each.mean_rank, each.rank_of_mean))


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the highest; 1 + how many are higher + half of how many others are equal."""
    return [1 + sum(v > value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]


def ranking_figure(rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str) -> RenderedFigure:
    """Mean rank of each treatment by test accuracy at early stopping, with its 95% t-interval, at up to five levels.

    Treatments stand in the order of the mean rank at the last level. The CSV has all levels. Raises UserError as
    `summarise`, and where no level has two treatments to rank. Source: paper.md section 7.
    """
    summary = summarize(rows, treatments, reference, ACCURACY)
    ranking = compute_ranking(summary)
    if not ranking.levels:
        raise UserError("there is nothing to rank: no level has finished runs of two treatments in one seed")
    shown = _select_levels(ranking.levels)
    panels = "a panel a level, by weights remaining"
    if len(shown) < len(ranking.levels):
        panels += f"; {len(shown)} of {len(ranking.levels)} levels"
    text = ranking_caption(summary, ranking, panels, f"Bold: the reference, {summary.reference}.")
    with style_context():
        return RenderedFigure(_draw(summary, shown, title, text), text, _data_rows(ranking))


def _select_levels(levels: Sequence[RankedLevel]) -> list[RankedLevel]:
    """At most `MOST_PANELS` of them, first and last included, at steps as even as can be."""
    count = min(len(levels), MOST_PANELS)
    return [levels[round(place * (len(levels) - 1) / max(count - 1, 1))] for place in range(count)]


def _draw(summary: Summary, shown: Sequence[RankedLevel], title: str, text: str) -> Any:
    order = list(dict.fromkeys(each.treatment for level in reversed(shown) for each in level.places))
    chosen = assign_styles(list(summary.series))
    names = [fit_text(label, MOST_NAME) for label in order]
    left = 0.2 + max(text_measure()(name, 7.0) for name in names)
    width = (WIDTH - left - 0.08 - GAP * (len(shown) - 1)) / len(shown)
    height = ROW_HEIGHT * len(order) + 0.06
    page = FigurePage(title, text, HEAD + height + BELOW)
    for row, (label, name) in enumerate(zip(order, names, strict=True)):
        weight = "bold" if label == summary.reference else "normal"
        middle = HEAD + 0.03 + (row + 0.5) * ROW_HEIGHT
        page.text(left - 0.08, middle, name, 7.0, ha="right", va="center_baseline", fontweight=weight)
    for column, level in enumerate(shown):
        x = left + column * (width + GAP)
        axes = page.axes(x, HEAD, width, height, grid=True)
        page.text(
            x + width / 2, HEAD - 0.05, f"{format_percent(level.weights_remaining_percent)}%", ha="center", va="bottom"
        )
        last = max(len(level.places) for level in shown)
        axes.set(xlim=(0.5, last + 0.5), ylim=(len(order) + 0.17, -0.17))
        step = max(1, math.ceil((last - 1) / max(1, int(width / 0.22))))
        axes.set_xticks(range(1, last + 1, step))
        axes.set_yticks([row + 0.5 for row in range(len(order))], [])
        axes.tick_params(axis="y", length=0)
        _draw_level(axes, level, order, chosen)
    page.text(left + (WIDTH - left - 0.08) / 2, HEAD + height + 0.22, "Mean rank (1 is best)", 7.5, ha="center")
    return page.figure


def _draw_level(axes: Axes, level: RankedLevel, order: Sequence[str], chosen: dict[str, Any]) -> None:
    for each in level.places:
        look, y = chosen[each.treatment], order.index(each.treatment) + 0.5
        spread: dict[str, Any] = {"color": look.colour, "linewidth": 2.6, "alpha": 0.22, "zorder": 2}
        axes.plot([each.best_rank, each.worst_rank], [y, y], solid_capstyle="butt", **spread)
        if each.low95 is not None and each.high95 is not None:
            axes.plot([each.low95, each.high95], [y, y], color=look.colour, linewidth=1.0, zorder=3)
        axes.plot(each.mean_rank, y, color=look.colour, marker=look.marker, zorder=4, **(MARKER | {"markersize": 4.6}))
    missing = [row for row, label in enumerate(order) if label not in {each.treatment for each in level.places}]
    for row in missing:
        axes.text(sum(axes.get_xlim()) / 2, row + 0.5, "n/a", ha="center", va="center", fontsize=6, color=INK)


def _data_rows(ranking: Ranking) -> list[Row]:
    rows: list[Row] = []
    for level in ranking.levels:
        about: Row = {"level": level.level, "weights_remaining_percent": level.weights_remaining_percent}
        about |= {"measure": ACCURACY.column, "n": len(level.seeds), "treatments": len(level.places)}
        rows += [about | asdict(each) for each in level.places]
    return rows


def ranking_caption(summary: Summary, ranking: Ranking, layout: str, reference: str) -> str:
    """What has to be known of a picture of a ranking; `layout` and `reference` are a clause and a sentence on how."""
    counts = [len(level.seeds) for level in ranking.levels]
    ranked = {each.treatment for level in ranking.levels for each in level.places}
    apart = [label for label in summary.series if label not in ranked]
    subject = f"Network {summary.subject}: " if summary.subject else ""
    seeds = "1 seed" if max(counts) == 1 else f"n = {format_range(counts)} seeds"
    seen = {
        level.level: {s for p in summary.points if p.level == level.level for s in p.values} for level in ranking.levels
    }
    fewer = any(len(level.seeds) < len(seen[level.level]) for level in ranking.levels)
    return join_sentences(
        [
            f"{subject}treatments ranked by test accuracy at early stopping within each seed; mean rank over {seeds}; "
            f"{layout}.",
            "No interval."
            if max(counts) < 2
            else "Thin line: 95% t-interval of the mean rank (none where it is the same "
            "in every seed); pale bar: best to worst rank of a seed.",
            f"Each level by itself; nothing is tested here. {reference}",
            "Seeds in which some treatment has not finished are not ranked." if fewer else "",
            f"Not ranked, for other weights remaining or want of runs: {'; '.join(apart)}." if apart else "",
            excluded_note(summary),
            *data_notes(summary),
        ]
    )
