"""Catalog of figures: those that a study has data for, drawn from its rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from supermask.analysis.claims.endpoint_band import endpoint_band
from supermask.analysis.summary import Summary, summarize
from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.text import Row
from supermask.reporting.figures.accuracy import ACCURACY, EARLY_STOP, count_unconverged, draw_summary, unconverged_note
from supermask.reporting.figures.differences import draw_differences
from supermask.reporting.figures.learning_curves import curve_notes
from supermask.reporting.figures.network_panels import PAPER_DATASETS, PAPER_FIGURES, FindRows, is_shipped
from supermask.reporting.figures.overview import draw_overview
from supermask.reporting.figures.ranking import draw_ranking
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import DEFAULT_OPTIONS, FigureOptions
from supermask.store import Store
from supermask.store.rows import learning_curve_rows
from supermask.store.tables import DENSE, treatment_labels
from supermask.study import Study
from supermask.study.plan import Plan

FIGURES = (
    "figure-3",
    "figure-4",
    "figure-5",
    "figure-6",
    "figure-7",
    "supermasks",
    "table-one",
    "learning",
    "heuristic",
    "accuracy",
    "early-stop",
    "differences",
    "overview",
    "ranking",
    "weight-changes",
    "criteria",
)
"""Names of the figures, the most important first."""


def study_figures(
    plan: Plan,
    rows: Sequence[Row],
    store: Store | None,
    options: FigureOptions = DEFAULT_OPTIONS,
    only: Sequence[str] = (),
    treatments: Sequence[str] = (),
    find_rows: FindRows | None = None,
) -> dict[str, RenderedFigure]:
    """Return name -> figure for the finished runs of a study, the most important first.

    - Learned masks: `supermasks`, the networks that they define; `table-one`, if the study has the treatments of the
      paper's Table 1; `learning`, the learning curves.
    - Otherwise untrained networks: `heuristic`.
    - Trained levels: `accuracy`, `early-stop`; with several treatments `differences`, `overview`, `ranking`;
      and `weight-changes`, if the runs recorded facts of their layers.
    - As in the paper: `figure-6` and `figure-7` with heuristic masks; of the shipped studies on MNIST and CIFAR-10
      `figure-3`, `figure-4`, `figure-5`, one panel per network, and with `mask-criteria` the table `criteria`.

    `rows` are those of the plan (`plan_rows`). The store is read for learning curves, which tables do not have.
    `find_rows` finds the rows of other networks and studies for panels, by default in the store. `only`: names of the
    figures to draw, by default all. `treatments`: labels of the treatments to draw, by default all; the reference is
    drawn in any case, because the others are compared with it. Raises UserError if no run has finished, for unknown
    names, and for a figure in `only` that the study does not have.
    """
    from supermask.reporting import figures

    for name in only:
        if name not in FIGURES:
            near = did_you_mean(name, FIGURES) or "."
            raise UserError(f"{quote(name)} is not a figure{near} Allowed: {', '.join(FIGURES)}.")
    labels = _select_treatments(plan, treatments)
    shown = {*labels, DENSE}
    rows = [row for row in rows if shown.intersection(treatment_labels(row))]
    study, title = plan.study, plan.study.title or plan.study.name
    draw: dict[str, Callable[[], RenderedFigure]] = {}
    find_other = find_rows or (_find_none if store is None else figures.make_store_finder(store))
    paper = PAPER_FIGURES.get(study.name)
    if paper and not treatments and study.dataset in PAPER_DATASETS and is_shipped(plan):
        draw[paper.name] = lambda: figures.network_panels_figure(
            figures.collect_panels(plan, rows, find_other), title, options
        )
    heuristic = [row for row in rows if figures.is_heuristic(row)]
    chance = 100.0 / plan.spec.classes
    if figures.has_untrained_masks(heuristic + [row for row in rows if row["level"] == 0]):
        draw["figure-6"] = lambda: figures.untrained_masks_figure(rows, title, chance, options)
    if any(point.level for point in figures.curve_points(heuristic)):
        draw["figure-7"] = lambda: figures.supermask_curves_figure(rows, title, chance, options)
    if figures.has_learned_masks(rows):
        draw["supermasks"] = lambda: figures.supermask_figure(rows, labels, study.reference, title, chance, options)
        if figures.has_table_one(labels):
            draw["table-one"] = lambda: figures.table_one_figure(rows, title, chance, options=options)
        points = learning_curve_rows(plan, store, labels)
        if any(point["iteration"] for point in points):
            draw["learning"] = lambda: figures.learning_curves_figure(points, title, options, curve_notes(rows, labels))
    elif any(row["status"] == "finished" and not row.get("rescaled") for row in heuristic):
        draw["heuristic"] = lambda: figures.untrained_figure(rows, title, chance, options)
    summaries = summarize_trained(plan, rows, required=not draw, labels=labels)
    if summaries:
        accuracy, early_stop, remarks = summaries.accuracy, summaries.early_stop, [summaries.unconverged]
        draw["accuracy"] = lambda: draw_summary(accuracy, title, options=options)
        if early_stop is not None:
            draw["early-stop"] = lambda: draw_summary(early_stop, title, remarks, options)
        if any(figures.compute_differences(accuracy).values()):
            draw["differences"] = lambda: draw_differences(accuracy, title, options)
            draw["overview"] = lambda: draw_overview(accuracy, title, options)
        if figures.compute_ranking(accuracy).levels:
            draw["ranking"] = lambda: draw_ranking(accuracy, title, options)
        if figures.has_weight_changes(rows):
            draw["weight-changes"] = lambda: figures.weight_changes_figure(rows, labels, title, options)
    if paper and paper.name == "figure-3":
        criteria = [t.criterion for t in study.treatments]
        draw["criteria"] = lambda: figures.criteria_table_figure(criteria, f"Criteria of {study.name}", options)
    missing = [name for name in only if name not in draw]
    if missing:
        raise UserError(
            f"study {quote(study.name)} has no figure {missing[0]} with these treatments and finished runs; "
            f"it has: {', '.join(draw) or 'none'}."
        )
    return {name: function() for name, function in draw.items() if not only or name in only}


def _find_none(study: Study) -> None:
    """Find no rows of a study: without a store, the network of the rows is the only one."""


def split_labels(text: str, labels: Collection[str]) -> list[str]:
    """Split a list of labels separated by commas; labels that contain commas are recognized.

    Parts that are no label are returned as they are, for the caller to refuse.
    """
    parts = text.split(",")
    found = []
    while parts:
        # The longest label first: of `a`, `b` and `a, b` the text `a, b` is the last one.
        for count in range(len(parts), 0, -1):
            label = ",".join(parts[:count]).strip()
            if label in labels or count == 1:
                found.append(label)
                del parts[:count]
                break
    return [label for label in found if label]


def _select_treatments(plan: Plan, treatments: Sequence[str]) -> list[str]:
    """Return the labels to draw in the order of the study, with the reference. Raises UserError for unknown ones."""
    labels = [treatment.label for treatment in plan.study.treatments]
    for name in treatments:
        if name not in labels:
            near = did_you_mean(name, labels) or "."
            listed = "; ".join(labels)
            raise UserError(f"study {quote(plan.study.name)} has no treatment {quote(name)}{near} It has: {listed}.")
    return [label for label in labels if not treatments or label in treatments or label == plan.study.reference]


class TrainedSummaries(NamedTuple):
    """Summaries of the treatments whose levels are trained."""

    accuracy: Summary
    early_stop: Summary | None
    """None if no finished run has its iteration: a table made from published figures has accuracies alone."""
    unconverged: str
    """Sentence on runs that had not converged, possibly empty."""

    converged: bool
    """False if the loss of at least half of the runs was lowest at the last iteration: the median is no speed."""


def summarize_trained(
    plan: Plan, rows: Sequence[Row], required: bool, labels: Collection[str] | None = None
) -> TrainedSummaries | None:
    """Summarize the treatments whose levels are trained; None if no run of them has finished, unless `required`.

    `labels`: the treatments to summarize, by default all. They are compared with the study's reference, or with the
    study's first trained treatment if the reference is not trained; this one is always in the summaries. Raises
    UserError if `required` and no run has finished.
    """
    study = plan.study
    # Learned masks are not levels of a chain: their networks are not trained.
    weights = [row for row in rows if not row.get("supermask")]
    all_trained = [t.label for t in study.treatments if t.trained and t.num_levels(study.prune)]
    reference = study.reference if study.reference in all_trained else next(iter(all_trained), "")
    trained = [label for label in all_trained if labels is None or label in labels or label == reference]
    finished = {label for row in weights if row["status"] == "finished" for label in treatment_labels(row)}
    if not trained or not (required or finished.intersection(trained)):
        return None
    network = next(iter(plan.runs.values())).network
    has_iterations = any(row.get(EARLY_STOP.column) is not None for row in weights if row["status"] == "finished")
    accuracy, early_stop = (
        replace(
            summarize(weights, trained, reference, metric),
            band=endpoint_band(study, network, reference, metric.column),
        )
        if metric is ACCURACY or has_iterations
        else None
        for metric in (ACCURACY, EARLY_STOP)
    )
    assert accuracy is not None
    unconverged, trained_runs = count_unconverged(weights)
    return TrainedSummaries(accuracy, early_stop, unconverged_note(weights), 2 * unconverged < trained_runs)
