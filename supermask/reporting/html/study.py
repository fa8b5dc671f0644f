"""Section of the report on one study: figures, tables and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from supermask.analysis.comparisons import ResultComparison, published_rows
from supermask.analysis.summary import Summary, data_rows, summarize
from supermask.core.errors import sanitize
from supermask.core.text import Row, pluralize
from supermask.reporting.figures import has_learned_masks, is_heuristic
from supermask.reporting.figures.accuracy import ACCURACY
from supermask.reporting.figures.caption import (
    data_notes,
    excluded_note,
    format_seeds,
    join_sentences,
    summary_caption,
    takeaway,
)
from supermask.reporting.figures.catalog import TrainedSummaries, summarize_trained
from supermask.reporting.figures.comparison import comparison_caption
from supermask.reporting.figures.learned import supermask_caption, supermask_results, supermask_rows
from supermask.reporting.figures.learning_curves import average_curves, curve_notes, curves_caption
from supermask.reporting.figures.ranking import compute_ranking, ranking_caption
from supermask.reporting.figures.table_one import has_table_one, table_one_caption, table_one_rows
from supermask.reporting.figures.untrained import heuristic_caption, heuristic_points
from supermask.reporting.figures.weight_changes import (
    fact_points,
    fact_rows,
    has_weight_changes,
    weight_changes_caption,
    weight_changes_takeaway,
)
from supermask.reporting.html.provenance import FlaggedRun, count_blocked, diverged_runs
from supermask.reporting.html.tables import (
    Table,
    comparison_table,
    learned_masks_table,
    published_table,
    runs_table,
    summary_table,
    table_one,
    untrained_table,
    weight_changes_table,
)
from supermask.reporting.html.takeaways import (
    accuracy_takeaway,
    heuristic_takeaway,
    iterations_takeaway,
    learning_takeaway,
    overview_takeaway,
    ranking_takeaway,
    supermasks_takeaway,
)
from supermask.reporting.plotly.accuracy import (
    MAX_TREATMENTS,
    RANKING_LAYOUT,
    accuracy_plot,
    overview_plot,
    ranking_plot,
)
from supermask.reporting.plotly.comparison import comparison_plot
from supermask.reporting.plotly.masks import learned_masks_plot, learning_plot, untrained_plot
from supermask.reporting.plotly.weight_changes import weight_changes_plot
from supermask.reporting.status import environment_note
from supermask.store import Store
from supermask.store.rows import STATUSES, learning_curve_rows
from supermask.store.tables import DENSE, treatment_labels
from supermask.study import Study
from supermask.study.plan import Plan

NO_EARLY_STOP = (
    "Early-stopping iteration: {} There is no figure: most of these runs end before their validation loss rises, so "
    "their iteration is the length of the training and not a speed. More epochs show it."
)
NO_ITERATIONS = "Early-stopping iteration: the rows do not have it, so there is no figure."


@dataclass(frozen=True)
class Plot:
    """An interactive figure of a study."""

    id: str
    name: str
    """Name of the figure in `supermask figure`, such as `accuracy`."""
    title: str
    caption: str
    figure: dict[str, Any]
    takeaway: str = ""
    """Sentence on what the figure shows."""

    @property
    def height(self) -> int:
        """Pixels reserved for the figure until it is drawn."""
        return int(self.figure["layout"].get("meta", {}).get("height", 470)) + 60


@dataclass(frozen=True)
class StudySection:
    """A study in a report."""

    id: str
    """Element id: letters, digits and dashes."""
    name: str
    title: str
    network: str
    dataset: str
    seeds: tuple[int, ...]
    treatments: int
    counts: dict[str, int]
    """Status -> number of runs, for statuses that occur."""
    diverged: tuple[FlaggedRun, ...]
    blocked: int
    """Runs that cannot start because an ancestor diverged."""
    plots: tuple[Plot, ...]
    no_early_stop: str
    """Sentence in place of the figure of early-stopping iterations if there is none, else empty."""
    tables: tuple[Table, ...]
    environment_note: str
    """Sentence on the environments if the runs come from several, else empty."""
    settings: tuple[tuple[str, str], ...]
    """(key, value) as in overrides, without the treatments."""
    file: dict[str, Any]
    """The study with every key set; a valid study file."""
    difference: str = ""
    """Settings that tell it from the other studies of its name on the page, such as `dataset=mnist`; else empty."""

    @property
    def finished(self) -> int:
        """Number of finished runs."""
        return self.counts.get("finished", 0)

    @property
    def runs(self) -> int:
        """Number of runs of the study."""
        return sum(self.counts.values())

    @property
    def subject(self) -> str:
        """Network and data set: `fc-300-100 on mnist`."""
        return f"{self.network} on {self.dataset}"


def build_study_section(part_id: str, plan: Plan, rows: list[Row], store: Store | None) -> StudySection:
    """Build the section of a study from its rows; it has no figures and means if no run has finished."""
    study = plan.study
    counts = Counter(str(row["status"]) for row in rows)
    name = sanitize(study.name)
    plots, tables = _results(part_id, plan, rows, store) if counts["finished"] else ([], [])
    has_trained_figures = any(plot.name == "accuracy" for plot in plots)
    trained = summarize_trained(plan, rows, required=True) if has_trained_figures else None
    data = study.as_data()
    return StudySection(
        id=part_id,
        name=study.name,
        title=study.title or name,
        network=", ".join(plan.networks),
        dataset=study.dataset,
        seeds=study.seeds,
        treatments=len(study.treatments),
        counts={status: counts[status] for status in STATUSES if counts[status]},
        diverged=diverged_runs(rows),
        blocked=count_blocked(rows),
        plots=tuple(plots),
        no_early_stop="" if trained is None else _no_early_stop(trained),
        tables=(*tables, runs_table(part_id, study.name, rows)),
        environment_note=environment_note(rows),
        settings=tuple(_flatten_settings({key: value for key, value in data.items() if key != "treatments"})),
        file=data,
    )


def with_comparison(section: StudySection, comparison: ResultComparison) -> StudySection:
    """Return the section with the figure and the table of a comparison with results of others."""
    title = f"Beside the numbers of {sanitize(comparison.source)}"
    caption = comparison_caption(comparison)
    plot = Plot(
        f"{section.id}-compared",
        "compared",
        title,
        caption,
        comparison_plot(comparison),
        " ".join(comparison.summary()),
    )
    table = comparison_table(section.id, section.name, comparison)
    return replace(section, plots=(*section.plots, plot), tables=(table, *section.tables))


def _results(part_id: str, plan: Plan, rows: list[Row], store: Store | None) -> tuple[list[Plot], list[Table]]:
    """Return figures and the tables of their numbers: supermasks first, then trained levels."""
    study, labels = plan.study, [treatment.label for treatment in plan.study.treatments]
    plots: list[Plot] = []
    tables: list[Table] = []

    def add_plot(name: str, title: str, caption: str, figure: dict[str, Any], takeaway: str) -> None:
        plots.append(Plot(f"{part_id}-{name}", name, title, caption, figure, takeaway))

    dense = [
        100.0 * float(row["early_stop_test_accuracy"] or 0)
        for row in rows
        if DENSE in treatment_labels(row) and row["status"] == "finished"
    ]
    heuristic = heuristic_points(rows) if any(is_heuristic(row) for row in rows) else []
    results = supermask_results(rows, labels, study.reference) if has_learned_masks(rows) else []
    if results:
        figure = learned_masks_plot(results, study.reference, dense, 100.0 / plan.spec.classes)
        caption = supermask_caption(rows, results, study.reference)
        add_plot("supermasks", "Supermasks", caption, figure, supermasks_takeaway(results))
        if has_table_one(labels):
            table = table_one_rows(rows)
            tables.append(table_one(part_id, study.name, table, table_one_caption(rows, table)))
        tables.append(learned_masks_table(part_id, study.name, study.reference, supermask_rows(results)))
        points = learning_curve_rows(plan, store)
        if curves := average_curves(points):
            title, takeaway = "Learning curves of the masks", learning_takeaway(curves)
            add_plot(
                "learning", title, curves_caption(points, curve_notes(rows, labels)), learning_plot(curves), takeaway
            )
    elif heuristic:
        figure, takeaway = untrained_plot(heuristic, dense), heuristic_takeaway(heuristic)
        add_plot("heuristic", "Heuristic supermasks", heuristic_caption(rows), figure, takeaway)
        tables.append(untrained_table(part_id, study.name, heuristic))
    summaries = summarize_trained(plan, rows, required=not plots)
    means = data_rows(summarize(rows, labels, study.reference, ACCURACY))
    if summaries:
        plots += _trained_plots(part_id, summaries)
        # A figure may compare with another reference than the study's; the table has the comparison of the figure.
        compared = {(row["treatment"], row["level"]): row for row in data_rows(summaries.accuracy)}
        means = [compared.get((row["treatment"], row["level"]), row) for row in means]
    tables.append(summary_table(part_id, study.name, means))
    if summaries and has_weight_changes(rows):
        facts = fact_points(rows, labels)
        caption = weight_changes_caption(rows, facts)
        takeaway = weight_changes_takeaway(facts).removeprefix("Takeaway: ")
        title = "Ties, sign changes and shrinkage"
        add_plot("weight-changes", title, caption, weight_changes_plot(facts), takeaway[:1].upper() + takeaway[1:])
        tables.append(weight_changes_table(part_id, study.name, fact_rows(facts)))
    if published := published_rows(rows):
        tables.append(published_table(part_id, study.name, published))
    return plots, tables


def _trained_plots(part_id: str, summaries: TrainedSummaries) -> list[Plot]:
    """Return the figures of treatments whose levels are trained."""
    summary, early_stop = summaries.accuracy, summaries.early_stop
    caption = summary_caption(summary)
    takeaway = accuracy_takeaway(summary)
    plots = [Plot(f"{part_id}-accuracy", "accuracy", "Test accuracy", caption, accuracy_plot(summary), takeaway)]
    labels = [label for label, series in summary.series.items() if series]
    if any(point.comparison for point in summary.points) and len(labels) <= MAX_TREATMENTS:
        figure, limit = overview_plot(summary, labels)
        caption = _overview_caption(summary, limit)
        title, takeaway = "All treatments at all levels", overview_takeaway(summary)
        plots.append(Plot(f"{part_id}-overview", "overview", title, caption, figure, takeaway))
    ranking = compute_ranking(summary)
    if ranking.levels and 2 < len(labels) <= MAX_TREATMENTS:
        caption = ranking_caption(summary, ranking, RANKING_LAYOUT, f"(ref.): the reference, {summary.reference}.")
        figure = ranking_plot(summary, ranking)
        title, takeaway = "Ranking of the treatments", ranking_takeaway(ranking)
        plots.append(Plot(f"{part_id}-ranking", "ranking", title, caption, figure, takeaway))
    if early_stop is None or not summaries.converged:
        return plots
    caption = summary_caption(early_stop, [summaries.unconverged])
    figure, takeaway = accuracy_plot(early_stop), iterations_takeaway(early_stop)
    title = "Early-stopping iteration"
    return [*plots, Plot(f"{part_id}-early-stop", "early-stop", title, caption, figure, takeaway)]


def _no_early_stop(summaries: TrainedSummaries) -> str:
    if summaries.early_stop is None:
        return NO_ITERATIONS
    return "" if summaries.converged else NO_EARLY_STOP.format(summaries.unconverged)


def _overview_caption(summary: Summary, limit: float) -> str:
    seeds = format_seeds([point.interval.n for point in summary.points])
    cells = (
        f"Each cell: test accuracy at that level minus that of {summary.reference}, in percentage points, mean over "
        f"{seeds}. Blue: better; orange: worse; the colors end at ±{limit:g} points."
    )
    is_tested = any(point.p_holm is not None for point in summary.points)
    star = "★: p < 0.05 after Holm's correction over the levels of the treatment." if is_tested else ""
    not_compared = any(point.comparison is None and point.treatment != summary.reference for point in summary.points)
    dash = f"–: not compared, {summary.reference} has no run with as many weights remaining." if not_compared else ""
    return join_sentences([cells, star, dash, excluded_note(summary), *data_notes(summary), takeaway(summary)])


MAX_DIFFERENCES = 3
"""Settings that are named to tell two studies of one name apart."""


def tell_apart(studies: Sequence[Study]) -> list[str]:
    """Return per study the settings that differ among the studies of its name; empty for a name that occurs once.

    The first `MAX_DIFFERENCES` settings are named, and the treatments if nothing else differs.
    """
    names = Counter(study.name for study in studies)
    settings = {
        index: dict(_flatten_settings({**study.as_data(), "title": "", "reference": {}}))
        for index, study in enumerate(studies)
        if names[study.name] > 1
    }
    texts = []
    for index, study in enumerate(studies):
        others = [settings[i] for i in settings if i != index and studies[i].name == study.name]
        own = settings.get(index, {})
        differing = [key for key in own if any(other.get(key) != own[key] for other in others)]
        # The list of treatments is too long to be named; it counts if nothing else differs.
        named = [f"{key}={own[key]}" for key in differing if key != "treatments"]
        texts.append(
            ", ".join((named or [pluralize(len(study.treatments), "treatment") for _ in differing])[:MAX_DIFFERENCES])
        )
    return texts


def _flatten_settings(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    settings: list[tuple[str, str]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            settings += _flatten_settings(value, f"{prefix}{key}.")
        else:
            settings.append((prefix + key, _format_value(value)))
    return settings


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_format_value, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
