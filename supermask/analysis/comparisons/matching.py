"""Treatments and levels of others matched with ours."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supermask.analysis.comparisons.other_results import OtherResult, OtherResults, check_distinct_runs
from supermask.analysis.summary import DENSITY_TOLERANCE, Metric
from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.text import Row, format_percent
from supermask.store.tables import AUXILIARY, DENSE, TREATMENT_SEPARATOR, treatment_labels

CellKey = tuple[str, int]
"""(label of the treatment, level)."""


@dataclass(frozen=True)
class OurCell:
    """Runs of one treatment and level."""

    label: str
    level: int
    remaining: float
    values: dict[str, float]


def group_our_runs(rows: Sequence[Row], metric: Metric) -> dict[CellKey, OurCell]:
    """Return (label, level) -> finished runs."""
    grouped: dict[CellKey, list[Row]] = defaultdict(list)
    for row in rows:
        value = row.get(metric.column)
        if row.get("status") == "finished" and isinstance(value, int | float) and math.isfinite(value):
            for label in treatment_labels(row):
                if label != AUXILIARY:
                    grouped[label, int(row["level"] or 0)].append(row)
    check_distinct_runs((label, level, row["seed"]) for (label, level), group in grouped.items() for row in group)
    return {
        (label, level): OurCell(
            label,
            level,
            100 * math.fsum(float(row["density"] or 0) for row in group) / len(group),
            {str(row["seed"]): float(row[metric.column] or 0) * metric.scale for row in group},
        )
        for (label, level), group in grouped.items()
    }


def translate_names(others: OtherResults, names: Mapping[str, str], ours: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return their name of a treatment -> our labels. Raises UserError for names that are unknown on either side."""
    theirs = list(dict.fromkeys(result.treatment for result in others.results))
    for name, label in names.items():
        if name not in theirs:
            near = did_you_mean(name, theirs) or "."
            raise UserError(f"--map {name}={label}: {others.source} has no treatment {quote(name)}{near}")
        if label and label not in ours:
            near = did_you_mean(label, ours) or "."
            raise UserError(f"--map {name}={label}: {quote(label)} is not a treatment of this study{near}")
    translated: dict[str, tuple[str, ...]] = {}
    unknown: list[str] = []
    for name in theirs:
        if name in names:
            translated[name] = (names[name],) if names[name] else ()
        elif name in ours:
            translated[name] = (name,)
        else:
            # A table of `supermask table` joins the labels of a run that belongs to several treatments.
            parts = [part for part in name.split(TREATMENT_SEPARATOR) if part != AUXILIARY]
            translated[name] = tuple(part for part in parts if part in ours)
            if any(part not in ours for part in parts):
                unknown.append(name)
    if unknown:
        first = unknown[0]
        near = did_you_mean(first, ours) or "."
        more = f" So are {', '.join(map(quote, unknown[1:5]))}{', ...' if len(unknown) > 5 else ''}." * (
            len(unknown) > 1
        )
        raise UserError(
            f"{others.source}: treatment {quote(first)} is unknown in this study{near}{more} Map it to one of ours "
            f"with --map '{first}=OURS', or leave it out with --map '{first}='. Ours: {'; '.join(ours)}."
        )
    return translated


def match_results(
    others: OtherResults,
    labels: Mapping[str, tuple[str, ...]],
    ours: Mapping[CellKey, OurCell],
    by_density: bool,
) -> tuple[dict[CellKey, list[OtherResult]], dict[tuple[str, str], int]]:
    """Return (our label, our level) -> their results, and (label, place) -> number of results without a counterpart."""
    grouped: dict[CellKey, list[OtherResult]] = defaultdict(list)
    unmatched: dict[tuple[str, str], int] = defaultdict(int)
    for result in others.results:
        for label in labels[result.treatment]:
            level = _matching_level(result, label, ours, by_density)
            if level is None:
                place = f"level {result.level}" if not by_density else f"{format_percent(100 * (result.density or 0))}%"
                unmatched[label, place] += 1
            else:
                grouped[label, level].append(result)
    return grouped, unmatched


def _matching_level(result: OtherResult, label: str, ours: Mapping[CellKey, OurCell], by_density: bool) -> int | None:
    """Return our level with finished runs that a result belongs to; None if there is none."""
    if not by_density:
        assert result.level is not None
        return result.level if find_cell_key(ours, label, result.level) in ours else None
    density = result.density
    assert density is not None
    levels = [level for name, level in ours if name == label and level > 0]
    candidates = [ours[key] for level in (0, *levels) if (key := find_cell_key(ours, label, level)) in ours]
    nearest = min(candidates, key=lambda cell: abs(math.log(cell.remaining / 100 / density)), default=None)
    if nearest is None or not math.isclose(nearest.remaining / 100, density, rel_tol=DENSITY_TOLERANCE):
        return None
    return nearest.level


def find_cell_key(ours: Mapping[CellKey, OurCell], label: str, level: int) -> CellKey:
    """Return the key of our runs of a treatment and level, which need not exist.

    At level 0 these are the treatment's own dense network if it has one, else the dense network of the study.
    """
    return (label, level) if level or (label, level) in ours else (DENSE, 0)


def no_overlap(
    others: OtherResults,
    ours: Mapping[CellKey, OurCell],
    unmatched: Mapping[tuple[str, str], int],
    by_density: bool,
) -> str:
    if not unmatched:
        return f"--map leaves out every treatment of {others.source}: there is nothing to compare with."
    places = list(dict.fromkeys(place for _, place in unmatched))
    theirs = ", ".join(places[:8]) + (", ..." if len(places) > 8 else "")
    groups = sorted(ours.values(), key=lambda group: group.level)
    if by_density:
        shown = list(dict.fromkeys(f"{format_percent(group.remaining)}%" for group in groups))
        rule = f"densities match within {DENSITY_TOLERANCE:.0%}; numbers of levels match without --density"
    else:
        shown = list(dict.fromkeys(f"level {group.level}" for group in groups))
        rule = "if the levels of the two have other prune rates, match them with --density COLUMN"
    here = ", ".join(shown[:30])
    return (
        f"no treatment and level of {others.source} has finished runs here. There: {theirs}. Here: {here} of "
        f"{'; '.join(dict.fromkeys(group.label for group in groups))}. Note: {rule}."
    )


def unmatched_notes(source: str, unmatched: Mapping[tuple[str, str], int]) -> list[str]:
    if not unmatched:
        return []
    places = [f"{label} at {place}" for label, place in unmatched]
    listed = "; ".join(places[:6]) + ("; ..." if len(places) > 6 else "")
    return [f"{len(places)} cells of {source} have no finished run here and are left out: {listed}."]
