"""Test accuracy, and convergence speed, against the weights that remain: the paper's central figures."""

from __future__ import annotations

from collections.abc import Sequence

from supermask.figures.lines import draw
from supermask.figures.points import Measure, summarise
from supermask.figures.save import Drawn
from supermask.tables import Row

ACCURACY = Measure("early_stop_test_accuracy", 100.0, "percent", "Test accuracy at early stopping (%)")
EARLY_STOP = Measure("early_stop_iteration", 1.0, "iterations", "Early-stopping iteration")


def accuracy_figure(rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str) -> Drawn:
    """Test accuracy at the iteration of lowest validation loss, against weights remaining; one line a treatment.

    Mean over seeds with its 95% t-interval; a star where the difference to `reference` is significant at that level.
    The accuracy axis is logarithmic in the test error where the errors span more than a factor of four.
    Raises UserError for unknown labels, runs of several studies, or no finished run.
    Source: paper.md section 7; figures 3 to 5 of the paper.
    """
    return draw(summarise(rows, treatments, reference, ACCURACY), title)


def early_stop_figure(rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str) -> Drawn:
    """Convergence speed: the iteration of lowest validation loss, drawn and tested as in `accuracy_figure`."""
    return draw(summarise(rows, treatments, reference, EARLY_STOP), title, [stopped_at_the_end(rows)])


def stopped_at_the_end(rows: Sequence[Row]) -> str:
    """How many trainings had not converged: for them the figure shows the length of the training, not a speed."""
    finished = [row for row in rows if row["status"] == "finished"]
    ends = {row.get("iterations") for row in finished}
    last = sum(row["early_stop_iteration"] == row.get("iterations") for row in finished)
    if not last or len(ends) != 1:
        return ""
    return f"In {last} of {len(finished)} runs the loss was lowest at the last iteration, {ends.pop():,}."
