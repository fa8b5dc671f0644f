"""Cell by cell comparison of two sets of independent runs: one treatment at one level of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from supermask.analysis.comparisons.matching import (
    OurCell,
    find_cell_key,
    group_our_runs,
    left_out_notes,
    match_results,
    no_overlap,
    translate_names,
)
from supermask.analysis.comparisons.other_results import OtherResult, OtherResults
from supermask.analysis.stats import Comparison, Equivalence, compare, equivalence, holm
from supermask.analysis.stats.comparison import rounding_error
from supermask.analysis.summary import Metric, check_one_experiment
from supermask.core.errors import UserError, quote
from supermask.core.text import Row, agree, escape_controls, format_number, pluralize
from supermask.store.tables import DENSE

CELL_SIGNIFICANCE = 0.01
"""A cell differs by itself if its p is below this; one cell in a hundred does so by chance."""

DEFAULT_MARGIN = 0.2
"""Percentage points within which two accuracies near 98% count as equivalent."""

MAX_VALUE = 1e100
"""Largest value that is compared; the squares of larger ones leave the range of floats."""


@dataclass(frozen=True)
class CellComparison:
    """One treatment at one level: our runs, those of others, and Welch's test of the difference."""

    treatment: str
    level: int
    remaining: float
    """Weights remaining here, in percent."""
    other_remaining: float | None
    """Weights remaining there, in percent; None if it is not known."""
    n: int
    mean: float
    std: float | None
    """Sample standard deviation; None for a single run."""
    other_n: int
    other_mean: float
    other_std: float | None
    comparison: Comparison
    """Ours minus theirs, in the metric's unit."""
    equivalence: Equivalence | None
    """None if no margin was given."""
    p_holm: float | None = None
    """p after Holm's correction over all cells, valid under any dependence between them."""

    @property
    def differs(self) -> bool:
        """True if p of this cell alone is below `CELL_SIGNIFICANCE`."""
        return self.comparison.p is not None and self.comparison.p < CELL_SIGNIFICANCE

    @property
    def equivalent(self) -> bool:
        """True if the difference is shown to lie within the margin (two one-sided tests, 5%)."""
        return self.equivalence is not None and self.equivalence.equivalent


@dataclass(frozen=True)
class TreatmentCounts:
    """Counts of cells of one treatment, or of all."""

    treatment: str
    cells: int
    tested: int
    """Cells with at least two runs on each side and some spread."""
    differing: int
    """Cells with p < `CELL_SIGNIFICANCE`."""
    differing_after_holm: int
    """Cells with p < `CELL_SIGNIFICANCE` after Holm's correction over all cells of the comparison."""
    equivalent: int
    mean_difference: float
    """Mean over the cells, in the metric's unit; a description, not tested: levels of a chain are correlated."""

    @property
    def expected_by_chance(self) -> float:
        """Mean number of differing cells if nothing differs."""
        return CELL_SIGNIFICANCE * self.tested


@dataclass(frozen=True)
class ResultComparison:
    """Our results beside those of others."""

    study: str
    """Name of the study."""
    subject: str
    """Network and dataset."""
    source: str
    """File or store of the others' results."""
    metric: Metric
    """The quantity that is compared, with its unit."""
    margin: float | None
    """Margin of equivalence in the metric's unit; None if equivalence is not tested."""
    cells: tuple[CellComparison, ...]
    """One per treatment and level with runs on both sides, in the order of the study."""
    shared_runs: int
    """Runs of the same treatment, level and seed on both sides."""
    equal_runs: int
    """The shared runs with the same value on both sides, up to the rounding error of a change of units."""
    notes: tuple[str, ...]
    """Sentences on how the others' results were read, and on what is left out."""

    @property
    def total(self) -> TreatmentCounts:
        """Counts over all cells."""
        return _count("all", self.cells)

    @property
    def by_treatment(self) -> list[TreatmentCounts]:
        """Counts of each treatment, in the order of the study."""
        labels = dict.fromkeys(cell.treatment for cell in self.cells)
        return [_count(label, [cell for cell in self.cells if cell.treatment == label]) for label in labels]

    def data_rows(self) -> list[Row]:
        """Return one row per cell, for tables, figures and files."""
        return [_data_row(self, cell) for cell in self.cells]

    def summary(self) -> list[str]:
        """Return the conclusions as sentences."""
        return _summary(self)


