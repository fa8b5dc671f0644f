"""What the report says of one study: its figures, its tables, and its settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from supermask.analysis.summary import Summary, data_rows, summarize
from supermask.core.errors import sanitize
from supermask.core.text import Row, format_range
from supermask.datasets.specs import DATASETS
from supermask.reporting.figures import has_learned_masks, is_heuristic
from supermask.reporting.figures.accuracy import ACCURACY, EARLY_STOP, unconverged_note
from supermask.reporting.figures.caption import data_notes, excluded_note, join_sentences, summary_caption
from supermask.reporting.figures.learned import supermask_caption, supermask_results, supermask_rows
from supermask.reporting.figures.learning_curves import average_curves, curves_caption
from supermask.reporting.figures.ranking import compute_ranking, ranking_caption
from supermask.reporting.figures.table_one import has_table_one, table_one_caption, table_one_rows
from supermask.reporting.figures.untrained import heuristic_caption, heuristic_points
from supermask.reporting.html.provenance import FlaggedRun, count_blocked, diverged_runs
from supermask.reporting.html.tables import (
    Table,
    learned_masks_table,
    runs_table,
    summary_table,
    table_one,
    untrained_table,
)
from supermask.reporting.plotly.accuracy import LAYOUT, MOST_IN_MAP, accuracy_plot, overview_plot, ranking_plot
from supermask.reporting.plotly.masks import learned_masks_plot, learning_plot, untrained_plot
from supermask.store import Store
from supermask.store.rows import STATUSES, learning_curve_rows
from supermask.store.tables import treatment_labels
from supermask.study.plan import Plan


@dataclass(frozen=True)
class Plot:
    """A figure of a study. `name` is that of `supermask figure`: `accuracy`, `supermasks` ..."""

    id: str
    name: str
    title: str
    caption: str
    figure: dict[str, Any]

    @property
    def height(self) -> int:
        """Pixels that are kept free until it is drawn."""
        return int(self.figure["layout"].get("meta", {}).get("height", 470)) + 60


@dataclass(frozen=True)
class StudySection:
    """A study in a report. Its `id` holds nothing of its name but letters, digits and dashes."""

    id: str
    name: str
    title: str
    network: str
    dataset: str
    seeds: tuple[int, ...]
    treatments: int
    counts: dict[str, int]
    """Status -> runs, of those that there are."""
    diverged: tuple[FlaggedRun, ...]
    blocked: int
    """Runs that cannot be done because one before them diverged."""
    plots: tuple[Plot, ...]
    tables: tuple[Table, ...]
    settings: tuple[tuple[str, str], ...]
    """Key -> value, as an override would write them; without treatments."""
    file: dict[str, Any]
    """The whole study with nothing left open, itself a valid study file."""

    @property
    def finished(self) -> int:
        """Runs that a mean can be made of."""
        return self.counts.get("finished", 0)

    @property
    def runs(self) -> int:
        """All of the study's."""
        return sum(self.counts.values())

    @property
    def subject(self) -> str:
        """`fc-300-100 on mnist`."""
        return f"{self.network} on {self.dataset}"


def build_study_section(part_id: str, plan: Plan, rows: list[Row], store: Store) -> StudySection:
    """What there is to say of a study's rows; without figures and means where no run has finished."""
    study = plan.study
    counts = Counter(str(row["status"]) for row in rows)
    name = sanitize(study.name)
    plots, tables = _results(part_id, plan, rows, store) if counts["finished"] else ([], [])
    data = study.as_data()
    return StudySection(
        id=part_id,
        name=study.name,
        title=study.title or name,
        network=next(iter(plan.runs.values())).network,
        dataset=study.dataset,
        seeds=study.seeds,
        treatments=len(study.treatments),
        counts={status: counts[status] for status in STATUSES if counts[status]},
        diverged=diverged_runs(rows),
        blocked=count_blocked(rows),
        plots=tuple(plots),
        tables=(*tables, runs_table(part_id, study.name, rows)),
        settings=tuple(_settings({key: value for key, value in data.items() if key != "treatments"})),
        file=data,
    )


