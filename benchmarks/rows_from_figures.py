"""Write a table of runs from the CSV files of published figures, which have the value of every seed.

    python benchmarks/rows_from_figures.py docs/figures results/fc-laptop-figures.parquet

The runs of `scale=laptop` were published as figures before tables of runs were. The plans of the studies give ids and
settings; `STUDY-accuracy.csv` and `STUDY-early-stop.csv` give test accuracies and iterations at early stopping. What
figures do not have (losses, validation accuracies, certificates, environments) stays empty.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from supermask.core.text import Row
from supermask.store.rows import plan_rows
from supermask.store.tables import DENSE, to_parquet, treatment_labels
from supermask.study import load_study
from supermask.study.plan import make_plan

STUDIES = ("mask-criteria", "mask-1-actions", "mask-0-actions", "mask-points")

Values = dict[tuple[str, int, int], float]
"""(treatment, level, seed) -> value."""


def read_values(path: Path) -> Values:
    """Return the values of a figure's CSV file; none if there is no such file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (line["treatment"], int(line["level"]), int(seed)): float(value)
            for line in csv.DictReader(file)
            for seed, _, value in (pair.partition("=") for pair in line["values_by_seed"].split())
        }


def published_rows(study: str, folder: Path) -> list[Row]:
    """Return one finished row per run of a study that the figures have a value of."""
    accuracies = read_values(folder / f"{study}-accuracy.csv")
    iterations = read_values(folder / f"{study}-early-stop.csv")
    rows: list[Row] = []
    for row in plan_rows(make_plan(load_study(study, ["scale=laptop"])), None)[0]:
        for label in [DENSE] if row["level"] == 0 else treatment_labels(row):
            key = label, int(row["level"] or 0), int(row["seed"] or 0)
            if key in accuracies:
                stopped = int(iterations[key]) if key in iterations else None
                # Accuracies are counts of 10,000 test images.
                accuracy = round(accuracies[key] / 100, 4)
                result: Row = {"early_stop_test_accuracy": accuracy, "early_stop_iteration": stopped}
                rows.append({**row, **result, "status": "finished"})
                break
    return rows


def main() -> None:
    """Write the rows of all studies."""
    folder, out = map(Path, sys.argv[1:])
    rows = [row for study in STUDIES for row in published_rows(study, folder)]
    out.write_bytes(to_parquet(rows))
    print(f"{out}: {len(rows):,} rows")


if __name__ == "__main__":
    main()
