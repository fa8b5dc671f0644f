"""Published values beside the means that were measured here. They are shown and never tested against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

from supermask.analysis.stats import MeanInterval, mean_interval
from supermask.analysis.summary import check_one_experiment
from supermask.core.text import Row
from supermask.store.tables import DENSE, treatment_labels
from supermask.study.yaml import parse_yaml, to_python


@dataclass(frozen=True)
class PublishedValue:
    """Test accuracy that a publication reports for one network, dataset and treatment."""

    network: str
    dataset: str
    treatment: str
    """Label in the shipped studies."""
    percent: float
    confirmed: bool
    """True if the text of the source has this value; else it is from memory."""
    source: str
    text: str = ""
    """Text to show if it is more than the number."""
    note: str = ""
    in_table_one: bool = False
    """True for a cell of the paper's Table 1."""

    @property
    def shown(self) -> str:
        """The value as text: `95.3`."""
        return self.text or (f"{self.percent:.1f}" if round(self.percent, 1) == self.percent else f"{self.percent:.2f}")


@cache
def published_values() -> tuple[PublishedValue, ...]:
    """Return the values that ship with the package, in the order of the file."""
    file = resources.files("supermask").joinpath("analysis", "comparisons", "published.yaml")
    groups: list[dict[str, Any]] = to_python(parse_yaml(file.read_text(encoding="utf-8"), "published.yaml"))
    values = []
    for group in groups:
        for part in ("table_one", "later"):
            for data in group[part]:
                confirmed = {"confirmed": True, "unconfirmed": False}[data.pop("status")]
                place = {"network": group["network"], "dataset": group["dataset"], "in_table_one": part == "table_one"}
                values.append(PublishedValue(percent=float(data.pop("percent")), confirmed=confirmed, **place, **data))
    return tuple(values)


def published_rows(rows: Sequence[Row]) -> list[Row]:
    """Return one row per published value of this network and dataset that the study has finished runs for.

    The measured accuracy is the mean over seeds at early stopping, of a treatment with several levels at the level of
    best mean validation accuracy. Accuracies are in percent. Raises UserError for runs of several networks or datasets.
    """
    check_one_experiment(rows)
    finished = [row for row in rows if row["status"] == "finished"]
    if not finished:
        return []
    place = (finished[0]["network"], finished[0]["dataset"])
    table: list[Row] = []
    for value in published_values():
        best = _best_level(finished, value.treatment) if (value.network, value.dataset) == place else []
        if not best:
            continue
        measured = _measure(best)
        table.append(
            {
                "treatment": value.treatment,
                "network": value.network,
                "dataset": value.dataset,
                "level": best[0]["level"],
                "density_percent": 100 * fmean(float(row["density"] or 0) for row in best),
                "n": measured.n,
                "mean": measured.mean,
                "mean_low95": measured.low,
                "mean_high95": measured.high,
                "published_percent": value.percent,
                "published_text": value.shown,
                "difference": measured.mean - value.percent,
                "confirmed": value.confirmed,
                "note": value.note or None,
                "source": value.source,
            }
        )
    return table


def _best_level(finished: Sequence[Row], label: str) -> list[Row]:
    """Return the rows of a treatment at its level of best mean validation accuracy; the dense rows for `dense`."""
    levels: dict[int, list[Row]] = defaultdict(list)
    for row in finished:
        if (DENSE if row["level"] == 0 else label) == label and label in treatment_labels(row):
            levels[int(row["level"] or 0)].append(row)
    return max(levels.values(), key=_validation_accuracy, default=[])


def _validation_accuracy(rows: Sequence[Row]) -> float:
    return fmean(float(row.get("early_stop_validation_accuracy") or 0) for row in rows)


def _measure(rows: Sequence[Row]) -> MeanInterval:
    return mean_interval([100 * float(row["early_stop_test_accuracy"] or 0) for row in rows])
