"""Figure of ties, sign changes and shrinkage: means of the rows, and runs without these facts."""

from __future__ import annotations

import pytest
from matplotlib.collections import LineCollection
from scipy import stats as scipy_stats

from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.reporting.figures import has_weight_changes, weight_changes_figure
from supermask.reporting.figures.weight_changes import FACTS

LABELS = ["large_final", "large_final_same_sign"]


def rows(recorded: bool = True) -> list[Row]:
    made: list[Row] = []
    for place, label in enumerate(LABELS):
        for level in (1, 2):
            for seed in range(3):
                facts: Row = {
                    "ties_drawn": 150 * place + seed,
                    "sign_changed": 0.02 * level + 0.001 * seed,
                    "shrunk": 0.1 * level,
                }
                made.append(
                    {
                        "id": f"{label}-{level}-{seed}",
                        "treatment": label,
                        "level": level,
                        "seed": seed,
                        "status": "finished",
                        "trained": True,
                        "network": "fc",
                        "dataset": "mnist",
                        "density": 0.5**level,
                        "kept": 1000,
                        "early_stop_iteration": 100 * level + seed,
                        **(facts if recorded else {}),
                    }
                )
    return made


def test_points_are_means_over_seeds_with_their_intervals() -> None:
    drawn = weight_changes_figure(rows(), LABELS, "Title")
    assert [row["fact"] for row in drawn.data_rows] == [name for name in FACTS for _ in range(4)]
    ties = {(row["treatment"], row["level"]): row for row in drawn.data_rows if row["fact"] == "ties_drawn"}
    values = [15.0, 15.1, 15.2]
    low, high = scipy_stats.t.interval(0.95, 2, loc=15.1, scale=scipy_stats.sem(values))
    point = ties["large_final_same_sign", 2]
    assert (point["n"], point["mean"]) == (3, pytest.approx(15.1))
    assert (point["mean_low95"], point["mean_high95"]) == (pytest.approx(low), pytest.approx(high))
    signs = [row["mean"] for row in drawn.data_rows if row["fact"] == "sign_changed"]
    assert signs == pytest.approx([2.1, 4.1] * 2)


def test_the_intervals_of_a_single_level_are_bars() -> None:
    drawn = weight_changes_figure([row for row in rows() if row["level"] == 1], LABELS, "Title")
    expected = {(row["mean_low95"], row["mean_high95"]) for row in drawn.data_rows if row["fact"] == "sign_changed"}
    (panel,) = (axes for axes, fact in zip(drawn.figure.axes, FACTS, strict=True) if fact == "sign_changed")
    bars = [c.get_segments() for c in panel.collections if isinstance(c, LineCollection)]
    ends = {(float(s[0][1]), float(s[1][1])) for group in bars for s in group}
    assert sorted(ends) == [pytest.approx(interval) for interval in sorted(expected)]
    assert "mean over n = 3 seeds; bar: 95% t-interval." in drawn.caption
    assert "; band: 95% t-interval." in weight_changes_figure(rows(), LABELS, "Title").caption


def test_the_note_on_the_data_is_in_the_caption() -> None:
    noted = [{**row, "data_note": "images decoded from JPEG files"} for row in rows()]
    assert " Data: images decoded from JPEG files. Takeaway" in weight_changes_figure(noted, LABELS, "Title").caption


def test_the_caption_ends_with_the_finding() -> None:
    caption = weight_changes_figure(rows(), LABELS, "Title").caption
    assert caption.endswith(
        "Takeaway: chance draws at most 15.1% of the kept weights (large_final_same_sign at 50% of the weights) and at "
        "most 4.1% change sign in training (large_final at 25% of the weights)."
    )


@pytest.mark.slow
def test_random_masks_are_no_finding_but_are_named() -> None:
    random = [row | {"treatment": "random", "id": f"r{row['id']}", "ties_drawn": 1000} for row in rows()[:6]]
    labels = [*LABELS, "random"]
    prefix = "Takeaway: but for treatments whose masks are random, "
    caption = weight_changes_figure([*rows(), *random], labels, "Title").caption
    assert f"{prefix}chance draws at most 15.1% of the kept weights (large_final_same_sign at" in caption
    without = [row | {"ties_drawn": 0} for row in rows()]
    caption = weight_changes_figure([*without, *random], labels, "Title").caption
    assert f"{prefix}no kept weight was drawn by chance and at most" in caption


def test_the_caption_counts_levels_without_facts_of_their_weights() -> None:
    """A point of one seed is no finding on five."""
    assert "did not record" not in weight_changes_figure(rows(), LABELS, "Title").caption
    some = [row if row["seed"] else {**row, "shrunk": None} for row in rows()]
    caption = weight_changes_figure(some, LABELS, "Title").caption
    assert "4 of 12 finished levels did not record ties, signs and magnitudes." in caption


def test_runs_of_earlier_versions_have_their_iterations_only() -> None:
    assert has_weight_changes(rows())
    assert not has_weight_changes(rows(recorded=False))
    drawn = weight_changes_figure(rows(recorded=False), LABELS, "Title")
    assert {row["fact"] for row in drawn.data_rows} == {"early_stop_iteration"}
    with pytest.raises(UserError, match="nothing to draw"):
        weight_changes_figure([row | {"status": "to_do"} for row in rows()], LABELS, "Title")
