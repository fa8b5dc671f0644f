"""Treatments and levels of others matched with ours."""

from __future__ import annotations

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from supermask.analysis.comparisons.other_results import OtherResult, OtherResults, check_distinct_runs
from supermask.analysis.summary import DENSITY_TOLERANCE, Metric
from supermask.core.errors import UserError, did_you_mean, quote, sanitize
from supermask.core.text import Row, agree, escape_controls, format_percent, pluralize
from supermask.store.tables import AUXILIARY, DENSE, TREATMENT_SEPARATOR, treatment_labels

MAX_LISTED = 30
"""Treatments, levels or densities that a message lists."""

MAX_LISTED_CELLS = 6
"""Cells that a note lists."""

CellKey = tuple[str, int]
"""(label of the treatment, level)."""


@dataclass(frozen=True)
class OurCell:
    """Runs of one treatment and level."""

    label: str
    level: int
    remaining: float
    """Mean weights remaining, in percent."""
    has_fixed_density: bool
    """True if prune rates determine the density, and no training that learns a mask."""
    values: dict[str, float]
    """Seed -> value."""


LeftOutReason = Literal["no run", "other density", "farther density"]
"""No finished run here; other weights remaining than at that level here; another of their densities is nearer."""


@dataclass(frozen=True)
class LeftOutCell:
    """Runs of others that are compared with none of ours."""

    label: str
    """Our label of their treatment."""
    place: str
    """Their level or density."""
    reason: LeftOutReason
    hint: str = ""
    """Sentence on what to do."""


@dataclass(frozen=True)
class MatchedResults:
    """Results of others by our cells."""

    cells: dict[CellKey, list[OtherResult]]
    left_out: tuple[LeftOutCell, ...]


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
            _has_fixed_density(group),
            {str(row["seed"]): float(row[metric.column] or 0) * metric.scale for row in group},
        )
        for (label, level), group in grouped.items()
    }


def _has_fixed_density(rows: Sequence[Row]) -> bool:
    is_learned = any(row.get("supermask") or row.get("scope") == "threshold" for row in rows)
    return not is_learned and len({row["density"] for row in rows}) == 1


