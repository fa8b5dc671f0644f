"""What the report says of one study: its figures, its tables, and its settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from supermask.datasets.facts import DATASETS
from supermask.figures import has_supermasks, is_heuristic
from supermask.figures.accuracy import ACCURACY, EARLY_STOP, stopped_at_the_end
from supermask.figures.caption import caption, data_notes, joined, left_out, span
from supermask.figures.curves import curve_rows, curves_caption
from supermask.figures.panels import heuristic_caption, heuristic_points
from supermask.figures.points import Summary, data_rows, summarise
from supermask.figures.ranking import ranking_caption, ranking_of
from supermask.figures.supermasks import supermask_bars, supermask_caption, supermask_rows
from supermask.figures.table_one import has_table_one, table_one_caption, table_one_rows
from supermask.plan import Plan
from supermask.report.making import NamedRun, cut_off_of, diverged_of
from supermask.report.mask_plots import heuristic_plot, learning_plot, supermasks_plot
from supermask.report.plots import MOST_IN_MAP, lines_figure, map_figure
from supermask.report.ranking_plot import LAYOUT, ranking_plot
from supermask.report.tables import Table, heuristic_table, networks_table, runs_table, summary_table, table_one
from supermask.rows import STATUSES, curves_of_plan
from supermask.store import Store
from supermask.study.yaml_tree import printable
from supermask.tables import Row, labels_of


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
class StudyPart:
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
    diverged: tuple[NamedRun, ...]
    cut_off: int
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


def study_part(part_id: str, plan: Plan, rows: list[Row], store: Store) -> StudyPart:
    """What there is to say of a study's rows; without figures and means where no run has finished."""
    study = plan.study
    counts = Counter(str(row["status"]) for row in rows)
    name = printable(study.name)
    plots, tables = _results(part_id, plan, rows, store) if counts["finished"] else ([], [])
    data = study.as_data()
    return StudyPart(
        id=part_id,
        name=study.name,
        title=study.title or name,
        network=next(iter(plan.runs.values())).network,
        dataset=study.dataset,
        seeds=study.seeds,
        treatments=len(study.treatments),
        counts={status: counts[status] for status in STATUSES if counts[status]},
        diverged=diverged_of(rows),
        cut_off=cut_off_of(rows),
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
    bars = supermask_bars(rows, labels, study.reference) if has_supermasks(rows) else []
    if bars:
        figure = supermasks_plot(bars, study.reference, dense, 100.0 / DATASETS[study.dataset].classes)
        plot("supermasks", "Supermasks", supermask_caption(rows, bars, study.reference), figure)
        if has_table_one(labels):
            first = table_one_rows(rows)
            tables.append(table_one(part_id, study.name, first, table_one_caption(rows, first)))
        tables.append(networks_table(part_id, study.name, study.reference, supermask_rows(bars)))
        points = curves_of_plan(plan, store)
        if curve := curve_rows(points):
            plot("learning", "How fast the masks are learned", curves_caption(points), learning_plot(curve))
    elif heuristic:
        plot("heuristic", "Heuristic supermasks", heuristic_caption(rows), heuristic_plot(heuristic, dense))
        tables.append(heuristic_table(part_id, study.name, heuristic))
    trained, compared = _trained(part_id, plan, rows, alone=not plots)
    # What a figure compares with another reference than the study's is in the table as in the figure.
    own = {(row["treatment"], row["level"]): row for row in compared}
    means = data_rows(summarise(rows, labels, study.reference, ACCURACY))
    means = [own.get((row["treatment"], row["level"]), row) for row in means]
    tables.append(summary_table(part_id, study.name, means))
    return [*plots, *trained], tables


def _trained(part_id: str, plan: Plan, rows: list[Row], alone: bool) -> tuple[list[Plot], list[Row]]:
    """Of the treatments whose levels are trained, if any has a finished run, or if there is nothing else to show:
    figures, and the numbers behind the one of accuracies.
    """
    study = plan.study
    weights = [row for row in rows if not row.get("supermask")]
    trained = [t.label for t in study.treatments if t.trained and t.levels_of(study.prune)]
    done = {label for row in weights if row["status"] == "finished" for label in labels_of(row)}
    if not trained or not (alone or done.intersection(trained)):
        return [], []
    reference = study.reference if study.reference in trained else trained[0]
    summary = summarise(weights, trained, reference, ACCURACY)
    stops = summarise(weights, trained, reference, EARLY_STOP)
    about = [stopped_at_the_end(weights)]
    plots = [Plot(f"{part_id}-accuracy", "accuracy", "Test accuracy", caption(summary), lines_figure(summary))]
    shown = [label for label in trained if summary.lines[label]]
    if any(point.comparison for point in summary.points) and len(shown) <= MOST_IN_MAP:
        figure, limit = map_figure(summary, shown)
        plots.append(
            Plot(
                f"{part_id}-overview",
                "overview",
                "All treatments at all levels",
                _map_caption(summary, limit),
                figure,
            )
        )
    ranking = ranking_of(summary)
    if ranking.levels and 2 < len(shown) <= MOST_IN_MAP:
        told = ranking_caption(summary, ranking, LAYOUT, f"(ref.): the reference, {reference}.")
        figure = ranking_plot(summary, ranking)
        plots.append(Plot(f"{part_id}-ranking", "ranking", "Which treatment is best", told, figure))
    stop = Plot(
        f"{part_id}-early-stop", "early-stop", "Early-stopping iteration", caption(stops, about), lines_figure(stops)
    )
    return [*plots, stop], data_rows(summary)


def _map_caption(summary: Summary, limit: float) -> str:
    n = span([point.interval.n for point in summary.points])
    told = (
        f"Each cell: test accuracy at that level minus that of {summary.reference}, in percentage points, mean over "
        f"n = {n} seeds. Blue is better, orange worse; the colours end at ±{limit:g} points. ★: p < 0.05 after Holm's "
        "correction over the levels of the treatment."
    )
    apart = any(point.comparison is None and point.treatment != summary.reference for point in summary.points)
    dash = f"–: not compared, as {summary.reference} has no run with as many weights there." if apart else ""
    return joined([told, dash, left_out(summary), *data_notes(summary)])


def _accuracies(rows: Sequence[Row]) -> list[float]:
    """Of the finished ones, percent."""
    return [100.0 * float(row["early_stop_test_accuracy"] or 0) for row in rows if row["status"] == "finished"]


def _settings(data: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            found += _settings(value, f"{above}{key}.")
        else:
            found.append((above + key, _word(value)))
    return found


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_word, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
