"""Catalog of figures: those that a study has data for, drawn from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from supermask.analysis.summary import Summary, summarize
from supermask.core.text import Row
from supermask.datasets.specs import DATASETS
from supermask.reporting.figures.accuracy import ACCURACY, EARLY_STOP, draw_summary, unconverged_note
from supermask.reporting.figures.differences import draw_differences
from supermask.reporting.figures.overview import draw_overview
from supermask.reporting.figures.ranking import draw_ranking
from supermask.reporting.figures.save import RenderedFigure
from supermask.store import Store
from supermask.store.rows import learning_curve_rows
from supermask.store.tables import treatment_labels
from supermask.study.plan import Plan


def study_figures(plan: Plan, rows: Sequence[Row], store: Store) -> dict[str, RenderedFigure]:
    """Return name -> figure for the finished runs of a study, the most important first.

    - Learned masks: `supermasks`, the networks that they define; `table-one`, if the study has the treatments of the
      paper's Table 1; `learning`, the learning curves.
    - Otherwise untrained networks: `heuristic`.
    - Trained levels: `accuracy`, `early-stop`; with several treatments `differences`, `overview`, `ranking`.

    `rows` are those of the plan (`plan_rows`); the store is read for learning curves only. Raises UserError if no run
    has finished.
    """
    from supermask.reporting import figures

    study, title = plan.study, plan.study.title or plan.study.name
    drawn: dict[str, RenderedFigure] = {}
    heuristic = [row for row in rows if figures.is_heuristic(row)]
    chance = 100.0 / DATASETS[study.dataset].classes
    if figures.has_learned_masks(rows):
        labels = [treatment.label for treatment in study.treatments]
        drawn["supermasks"] = figures.supermask_figure(rows, labels, study.reference, title, chance)
        if figures.has_table_one(labels):
            drawn["table-one"] = figures.table_one_figure(rows, title, chance)
        points = learning_curve_rows(plan, store)
        if any(point["iteration"] for point in points):
            drawn["learning"] = figures.learning_curves_figure(points, title)
    elif any(row["status"] == "finished" and not row.get("rescaled") for row in heuristic):
        drawn["heuristic"] = figures.untrained_figure(rows, title, chance)
    summaries = summarize_trained(plan, rows, required=not drawn)
    if summaries:
        drawn["accuracy"] = draw_summary(summaries.accuracy, title)
        drawn["early-stop"] = draw_summary(summaries.early_stop, title, [summaries.unconverged])
        if any(figures.compute_differences(summaries.accuracy).values()):
            drawn["differences"] = draw_differences(summaries.accuracy, title)
            drawn["overview"] = draw_overview(summaries.accuracy, title)
        if figures.compute_ranking(summaries.accuracy).levels:
            drawn["ranking"] = draw_ranking(summaries.accuracy, title)
    return drawn


class TrainedSummaries(NamedTuple):
    """Summaries of the treatments whose levels are trained."""

    accuracy: Summary
    early_stop: Summary
    unconverged: str
    """Sentence on runs that had not converged, possibly empty."""


def summarize_trained(plan: Plan, rows: Sequence[Row], required: bool) -> TrainedSummaries | None:
    """Summarize the treatments whose levels are trained; None if no run of them has finished, unless `required`.

    They are compared with the study's reference, or with the first of them if the reference is not trained. Raises
    UserError if `required` and no run has finished.
    """
    study = plan.study
    # Learned masks are not levels of a chain: their networks are not trained.
    weights = [row for row in rows if not row.get("supermask")]
    trained = [t.label for t in study.treatments if t.trained and t.num_levels(study.prune)]
    finished = {label for row in weights if row["status"] == "finished" for label in treatment_labels(row)}
    if not trained or not (required or finished.intersection(trained)):
        return None
    reference = study.reference if study.reference in trained else trained[0]
    accuracy, early_stop = (summarize(weights, trained, reference, metric) for metric in (ACCURACY, EARLY_STOP))
    return TrainedSummaries(accuracy, early_stop, unconverged_note(weights))
