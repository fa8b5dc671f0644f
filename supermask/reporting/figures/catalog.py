"""Which figures a study has something for, drawn from its rows."""

from __future__ import annotations

from collections.abc import Sequence

from supermask.core.text import Row
from supermask.datasets.specs import DATASETS
from supermask.reporting.figures.save import RenderedFigure
from supermask.store import Store
from supermask.store.rows import learning_curve_rows
from supermask.store.tables import treatment_labels
from supermask.study.plan import Plan


def study_figures(plan: Plan, rows: Sequence[Row], store: Store) -> dict[str, RenderedFigure]:
    """Name -> figure, in the order to look at them: of what has finished.

    - masks were learned: `supermasks`, the networks that they stand for; `table-one`, where the study has the
      treatments of the paper's Table 1; `learning`, how fast they were learned;
    - else networks measured untrained: `heuristic`;
    - trained levels: `accuracy`, `early-stop`; with several treatments `differences`, `overview`, `ranking`.

    `rows` are the plan's (`rows.rows_of_plan`); the store is read for curves alone. Raises UserError where nothing has
    finished.
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
    weights = [row for row in rows if not row.get("supermask")]
    trained = [t.label for t in study.treatments if t.trained and t.num_levels(study.prune)]
    done = {label for row in weights if row["status"] == "finished" for label in treatment_labels(row)}
    if trained and (not drawn or done.intersection(trained)):
        reference = study.reference if study.reference in trained else trained[0]
        drawn["accuracy"] = figures.accuracy_figure(weights, trained, reference, title)
        drawn["early-stop"] = figures.convergence_figure(weights, trained, reference, title)
        summary = figures.summarize(weights, trained, reference, figures.ACCURACY)
        if any(figures.compute_differences(summary).values()):
            drawn["differences"] = figures.difference_figure(weights, trained, reference, title)
            drawn["overview"] = figures.overview_figure(weights, trained, reference, title)
        if figures.compute_ranking(summary).levels:
            drawn["ranking"] = figures.ranking_figure(weights, trained, reference, title)
    return drawn