def compare_results(
    rows: Sequence[Row],
    others: OtherResults,
    metric: Metric,
    treatments: Sequence[str],
    study: str,
    margin: float | None = None,
    names: Mapping[str, str] | None = None,
    by_density: bool = False,
) -> ResultComparison:
    """Compare finished runs with those of others: Welch's test for each treatment and level.

    `treatments`: labels of the study, in their order. `names`: their name of a treatment -> our label, or an empty
    text to leave it out; other names have to be equal to ours. Level 0 is the dense network, whatever its treatment,
    unless ours have dense networks of their own.
    `by_density`: match each of their results with our level of the nearest density, at most `DENSITY_TOLERANCE`
    (relative) apart; otherwise levels match by number, and their densities have to agree as closely if both are known
    and determined by prune rates. `margin` is in the metric's unit.

    The seeds of two programs have nothing in common, so cells are never paired, and the test is conservative where
    they do. Raises UserError for unknown names, if two of their treatments are one of ours, and if no cell has runs on
    both sides.
    """
    ours = group_our_runs(rows, metric)
    if not ours:
        raise UserError(
            f"no run of study {quote(study)} with these settings has finished with {metric.column}: `supermask run` it "
            "first, with the same settings and the same --store."
        )
    mine_by_value = ((value, cell.label, cell.level) for cell in ours.values() for value in cell.values.values())
    _check_range("here", mine_by_value, metric)
    _check_range(
        escape_controls(others.source), ((run.value, run.treatment, run.level) for run in others.results), metric
    )
    labels = translate_names(others, names or {}, [DENSE, *treatments])
    matched = match_results(others, labels, ours, by_density)
    if not matched.cells:
        raise UserError(no_overlap(others, ours, matched.left_out, by_density))
    cells: list[CellComparison] = []
    shared = equal = 0
    for label, level in sorted(matched.cells, key=lambda key: ([DENSE, *treatments].index(key[0]), key[1])):
        theirs, mine = matched.cells[label, level], ours[find_cell_key(ours, label, level)]
        pairs = [(mine.values[result.seed], result.value) for result in theirs if result.seed in mine.values]
        shared += len(pairs)
        equal += sum(abs(a - b) <= rounding_error((a, b)) for a, b in pairs)
        cells.append(_compare_cell(mine, theirs, margin))
    adjusted = holm([cell.comparison.p for cell in cells])
    cells = [replace(cell, p_holm=p) for cell, p in zip(cells, adjusted, strict=True)]
    notes = [*others.notes, *left_out_notes(others.source, matched.left_out)]
    subject = check_one_experiment(rows)
    return ResultComparison(study, subject, others.source, metric, margin, tuple(cells), shared, equal, tuple(notes))


def _check_range(source: str, runs: Iterable[tuple[float, str, int | None]], metric: Metric) -> None:
    """Raise UserError if a value cannot be squared. `runs`: (value, treatment, level)."""
    for value, treatment, level in runs:
        if abs(value) > MAX_VALUE:
            place = "" if level is None else f" at level {level}"
            raise UserError(
                f"{source}: {metric.column} of treatment {quote(treatment)}{place} is {value:g}; values of at most "
                f"{MAX_VALUE:g} are compared. Leave out runs that diverged."
            )


