"""Ranking figure: ranks of the treatments within each seed, level by level, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from supermask.analysis.stats import mean_interval
from supermask.analysis.summary import DENSITY_TOLERANCE, Summary, TreatmentPoint, summarize
from supermask.core.errors import UserError
from supermask.core.text import Row, format_percent
from supermask.reporting.figures.accuracy import ACCURACY, MARKER
from supermask.reporting.figures.caption import data_notes, excluded_note, format_seeds, join_names, join_sentences
from supermask.reporting.figures.layout import FigurePage, fit_labels, text_measure
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import (
    DEFAULT_OPTIONS,
    INK,
    FigureOptions,
    LineStyle,
    assign_styles,
    style_context,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 5
"""Levels drawn at most."""

MIN_PANEL_WIDTH, ROW_HEIGHT, HEADING_HEIGHT, AXIS_HEIGHT, GAP, LABEL_WIDTH = 0.8, 0.175, 0.20, 0.40, 0.10, 2.1
"""Inches: a panel at least, a treatment's row, panel titles, the x axis, between panels, a row label at most."""


@dataclass(frozen=True)
class RankedTreatment:
    """Rank of a treatment at one level; 1 is the highest accuracy, and equal values share the mean of their ranks."""

    treatment: str
    mean: float
    """Mean accuracy over the ranked seeds in percent."""
    rank_of_mean: float
    mean_rank: float
    """Mean of the ranks within each seed."""
    low95: float | None
    """95% t-interval of `mean_rank`, clipped to the first and last rank; None with one seed."""
    high95: float | None
    best_rank: float
    worst_rank: float


@dataclass(frozen=True)
class RankedLevel:
    """Ranked treatments of one level, best first."""

    level: int
    weights_remaining_percent: float
    seeds: list[int]
    """Seeds in which every treatment ranked here has a value."""
    places: list[RankedTreatment]

    @property
    def first_places(self) -> list[RankedTreatment]:
        """The treatments with the best mean rank: several if they tie."""
        best = min(place.mean_rank for place in self.places)
        return [place for place in self.places if math.isclose(place.mean_rank, best)]


@dataclass(frozen=True)
class Ranking:
    """Ranking of the treatments at every level."""

    levels: list[RankedLevel]
    unranked: list[tuple[str, int]]
    """(treatment, level) that are not ranked because their density differs from that of the others."""


def compute_ranking(summary: Summary) -> Ranking:
    """Rank the treatments within each seed and average the ranks over seeds, at each level by itself.

    Runs of one seed share initial weights and data order, so treatments are compared within a seed. At each level the
    treatments with the density of the reference are ranked (the most frequent density if the reference is missing), in
    the seeds in which all of them have finished. Levels with fewer than two such treatments are omitted.
    Source: Zhou et al. 2019, authors' response, items 2 and 4: levels are never pooled.
    """
    levels: list[RankedLevel] = []
    unranked: list[tuple[str, int]] = []
    for level in sorted({point.level for point in summary.points}):
        points = [point for point in summary.points if point.level == level]
        comparable = points_of_equal_density(points, summary.reference)
        unranked += [(point.treatment, level) for point in points if point not in comparable]
        seeds = sorted(set.intersection(*(set(point.values) for point in comparable)))
        if len(comparable) > 1 and seeds:
            ranked = _rank_treatments(comparable, seeds)
            levels.append(RankedLevel(level, comparable[0].remaining, seeds, ranked))
    return Ranking(levels, unranked)


def points_of_equal_density(points: Sequence[TreatmentPoint], reference: str) -> list[TreatmentPoint]:
    """Return the points of a level with the density of the reference; without it, of the most frequent density."""

    def similar_to(point: TreatmentPoint) -> list[TreatmentPoint]:
        return [p for p in points if math.isclose(p.remaining, point.remaining, rel_tol=DENSITY_TOLERANCE)]

    most = max(map(similar_to, points), key=len)
    return next((similar_to(point) for point in points if point.treatment == reference), most)


