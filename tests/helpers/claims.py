"""Rows of studies with known differences, and the verdicts on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from supermask.analysis.claims import ClaimFinding, evaluate_claims
from supermask.core.text import Row
from supermask.store.tables import DENSE
from supermask.study import Study, study_from_dict

SEEDS, LEVELS = 5, 4
NOISE = np.random.default_rng(5).normal(0.0, 0.1, (2, LEVELS + 1, SEEDS))
NOISE -= NOISE.mean(axis=-1, keepdims=True)
"""Centered noise, so that mean differences are exactly the requested ones."""


def study_with(*clauses: dict[str, Any], seeds: int = SEEDS, **claim: Any) -> Study:
    asked = {"id": "mine", "statement": "It is so.", "clauses": list(clauses), **claim}
    treatments = [{"name": "a"}, {"name": "b", "criterion": "random"}, {"name": "c", "criterion": "small_final"}]
    return study_from_dict(
        {
            "dataset": "mnist",
            "seeds": seeds,
            "prune": {"levels": LEVELS},
            "treatments": treatments,
            "claims": [asked],
        },
        name="own",
    )


def rows_of(differences: list[float], **changed: dict[tuple[str, int, int], Any]) -> list[Row]:
    """Rows of three treatments over LEVELS: b about 90% at each, a `differences` points above, c 4 below; dense 91%."""
    rows: list[Row] = []
    for seed in range(SEEDS):
        rows.append(row(DENSE, 0, seed, 91.0 + NOISE[1, 0, seed]))
        for level, difference in enumerate(differences, start=1):
            base = 90.0 + NOISE[1, level, seed]
            rows.append(row("b", level, seed, base))
            rows.append(row("a", level, seed, base + difference + NOISE[0, level, seed]))
            rows.append(row("c", level, seed, base - 4.0 + NOISE[0, level - 1, seed]))
    for each in rows:
        for column, values in changed.items():
            key = (str(each["treatment"]), int(each["level"] or 0), int(each["seed"] or 0))
            if key in values:
                each[column] = values[key]
    return rows


def row(treatment: str, level: int, seed: int, accuracy: float, remaining: float | None = None) -> Row:
    """Return a finished run. Accuracy and weights remaining are in percent; by default half remain at each level."""
    return {
        "id": f"{treatment}-{level}-{seed}",
        "treatment": treatment,
        "level": level,
        "seed": seed,
        "status": "finished",
        "density": 0.5**level if remaining is None else remaining / 100,
        "early_stop_test_accuracy": accuracy / 100,
        "early_stop_validation_accuracy": accuracy / 100,
    }


def decided(clause: dict[str, Any], rows: list[Row]) -> ClaimFinding:
    (finding,) = evaluate_claims([(study_with(clause), rows)])
    return finding