def _compare_cell(mine: OurCell, theirs: Sequence[OtherResult], margin: float | None) -> CellComparison:
    values, others = list(mine.values.values()), [result.value for result in theirs]
    # Distinct keys on the two sides: the runs are not paired, so the test is Welch's.
    comparison = compare(dict(enumerate(values)), {-1 - place: value for place, value in enumerate(others)})
    densities = [result.density for result in theirs if result.density is not None]
    # The label of the study, except for the dense network, which belongs to every treatment.
    return CellComparison(
        mine.label,
        mine.level,
        mine.remaining,
        100 * math.fsum(densities) / len(densities) if densities else None,
        len(values),
        math.fsum(values) / len(values),
        _std(values),
        len(others),
        math.fsum(others) / len(others),
        _std(others),
        comparison,
        None if margin is None else equivalence(comparison, margin),
    )


def _std(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    middle = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def _count(treatment: str, cells: Sequence[CellComparison]) -> TreatmentCounts:
    return TreatmentCounts(
        treatment,
        len(cells),
        sum(cell.comparison.p is not None for cell in cells),
        sum(cell.differs for cell in cells),
        sum(cell.p_holm is not None and cell.p_holm < CELL_SIGNIFICANCE for cell in cells),
        sum(cell.equivalent for cell in cells),
        math.fsum(cell.comparison.difference for cell in cells) / len(cells),
    )


def _data_row(result: ResultComparison, cell: CellComparison) -> Row:
    low, high = cell.comparison.interval95 or (None, None)
    low90, high90 = (cell.equivalence.interval90 or (None, None)) if cell.equivalence else (None, None)
    return {
        "treatment": cell.treatment,
        "level": cell.level,
        "weights_remaining_percent": cell.remaining,
        "other_weights_remaining_percent": cell.other_remaining,
        "measure": result.metric.column,
        "unit": result.metric.unit,
        "n": cell.n,
        "mean": cell.mean,
        "std": cell.std,
        "other_n": cell.other_n,
        "other_mean": cell.other_mean,
        "other_std": cell.other_std,
        "difference": cell.comparison.difference,
        "difference_low95": low,
        "difference_high95": high,
        "test": cell.comparison.test,
        "t": cell.comparison.t,
        "degrees_of_freedom": cell.comparison.degrees_of_freedom,
        "p": cell.comparison.p,
        "p_holm": cell.p_holm,
        "differs": cell.differs if cell.comparison.p is not None else None,
        "margin": result.margin,
        "difference_low90": low90,
        "difference_high90": high90,
        "p_equivalence": cell.equivalence.p if cell.equivalence else None,
        "equivalent": cell.equivalent if cell.equivalence and cell.equivalence.p is not None else None,
        "note": cell.comparison.note or None,
    }


def _summary(result: ResultComparison) -> list[str]:
    total = result.total
    untested = total.cells - total.tested
    sentences: list[str] = []
    if total.tested:
        tested = pluralize(total.tested, "tested cell")
        differ = agree("differs", "differ", total.differing, total.tested)
        differ_after_holm = agree("differs", "differ", total.differing_after_holm)
        sentences += [
            f"{total.differing} of {tested} {differ} at p < {CELL_SIGNIFICANCE:g}; "
            f"{format_number(total.expected_by_chance)} would by chance. Levels of one chain are correlated, so the "
            "number is a description and no test.",
            f"{total.differing_after_holm} {differ_after_holm} after Holm's correction over all cells; by chance, any "
            f"does in at most {CELL_SIGNIFICANCE:.0%} of tables.",
        ]
    if untested:
        be = agree("is", "are", untested)
        sentences.append(f"{pluralize(untested, 'cell')} {be} not tested: fewer than two runs, or no spread.")
    if result.margin is not None and total.tested:
        unit = "points" if result.metric.unit == "percent" else result.metric.unit
        be = agree("is", "are", total.equivalent, total.tested)
        sentences.append(
            f"{total.equivalent} of {tested} {be} equivalent within {result.margin:g} {unit} (two one-sided tests, 5%);"
            " a cell that neither differs nor is equivalent has too few runs to tell."
        )
    if result.shared_runs:
        have = agree("has", "have", result.equal_runs, result.shared_runs)
        sentences.append(
            f"{result.equal_runs} of {pluralize(result.shared_runs, 'run')} with the same treatment, level and seed "
            f"{have} exactly the same value."
        )
    return sentences