def _rank_treatments(points: Sequence[TreatmentPoint], seeds: Sequence[int]) -> list[RankedTreatment]:
    ranks_by_seed = [ranks([point.values[seed] for point in points]) for seed in seeds]
    means = [math.fsum(point.values[seed] for seed in seeds) / len(seeds) for point in points]
    ranked = []
    for index, (point, rank_of_mean) in enumerate(zip(points, ranks(means), strict=True)):
        seed_ranks = [seed_rank[index] for seed_rank in ranks_by_seed]
        interval = mean_interval(seed_ranks)
        ranked.append(
            RankedTreatment(
                point.treatment,
                mean=means[index],
                rank_of_mean=rank_of_mean,
                mean_rank=interval.mean,
                low95=None if interval.low is None else max(1.0, interval.low),
                high95=None if interval.high is None else min(float(len(points)), interval.high),
                best_rank=min(seed_ranks),
                worst_rank=max(seed_ranks),
            )
        )
    return sorted(ranked, key=lambda treatment: (treatment.mean_rank, treatment.rank_of_mean))


def ranks(values: Sequence[float]) -> list[float]:
    """Return 1 + (number of higher values) + (number of other equal values) / 2 for each value."""
    return [1 + sum(v > value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]


def ranking_figure(
    rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str, options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw the mean rank of each treatment by test accuracy at early stopping, with its 95% t-interval.

    Up to `MAX_PANELS` levels are drawn, with the treatments in the order of their mean rank at the last one. The CSV
    has all levels. Raises UserError as `summarize` does, and if no level has two treatments to rank.
    Source: Zhou et al. 2019, authors' response, items 2 and 4.
    """
    return draw_ranking(summarize(rows, treatments, reference, ACCURACY), title, options)


def draw_ranking(summary: Summary, title: str, options: FigureOptions = DEFAULT_OPTIONS) -> RenderedFigure:
    """Draw the ranking of a summary of accuracies; see `ranking_figure`."""
    ranking = compute_ranking(summary)
    if not ranking.levels:
        raise UserError("there is nothing to rank: no level has finished runs of two treatments in one seed")
    max_panels = min(MAX_PANELS, max(1, int((options.layout_width - LABEL_WIDTH) / MIN_PANEL_WIDTH)))
    levels = _select_levels(ranking.levels, max_panels)
    panels = "one panel per level, by weights remaining"
    if len(levels) < len(ranking.levels):
        panels += f"; {len(levels)} of {len(ranking.levels)} levels"
    caption = ranking_caption(summary, ranking, panels, f"Bold: the reference, {summary.reference}.")
    with style_context(options):
        page = _draw(summary, levels, title, caption, options)
    return RenderedFigure(page.finish(), page.caption, _data_rows(ranking))


def _select_levels(levels: Sequence[RankedLevel], max_panels: int) -> list[RankedLevel]:
    """Return at most `max_panels` levels at even steps, including the first and, if there are two or more, the last."""
    count = min(len(levels), max_panels)
    return [levels[round(index * (len(levels) - 1) / max(count - 1, 1))] for index in range(count)]


def _draw(
    summary: Summary, levels: Sequence[RankedLevel], title: str, caption: str, options: FigureOptions
) -> FigurePage:
    # Best first at the last level; treatments that are missing there follow in their order at earlier levels.
    order = list(dict.fromkeys(ranked.treatment for level in reversed(levels) for ranked in level.places))
    styles = assign_styles(list(summary.series))
    names = fit_labels(order, LABEL_WIDTH)
    left = 0.2 + max(text_measure()(name, 7.0) for name in names)
    width = (options.layout_width - left - 0.08 - GAP * (len(levels) - 1)) / len(levels)
    height = ROW_HEIGHT * len(order) + 0.06
    page = FigurePage(title, caption, HEADING_HEIGHT + height + AXIS_HEIGHT, options, order)
    for row, (label, name) in enumerate(zip(order, names, strict=True)):
        weight = "bold" if label == summary.reference else "normal"
        middle = HEADING_HEIGHT + 0.03 + (row + 0.5) * ROW_HEIGHT
        page.text(left - 0.08, middle, name, 7.0, ha="right", va="center_baseline", fontweight=weight)
    last_rank = max(len(level.places) for level in levels)
    tick_step = max(1, math.ceil((last_rank - 1) / max(1, int(width / 0.22))))
    for column, level in enumerate(levels):
        x = left + column * (width + GAP)
        axes = page.axes(x, HEADING_HEIGHT, width, height, grid=True)
        heading = f"{format_percent(level.weights_remaining_percent)}%"
        page.text(x + width / 2, HEADING_HEIGHT - 0.05, heading, ha="center", va="bottom")
        axes.set(xlim=(0.5, last_rank + 0.5), ylim=(len(order) + 0.17, -0.17))
        axes.set_xticks(range(1, last_rank + 1, tick_step))
        axes.set_yticks([row + 0.5 for row in range(len(order))], [])
        axes.tick_params(axis="y", length=0)
        _draw_level(axes, level, order, styles)
    middle, bottom = left + (page.width - left - 0.08) / 2, HEADING_HEIGHT + height
    page.text(middle, bottom + 0.22, "Mean rank (1 is best)", 7.5, ha="center")
    return page


def _draw_level(axes: Axes, level: RankedLevel, order: Sequence[str], styles: dict[str, LineStyle]) -> None:
    for ranked in level.places:
        style, y = styles[ranked.treatment], order.index(ranked.treatment) + 0.5
        spread: dict[str, Any] = {"color": style.color, "linewidth": 2.6, "alpha": 0.22, "zorder": 2}
        axes.plot([ranked.best_rank, ranked.worst_rank], [y, y], solid_capstyle="butt", **spread)
        if ranked.low95 is not None and ranked.high95 is not None:
            axes.plot([ranked.low95, ranked.high95], [y, y], color=style.color, linewidth=1.0, zorder=3)
        marker = MARKER | {"markersize": 4.6}
        axes.plot(ranked.mean_rank, y, color=style.color, marker=style.marker, zorder=4, **marker)
    present = {ranked.treatment for ranked in level.places}
    for row in (row for row, label in enumerate(order) if label not in present):
        axes.text(sum(axes.get_xlim()) / 2, row + 0.5, "n/a", ha="center", va="center", fontsize=6, color=INK)


def _data_rows(ranking: Ranking) -> list[Row]:
    rows: list[Row] = []
    for level in ranking.levels:
        common: Row = {"level": level.level, "weights_remaining_percent": level.weights_remaining_percent}
        common |= {"measure": ACCURACY.column, "n": len(level.seeds), "treatments": len(level.places)}
        rows += [common | asdict(ranked) for ranked in level.places]
    return rows


def ranking_caption(summary: Summary, ranking: Ranking, layout: str, reference: str) -> str:
    """Return the caption of a ranking; `layout` is a clause on the panels, `reference` a sentence on the reference."""
    counts = [len(level.seeds) for level in ranking.levels]
    ranked = {treatment.treatment for level in ranking.levels for treatment in level.places}
    unranked = [label for label in summary.series if label not in ranked]
    subject = f"Network {summary.subject}: " if summary.subject else ""
    finished_seeds = {
        level.level: {seed for point in summary.points if point.level == level.level for seed in point.values}
        for level in ranking.levels
    }
    fewer = any(len(level.seeds) < len(finished_seeds[level.level]) for level in ranking.levels)
    return join_sentences(
        [
            f"{subject}treatments ranked by test accuracy at early stopping within each seed; mean rank over "
            f"{format_seeds(counts)}; {layout}.",
            "No interval."
            if max(counts) < 2
            else "Thin line: 95% t-interval of the mean rank (none if the rank is the same "
            "in every seed); pale bar: best to worst rank in a seed.",
            f"Each level by itself; ranks are not tested. {reference}",
            "Seeds in which some treatment has not finished are not ranked." if fewer else "",
            f"Not ranked, because the density differs or runs are missing: {'; '.join(unranked)}." if unranked else "",
            excluded_note(summary),
            *data_notes(summary),
            _takeaway(ranking),
        ]
    )


def _takeaway(ranking: Ranking) -> str:
    """State the best treatments at the first and at the last level that are ranked."""
    if not ranking.levels:
        return ""
    shares: dict[str, list[str]] = {}
    for level in dict.fromkeys((ranking.levels[0].level, ranking.levels[-1].level)):
        ranked = next(item for item in ranking.levels if item.level == level)
        best = ranked.first_places
        share = format_percent(ranked.weights_remaining_percent)
        names = f"{join_names([place.treatment for place in best])} {'is' if len(best) == 1 else 'are'}"
        shares.setdefault(names, []).append(f"at {share}% of the weights (mean rank {best[0].mean_rank:.2g})")
    parts = [f"{names} ranked first {' and '.join(places)}" for names, places in shares.items()]
    return f"Takeaway: {', '.join(parts)}."
