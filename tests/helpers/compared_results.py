"""Rows of a small study, to be compared with results of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from supermask.analysis.comparisons import OtherResult, OtherResults, find_metric
from supermask.core.text import Row

ACCURACY = find_metric("early_stop_test_accuracy")
LABELS = ["large_final", "random"]


def our_rows(seeds: int = 5, shift: float = 0.0, seed: int = 0) -> list[Row]:
    """Rows of two treatments at levels 1 to 3 and of the dense network; accuracies near 95% with sd 0.1 points."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for label, level in [("dense", 0), *((label, level) for label in LABELS for level in (1, 2, 3))]:
        for number in range(seeds):
            accuracy = 0.95 + 0.001 * rng.standard_normal() + (shift / 100 if label == "random" else 0)
            rows.append(
                {
                    "id": f"{label}-{level}-{number}",
                    "treatment": label,
                    "level": level,
                    "seed": number,
                    "status": "finished",
                    "network": "fc",
                    "dataset": "mnist",
                    "density": 0.6**level,
                    "early_stop_test_accuracy": accuracy,
                    "early_stop_validation_accuracy": accuracy,
                }
            )
    return rows


def theirs(rows: list[Row]) -> OtherResults:
    """The same rows as results of somebody else."""
    return OtherResults(
        "theirs.csv",
        tuple(
            OtherResult(
                str(row["treatment"]),
                int(row["level"] or 0),
                float(row["density"] or 0),
                str(row["seed"]),
                100 * float(row["early_stop_test_accuracy"] or 0),
            )
            for row in rows
        ),
    )


def write_study(folder: Path, text: str, name: str = "theirs.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path