def translate_names(others: OtherResults, names: Mapping[str, str], ours: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return their name of a treatment -> our labels.

    Raises UserError for names that are unknown on either side, and if two of their treatments are one of ours.
    """
    source = escape_controls(others.source)
    theirs = list(dict.fromkeys(result.treatment for result in others.results))
    for name, label in names.items():
        option = f"--map {quote(f'{name}={label}')}"
        if name not in theirs:
            near = did_you_mean(name, theirs) or "."
            raise UserError(f"{option}: {source} has no treatment {quote(name)}{near}")
        if label and label not in ours:
            near = did_you_mean(label, ours) or "."
            raise UserError(f"{option}: {quote(label)} is not a treatment of this study{near}")
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
    names_by_label: dict[str, str] = {}
    for name in theirs:
        # Joined labels are of one run, and a treatment has them at some levels only.
        for label in translated[name] if name in names or name in ours else ():
            if label in names_by_label:
                raise UserError(_two_names(source, names_by_label[label], name, label))
            names_by_label[label] = name
    if unknown:
        first = unknown[0]
        near = did_you_mean(first, ours) or "."
        more = f" So are {', '.join(map(quote, unknown[1:5]))}{', ...' if len(unknown) > 5 else ''}." * (
            len(unknown) > 1
        )
        # A name that no terminal shows as it is, or none of one line, is not repeated.
        theirs_shown = first if first.isprintable() and len(first) <= 40 else "THEIRS"
        option, leave_out = (shlex.quote(f"{theirs_shown}={ours_shown}") for ours_shown in ("OURS", ""))
        raise UserError(
            f"{source}: treatment {quote(first)} is unknown in this study{near}{more} Map it to one of ours with --map "
            f"{option}, or leave it out with --map {leave_out}. Ours: {_list_labels(ours)}."
        )
    return translated


def parse_name_pairs(pairs: Sequence[str], theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """Return their name -> our label, or an empty text, from pairs `THEIRS=OURS`.

    Names on both sides may contain `=`, such as `lr=0.1`: a pair is split where both exist. If they do nowhere, it is
    split after a name of theirs, before a label of ours, or at the last `=`. Raises UserError.
    """
    names: dict[str, str] = {}
    for pair in pairs:
        splits = [(pair[:i], pair[i + 1 :]) for i, sign in enumerate(pair) if sign == "=" and i > 0]
        if not splits:
            raise UserError(f"--map {quote(pair)}: give THEIRS=OURS, such as --map magnitude=large_final.")
        known = [(name, label) for name, label in splits if name in theirs and label in ("", *ours)]
        if len(known) > 1:
            ways = " and as ".join(f"{quote(name)} to {quote(label)}" for name, label in known)
            raise UserError(f"--map {quote(pair)} can be read as {ways}: rename one of the treatments.")
        half_known = [split for split in splits if split[0] in theirs] or [s for s in splits if s[1] in ours]
        name, label = (known or half_known or splits)[-1]
        if name in names:
            raise UserError(f"--map names {quote(name)} twice: give each of their treatments once.")
        names[name] = label
    return names


def _list_labels(labels: Iterable[str]) -> str:
    shown = list(map(sanitize, dict.fromkeys(labels)))
    return "; ".join(shown[:MAX_LISTED]) + ("; ..." if len(shown) > MAX_LISTED else "")


def _two_names(source: str, first: str, second: str, label: str) -> str:
    return (
        f"{source}: {quote(first)} and {quote(second)} are both {quote(label)} here, and their runs are not one "
        "treatment's: leave out one of the two with --map THEIRS=."
    )


def match_results(
    others: OtherResults,
    labels: Mapping[str, tuple[str, ...]],
    ours: Mapping[CellKey, OurCell],
    by_density: bool,
) -> MatchedResults:
    """Match their results with our cells by level, or by density. `labels`: their name of a treatment -> our labels.

    Raises UserError if runs of two of their treatments meet in one cell.
    """
    grouped: dict[CellKey, list[OtherResult]] = defaultdict(list)
    left_out: list[LeftOutCell] = []
    for result in others.results:
        for label in labels[result.treatment]:
            level = _matching_level(result, label, ours, by_density)
            if level is None:
                left_out.append(LeftOutCell(label, _place(result, by_density), "no run"))
            else:
                grouped[label, level].append(result)
    cells: dict[CellKey, list[OtherResult]] = {}
    for (label, level), results in grouped.items():
        _check_distinct_treatments(escape_controls(others.source), label, results)
        mine = ours[find_cell_key(ours, label, level)]
        if by_density:
            cells[label, level], farther = _split_by_density(results, mine)
            for result in farther:
                hint = "If the density varies between runs of one level, name their seeds with --seed."
                place, hint = _place(result, by_density), hint if result.seed is None else ""
                left_out.append(LeftOutCell(label, place, "farther density", hint))
        elif _has_other_density(results, mine):
            is_near = any(_matching_level(result, label, ours, by_density=True) is not None for result in results)
            hint = "--density density matches levels by weights remaining." if is_near else ""
            left_out.append(LeftOutCell(label, _describe_densities(results, mine), "other density", hint))
        else:
            cells[label, level] = results
    return MatchedResults(_drop_repeated_dense(cells, ours), tuple(dict.fromkeys(left_out)))


def _place(result: OtherResult, by_density: bool) -> str:
    return f"{format_percent(100 * (result.density or 0))}%" if by_density else f"level {result.level}"


def _has_other_density(results: Sequence[OtherResult], mine: OurCell) -> bool:
    """Return True if a run of theirs has other weights remaining than ours, and prune rates determine ours."""
    densities = [result.density for result in results if result.density is not None]
    return mine.has_fixed_density and not all(_is_near(density, mine) for density in densities)


def _is_near(density: float, mine: OurCell) -> bool:
    return math.isclose(mine.remaining / 100, density, rel_tol=DENSITY_TOLERANCE)


def _describe_densities(results: Sequence[OtherResult], mine: OurCell) -> str:
    """Return `level 1 (80%, here 65.1%)`."""
    densities = [result.density for result in results if result.density is not None]
    ends = dict.fromkeys(format_percent(100 * density) for density in (min(densities), max(densities)))
    return f"level {mine.level} ({' to '.join(ends)}%, here {format_percent(mine.remaining)}%)"


def _check_distinct_treatments(source: str, label: str, results: Sequence[OtherResult]) -> None:
    """Raise UserError if several of their treatments are in one cell, unless their seeds are known and distinct."""
    names = list(dict.fromkeys(result.treatment for result in results))
    seeds = {result.seed for result in results}
    if len(names) > 1 and (None in seeds or len(seeds) < len(results)):
        raise UserError(_two_names(source, names[0], names[1], label))


def _split_by_density(results: Sequence[OtherResult], mine: OurCell) -> tuple[list[OtherResult], list[OtherResult]]:
    """Return (results of their level that is nearest in density to ours, those of their other levels).

    If only densities are known, they are of several levels if a seed occurs twice; without seeds, if ours has the same
    density in all runs.
    """
    seeds = [result.seed for result in results]
    if any(result.level is None for result in results):
        varies = not mine.has_fixed_density if None in seeds else len(set(seeds)) == len(seeds)
        if varies:
            return list(results), []
    by_place: dict[float | None, list[OtherResult]] = defaultdict(list)
    for result in results:
        by_place[result.density if result.level is None else result.level].append(result)
    nearest = min(by_place, key=lambda place: min(_log_distance(result, mine) for result in by_place[place]))
    return by_place[nearest], [result for place in by_place if place != nearest for result in by_place[place]]


def _log_distance(result: OtherResult, mine: OurCell) -> float:
    """Return the distance of two densities as |log(ratio)|; infinity if one is unknown or 0."""
    if not result.density or not mine.remaining:
        return math.inf
    return abs(math.log(mine.remaining / 100 / result.density))


def _drop_repeated_dense(
    cells: Mapping[CellKey, list[OtherResult]], ours: Mapping[CellKey, OurCell]
) -> dict[CellKey, list[OtherResult]]:
    """Return the cells with the dense network once: tables often repeat all or some of it for each treatment."""
    repeated: set[CellKey] = set()
    kept: dict[CellKey, list[Counter[float]]] = defaultdict(list)
    for key in sorted((key for key in cells if key[1] == 0), key=lambda key: -len(cells[key])):
        values, earlier = Counter(result.value for result in cells[key]), kept[find_cell_key(ours, *key)]
        if any(not values - others for others in earlier):
            repeated.add(key)
        earlier.append(values)
    return {key: results for key, results in cells.items() if key not in repeated}


def _matching_level(result: OtherResult, label: str, ours: Mapping[CellKey, OurCell], by_density: bool) -> int | None:
    """Return our level with finished runs that a result belongs to; None if there is none."""
    if not by_density:
        assert result.level is not None
        return result.level if find_cell_key(ours, label, result.level) in ours else None
    levels = [level for name, level in ours if name == label and level > 0]
    candidates = [ours[key] for level in (0, *levels) if (key := find_cell_key(ours, label, level)) in ours]
    nearest = min(candidates, key=lambda cell: _log_distance(result, cell), default=None)
    if nearest is None or not _is_near(result.density or 0.0, nearest):
        return None
    return nearest.level


def find_cell_key(ours: Mapping[CellKey, OurCell], label: str, level: int) -> CellKey:
    """Return the key of our runs of a treatment and level, which need not exist.

    At level 0 these are the treatment's own dense network if it has one, else the dense network of the study.
    """
    return (label, level) if level or (label, level) in ours else (DENSE, 0)


def no_overlap(
    others: OtherResults, ours: Mapping[CellKey, OurCell], left_out: Sequence[LeftOutCell], by_density: bool
) -> str:
    """Return the message on results that have no cell in common with ours."""
    source = escape_controls(others.source)
    if not left_out:
        return f"--map leaves out every treatment of {source}: there is nothing to compare with."
    places = list(dict.fromkeys(cell.place for cell in left_out))
    theirs = ", ".join(places[:8]) + (", ..." if len(places) > 8 else "")
    cells = sorted(ours.values(), key=lambda cell: cell.level)
    if by_density:
        shown = list(dict.fromkeys(f"{format_percent(cell.remaining)}%" for cell in cells))
        rule = f"densities match within {DENSITY_TOLERANCE:.0%}; numbers of levels match without --density"
    else:
        shown = list(dict.fromkeys(f"level {cell.level}" for cell in cells))
        rule = "if the levels of the two have other prune rates, match them with --density COLUMN"
    here = ", ".join(shown[:MAX_LISTED])
    return (
        f"no treatment and level of {source} has finished runs here. There: {theirs}. Here: {here} of "
        f"{_list_labels(cell.label for cell in cells)}. Note: {rule}."
    )


def left_out_notes(source: str, left_out: Sequence[LeftOutCell]) -> list[str]:
    """Return a sentence on the cells that are left out for each reason."""
    notes = []
    for reason in dict.fromkeys(cell.reason for cell in left_out):
        cells = [cell for cell in left_out if cell.reason == reason]
        listed = "; ".join(f"{sanitize(cell.label)} at {cell.place}" for cell in cells[:MAX_LISTED_CELLS])
        listed += "; ..." if len(cells) > MAX_LISTED_CELLS else "."
        subject = f"{pluralize(len(cells), 'cell')} of {escape_controls(source)}"
        be, have = agree("is", "are", len(cells)), agree("has", "have", len(cells))
        if reason == "no run":
            sentence = f"{subject} {have} no finished run here and {be} left out: {listed}"
        elif reason == "other density":
            sentence = f"{subject} {be} left out: other weights remaining than at that level here. {listed}"
        else:
            sentence = f"{subject} {be} left out: another density of theirs is nearer to the level here. {listed}"
        hints = dict.fromkeys(cell.hint for cell in cells if cell.hint)
        notes.append(" ".join([sentence, *hints]))
    return notes