def _results(part_id: str, plan: Plan, rows: list[Row], store: Store) -> tuple[list[Plot], list[Table]]:
    """Supermasks, where there are any, then what was trained: the figures of `supermask figure`, and their numbers."""
    study, labels = plan.study, [treatment.label for treatment in plan.study.treatments]
    plots: list[Plot] = []
    tables: list[Table] = []

    def plot(name: str, title: str, told: str, figure: dict[str, Any]) -> None:
        plots.append(Plot(f"{part_id}-{name}", name, title, told, figure))

    dense = _accuracies([row for row in rows if row["level"] == 0])
    heuristic = heuristic_points(rows) if any(is_heuristic(row) for row in rows) else []
    bars = supermask_results(rows, labels, study.reference) if has_learned_masks(rows) else []
    if bars:
        figure = learned_masks_plot(bars, study.reference, dense, 100.0 / DATASETS[study.dataset].classes)
        plot("supermasks", "Supermasks", supermask_caption(rows, bars, study.reference), figure)
        if has_table_one(labels):
            first = table_one_rows(rows)
            tables.append(table_one(part_id, study.name, first, table_one_caption(rows, first)))
        tables.append(learned_masks_table(part_id, study.name, study.reference, supermask_rows(bars)))
        points = learning_curve_rows(plan, store)
        if curve := average_curves(points):
            plot("learning", "How fast the masks are learned", curves_caption(points), learning_plot(curve))
    elif heuristic:
        plot("heuristic", "Heuristic supermasks", heuristic_caption(rows), untrained_plot(heuristic, dense))
        tables.append(untrained_table(part_id, study.name, heuristic))
    trained, compared = _trained(part_id, plan, rows, alone=not plots)
    # What a figure compares with another reference than the study's is in the table as in the figure.
    own = {(row["treatment"], row["level"]): row for row in compared}
    means = data_rows(summarize(rows, labels, study.reference, ACCURACY))
    means = [own.get((row["treatment"], row["level"]), row) for row in means]
    tables.append(summary_table(part_id, study.name, means))
    return [*plots, *trained], tables


def _trained(part_id: str, plan: Plan, rows: list[Row], alone: bool) -> tuple[list[Plot], list[Row]]:
    """Of the treatments whose levels are trained, if any has a finished run, or if there is nothing else to show:
    figures, and the numbers behind the one of accuracies.
    """
    study = plan.study
    weights = [row for row in rows if not row.get("supermask")]
    trained = [t.label for t in study.treatments if t.trained and t.num_levels(study.prune)]
    done = {label for row in weights if row["status"] == "finished" for label in treatment_labels(row)}
    if not trained or not (alone or done.intersection(trained)):
        return [], []
    reference = study.reference if study.reference in trained else trained[0]
    summary = summarize(weights, trained, reference, ACCURACY)
    stops = summarize(weights, trained, reference, EARLY_STOP)
    about = [unconverged_note(weights)]
    plots = [Plot(f"{part_id}-accuracy", "accuracy", "Test accuracy", summary_caption(summary), accuracy_plot(summary))]
    shown = [label for label in trained if summary.series[label]]
    if any(point.comparison for point in summary.points) and len(shown) <= MOST_IN_MAP:
        figure, limit = overview_plot(summary, shown)
        plots.append(
            Plot(
                f"{part_id}-overview",
                "overview",
                "All treatments at all levels",
                _map_caption(summary, limit),
                figure,
            )
        )
    ranking = compute_ranking(summary)
    if ranking.levels and 2 < len(shown) <= MOST_IN_MAP:
        told = ranking_caption(summary, ranking, LAYOUT, f"(ref.): the reference, {reference}.")
        figure = ranking_plot(summary, ranking)
        plots.append(Plot(f"{part_id}-ranking", "ranking", "Which treatment is best", told, figure))
    stop = Plot(
        f"{part_id}-early-stop",
        "early-stop",
        "Early-stopping iteration",
        summary_caption(stops, about),
        accuracy_plot(stops),
    )
    return [*plots, stop], data_rows(summary)


def _map_caption(summary: Summary, limit: float) -> str:
    n = format_range([point.interval.n for point in summary.points])
    told = (
        f"Each cell: test accuracy at that level minus that of {summary.reference}, in percentage points, mean over "
        f"n = {n} seeds. Blue is better, orange worse; the colours end at ±{limit:g} points. ★: p < 0.05 after Holm's "
        "correction over the levels of the treatment."
    )
    apart = any(point.comparison is None and point.treatment != summary.reference for point in summary.points)
    dash = f"–: not compared, as {summary.reference} has no run with as many weights there." if apart else ""
    return join_sentences([told, dash, excluded_note(summary), *data_notes(summary)])


def _accuracies(rows: Sequence[Row]) -> list[float]:
    """Of the finished ones, percent."""
    return [100.0 * float(row["early_stop_test_accuracy"] or 0) for row in rows if row["status"] == "finished"]


def _settings(data: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            found += _settings(value, f"{above}{key}.")
        else:
            found.append((above + key, _format_value(value)))
    return found


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_format_value, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
