"""Two typical faults of pruning programs, simulated: `compare` finds them against a table of right runs.

Masks drawn from the scores of another layer, and rewinding to the weights after one iteration. Both train without any
error, and the accuracies look plausible.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.small_studies import small_plan, train_plan

from supermask.analysis.comparisons import (
    ResultComparison,
    TableColumns,
    compare_results,
    find_metric,
    read_csv_results,
)
from supermask.core import pruning
from supermask.core.rng import Streams
from supermask.core.types import Weights
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.store.tables import to_csv

SEEDS = 16
TREATMENT: dict[str, Any] = {"name": "ticket", "criterion": "large_final"}
SETTINGS: dict[str, Any] = {"network": "fc-24", "epochs": 1.5, "lr": 0.1, "levels": 3, "evaluate_every": 8}


def trained(folder: Path, first_seed: int, **changes: Any) -> list[dict[str, Any]]:
    seeds = list(range(first_seed, first_seed + SEEDS))
    plan = small_plan(TREATMENT | changes, seeds=seeds, **SETTINGS)
    train_plan(plan, folder)
    return plan_rows(plan, Store(folder))[0]


def beside(rows: list[dict[str, Any]], table: Path, metric: str) -> ResultComparison:
    compared_metric = find_metric(metric)
    others = read_csv_results(table, TableColumns(value=metric, seed="seed"), compared_metric)
    return compare_results(rows, others, compared_metric, ["ticket"], "study")


@pytest.fixture(scope="module")
def right_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of right runs, as another laboratory would publish it: its seeds are others than ours."""
    folder = tmp_path_factory.mktemp("right")
    (folder / "right.csv").write_text(to_csv(trained(folder / "store", 100)))
    return folder / "right.csv"


@pytest.mark.slow
def test_right_runs_do_not_differ_from_right_runs(right_runs: Path, tmp_path: Path) -> None:
    rows = trained(tmp_path, 0)
    for metric in ("early_stop_test_accuracy", "initial_validation_loss"):
        result = beside(rows, right_runs, metric)
        assert result.total.tested == 4
        assert result.total.differing == 0, result.summary()


@pytest.mark.slow
def test_masks_from_the_scores_of_another_layer_are_caught(
    right_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = pruning.compute_scores

    def wrong(parent: pruning.ParentRun, step: pruning.PruneStep, rng: Streams) -> Weights:
        scores = right(parent, step, rng)
        names = list(scores)
        return {
            name: scores[name].new_tensor(np.resize(scores[other].numpy(), tuple(scores[name].shape)))
            for name, other in zip(names, [*names[1:], names[0]], strict=True)
        }

    # Training takes the scores by the name that `store.replay` imports.
    monkeypatch.setattr("supermask.store.replay.compute_scores", wrong)
    result = beside(trained(tmp_path, 0), right_runs, "early_stop_test_accuracy")
    # Half of the weights are enough for any mask; below, the accuracy tells.
    assert [cell.differs for cell in result.cells if cell.level != 1] == [False, True, True], result.summary()
    assert result.total.differing_after_holm >= 2, result.summary()


@pytest.mark.slow
def test_rewinding_to_the_first_iteration_is_caught(right_runs: Path, tmp_path: Path) -> None:
    # Training hides a step more or less from the accuracy; the loss before training does not hide it.
    result = beside(trained(tmp_path, 0, rewind_to=1), right_runs, "initial_validation_loss")
    assert [cell.differs for cell in result.cells] == [False, True, True, True], result.summary()
    assert result.total.differing_after_holm == 3, result.summary()
