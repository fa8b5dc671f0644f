"""Tests of single clauses: per clause one test over seeds of the mean over a band of levels, and a verdict.

docs/statistics.md has the rules, and how often they are wrong in simulated studies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from supermask.analysis.claims.evidence import ClaimData, LevelValues
from supermask.analysis.claims.findings import (
    MIN_SEEDS,
    ClauseFinding,
    Effect,
    LevelFinding,
    Outcome,
    Verdict,
)
from supermask.analysis.claims.sentences import describe_clause
from supermask.analysis.stats import (
    SIGNIFICANCE,
    Comparison,
    Margin,
    RelationTest,
    check_relation,
    compare,
    compare_to_constant,
    effect_interval,
    error_ratio,
    holm,
    paired_sign_flip_p,
    paired_spread,
    seed_means,
    seeds_needed,
)
from supermask.analysis.summary import DENSITY_TOLERANCE
from supermask.study.claims import CHANCE, DENSE, LEARNED_MASK_MEASURES, Clause


@dataclass(frozen=True)
class _Cell:
    """Both sides of a clause at one level, or means over levels: seed -> value, for the seeds that all sides have."""

    treatment: Mapping[int, float]
    reference: Mapping[int, float]
    control: Mapping[int, float] | None = None
    """Values of the control that the margin refers to."""

    @property
    def differences(self) -> dict[int, float]:
        """Seed -> treatment - reference."""
        return {seed: value - self.reference[seed] for seed, value in self.treatment.items()}

    def margin(self, clause: Clause) -> Margin:
        """The clause's margin: constant, or per seed a share of what the control loses against the reference.

        The mean of a share is negative if the control does better than the reference.
        """
        if self.control is None or clause.share is None:
            return clause.margin
        # Of iterations, a control loses what it takes more.
        sign = -1.0 if clause.is_iterations else 1.0
        share = sign * clause.share / 100.0
        return {seed: share * (value - self.control[seed]) for seed, value in self.reference.items()}

    def compare(self, clause: Clause) -> Comparison | None:
        """The comparison of both sides; None without two seeds."""
        if len(self.treatment) < 2:
            return None
        if clause.reference == CHANCE:
            return compare_to_constant(self.treatment, next(iter(self.reference.values())))
        return compare(self.treatment, self.reference)


@dataclass(frozen=True)
class _Tested:
    """A cell with its comparison and, from `MIN_SEEDS` seeds on, the test of the clause's relation."""

    cell: _Cell
    comparison: Comparison | None
    test: RelationTest | None
    """None with fewer seeds, and without a margin: then `has_no_margin`."""
    has_no_margin: bool = False
    """True if the margin is a share of what a control loses, and it loses nothing: the clause does not hold."""

    @property
    def p(self) -> float | None:
        return self.test.p if self.test else None

    @property
    def p_opposite(self) -> float | None:
        return self.test.p_opposite if self.test else None


def evaluate_clause(clause: Clause, evidence: ClaimData, detect: float = 0.0) -> ClauseFinding:
    """Test one clause on the rows of its study and return the verdict.

    The tested value of a seed is the mean over the band's levels of its difference at equal levels; there is one test
    over seeds. With `where: every` each level is tested at 0.05 (intersection-union); with `some` after Holm's
    correction. The levels are described in any case. `detect`: a difference of interest, 0 for the one that is found.
    Source: Zhou et al. 2019, authors' response, items 2 and 4.
    """
    places = _places(clause, evidence)
    cells = [_cell(place) for place in places]
    corrected_over = sum(len(cell.treatment) >= MIN_SEEDS for cell in cells) if clause.where == "some" else 1
    by_level = [_test_cell(clause, cell, corrected_over) for cell in cells]
    levels = tuple(_level_findings(clause, [place.treatment for place in places], by_level) if places else ())
    pooled = _test_cell(clause, _mean_cell(cells)) if places else None
    effect = None if pooled is None else _effect(clause, pooled, cells)
    note = " ".join(filter(None, (evidence.describe_nonconvergence(name) for name in compared_treatments([clause]))))
    verdict: Verdict = "not enough data" if note or effect is None else _verdict(clause, effect, levels)
    deciding_index = deciding_level(clause, by_level, [level.outcome for level in levels])
    by_index = None if deciding_index is None else by_level[deciding_index]
    deciding_test = pooled if clause.where == "mean" else by_index
    finding = ClauseFinding(
        treatment=clause.treatment,
        relation=clause.relation,
        reference=clause.reference,
        margin=clause.margin,
        verdict=verdict,
        sentence="",
        levels=levels,
        missing=tuple(_missing(clause, evidence, places)),
        seeds_needed=_seeds_needed(deciding_test, detect, corrected_over) if verdict == "not supported" else None,
        where=clause.where,
        effect=effect,
        unit="iterations" if clause.is_iterations else "points",
        note=note,
        at=clause.at,
        band=clause.band,
        share=clause.share,
        control=clause.control,
        deciding=deciding_index,
        detect=detect,
        censored=_censored(clause, places, cells, pooled) if clause.is_iterations else (),
    )
    return replace(finding, sentence=describe_clause(finding))


def deciding_level(clause: Clause, by_level: Sequence[_Tested], outcomes: Sequence[Outcome]) -> int | None:
    """Index of the level that decides the verdict where levels do; None without levels.

    If all levels have to hold, the level that is farthest from it; where the opposite is significant, the one of
    largest opposite difference. If one level has to hold, the level that is nearest to it. Levels without a test count
    only if there are no others.
    """
    decided = [index for index, tested in enumerate(by_level) if tested.p is not None or tested.has_no_margin]
    decided = decided or list(range(len(by_level)))
    if not decided:
        return None
    opposite = [index for index in decided if outcomes[index] == "opposite"]
    if opposite and clause.where == "every":
        return max(opposite, key=lambda index: abs(_mean(by_level[index].cell.differences) or 0.0))
    ranks = [(_distance(clause, by_level[index]), index) for index in decided]
    return (max(ranks) if clause.where == "every" else min(ranks))[1]


def _distance(clause: Clause, tested: _Tested) -> float:
    """Rank of a level by how far it is from holding, for any sign of its difference.

    A two-sided p is small for a difference of the wrong sign, too: there 2 - p ranks it.
    """
    if tested.test is None or tested.p is None:
        return 2.0
    is_two_sided = clause.relation in ("above", "below")
    return 2.0 - tested.p if is_two_sided and not tested.test.has_claimed_sign else tested.p


def compared_treatments(clauses: Iterable[Clause]) -> list[str]:
    """Return the labels that the clauses compare, without `chance`."""
    labels = [label for clause in clauses for label in (clause.treatment, clause.reference, clause.control)]
    return [label for label in dict.fromkeys(labels) if label is not None and label != CHANCE]


@dataclass(frozen=True)
class _Place:
    """Both sides of a clause at one level, with all of their seeds."""

    treatment: LevelValues
    reference: LevelValues | float
    """A number for chance."""
    control: LevelValues | None = None


def _places(clause: Clause, evidence: ClaimData) -> list[_Place]:
    """The levels of the clause, with the values of both sides and of the control."""
    cells = evidence.best_level if clause.at == "best" else evidence.levels
    treatment = cells(clause.treatment, clause.measure)
    if clause.band is not None:
        most, least = clause.band
        low, high = least * (1 - DENSITY_TOLERANCE), most * (1 + DENSITY_TOLERANCE)
        treatment = {level: cell for level, cell in treatment.items() if low <= cell.remaining <= high}
    if clause.levels is not None:
        first, last = clause.levels
        treatment = {level: cell for level, cell in treatment.items() if first <= level <= last}
    places: list[_Place] = []
    for cell in treatment.values():
        reference: LevelValues | float | None = evidence.chance
        if clause.reference != CHANCE:
            reference = _other_side_values(clause, clause.reference, cell, evidence)
        control = None if clause.control is None else _other_side_values(clause, clause.control, cell, evidence)
        if reference is not None and (control is not None) == (clause.control is not None):
            places.append(_Place(cell, reference, control))
    return places


def _other_side_values(clause: Clause, label: str, cell: LevelValues, evidence: ClaimData) -> LevelValues | None:
    """Values of another treatment to compare `cell` with, at the same level and density; None if there are none."""
    # The dense network has no measure of learned masks: its accuracy at early stopping takes part instead.
    is_mask_measure = label == DENSE and clause.measure in LEARNED_MASK_MEASURES
    measure = "early_stop_test_accuracy" if is_mask_measure else clause.measure
    cells = (evidence.best_level if clause.at == "best" else evidence.levels)(
        _row_label(clause, label, evidence), measure
    )
    if clause.at == "best" or label == DENSE:
        return next(iter(cells.values()), None)
    other = cells.get(cell.level)
    has_equal_density = other is not None and math.isclose(cell.remaining, other.remaining, rel_tol=DENSITY_TOLERANCE)
    return other if has_equal_density else None


def _row_label(clause: Clause, label: str, evidence: ClaimData) -> str:
    """The label of a side's rows: `dense` is the dense network that the clause's treatment is pruned from."""
    return evidence.dense_label(clause.treatment) if label == DENSE else label


def _cell(place: _Place) -> _Cell:
    """The sides at one level, for the seeds that all of them have."""
    treatment = place.treatment.values
    reference = place.reference
    by_seed = reference.values if isinstance(reference, LevelValues) else dict.fromkeys(treatment, reference)
    control = None if place.control is None else place.control.values
    seeds = sorted(treatment.keys() & by_seed.keys() & (treatment.keys() if control is None else control.keys()))
    return _Cell(
        {seed: treatment[seed] for seed in seeds},
        {seed: by_seed[seed] for seed in seeds},
        None if control is None else {seed: control[seed] for seed in seeds},
    )


def _mean_cell(cells: Sequence[_Cell]) -> _Cell:
    """Means over the levels, for the seeds that all sides have at every level."""
    controls = [cell.control for cell in cells if cell.control is not None]
    return _Cell(
        seed_means([cell.treatment for cell in cells]),
        seed_means([cell.reference for cell in cells]),
        seed_means(controls) if controls else None,
    )


def _test_cell(clause: Clause, cell: _Cell, corrected_over: int = 1) -> _Tested:
    """`corrected_over`: number of tests that Holm's correction counts."""
    comparison = cell.compare(clause)
    if comparison is None or len(cell.treatment) < MIN_SEEDS:
        return _Tested(cell, comparison, None)
    margin = cell.margin(clause)
    if isinstance(margin, Mapping) and fmean(margin.values()) <= 0.0:
        # A negative margin would turn the relation around: "at least as good" would ask for more than the reference.
        return _Tested(cell, comparison, None, has_no_margin=True)
    test = check_relation(clause.relation, comparison, cell.differences, margin, corrected_over)
    return _Tested(cell, comparison, test)


def _level_findings(clause: Clause, places: Sequence[LevelValues], by_level: Sequence[_Tested]) -> list[LevelFinding]:
    """`places`: the treatment at each level."""
    adjusted = holm([tested.p for tested in by_level])
    adjusted_opposite = holm([tested.p_opposite for tested in by_level])
    findings = []
    for place, tested, p_holm, p_opposite_holm in zip(places, by_level, adjusted, adjusted_opposite, strict=True):
        c, p_opposite = tested.comparison, tested.p_opposite
        # Claimed of every level: each at 0.05, and the opposite at some level after Holm's correction. Claimed of some
        # level: the other way round.
        claimed, opposite = {
            "every": (tested.p, p_opposite_holm),
            "some": (p_holm, p_opposite),
            "mean": (p_holm, p_opposite_holm),
        }[clause.where]
        findings.append(
            LevelFinding(
                level=place.level,
                remaining=place.remaining,
                n=len(tested.cell.treatment),
                test=c.test if c else "none",
                mean=_mean(tested.cell.treatment),
                reference_mean=_mean(tested.cell.reference),
                difference=c.difference if c else _mean(tested.cell.differences),
                interval95=c.interval95 if c else None,
                hedges_g=c.hedges_g if c else None,
                p=tested.p,
                p_holm=p_holm,
                outcome=_outcome(tested, claimed, opposite),
                note=_note(clause, tested),
                hedges_g_interval95=effect_interval(c) if c else None,
                p_opposite=p_opposite,
                p_opposite_holm=p_opposite_holm,
                p_sign_flip=_sign_flip_p(clause, tested),
            )
        )
    return findings


def _effect(clause: Clause, pooled: _Tested, cells: Sequence[_Cell]) -> Effect:
    """The primary endpoint. `cells`: both sides level by level, for the ratio of error rates."""
    c, cell = pooled.comparison, pooled.cell
    margin = cell.margin(clause)
    ratio = None if clause.is_iterations else error_ratio([(part.treatment, part.reference) for part in cells])
    return Effect(
        n=len(cell.treatment),
        test=c.test if c else "none",
        mean=_mean(cell.treatment),
        reference_mean=_mean(cell.reference),
        difference=c.difference if c else _mean(cell.differences),
        interval95=c.interval95 if c else None,
        margin=margin if isinstance(margin, float) else _mean(margin) or 0.0,
        p=pooled.p,
        p_opposite=pooled.p_opposite,
        outcome=_outcome(pooled, pooled.p, pooled.p_opposite),
        note=_note(clause, pooled),
        hedges_g=c.hedges_g if c else None,
        hedges_g_interval95=effect_interval(c) if c else None,
        p_sign_flip=_sign_flip_p(clause, pooled),
        error_ratio=ratio.ratio if ratio else None,
        error_ratio_interval95=(ratio.low, ratio.high) if ratio and ratio.low and ratio.high else None,
    )


def _outcome(tested: _Tested, p_claimed: float | None, p_opposite: float | None) -> Outcome:
    test = tested.test
    if tested.has_no_margin:
        return "undecided"
    if test is None or (p_claimed is None and p_opposite is None):
        return "untested"
    if test.has_claimed_sign:
        return "holds" if p_claimed is not None and p_claimed < SIGNIFICANCE else "undecided"
    return "opposite" if p_opposite is not None and p_opposite < SIGNIFICANCE else "undecided"


def _note(clause: Clause, tested: _Tested) -> str:
    if tested.has_no_margin:
        return f"{clause.control} loses nothing against {clause.reference}, so a share of it is no margin"
    if tested.test is None:
        return f"fewer than {MIN_SEEDS} seeds on a side"
    return tested.comparison.note if tested.comparison else ""


def _mean(values: Mapping[int, float]) -> float | None:
    return fmean(values.values()) if values else None


def _sign_flip_p(clause: Clause, tested: _Tested) -> float | None:
    if (tested.test is None and not tested.has_no_margin) or clause.reference == CHANCE:
        return None
    return paired_sign_flip_p(tested.cell.treatment, tested.cell.reference)


def _verdict(clause: Clause, effect: Effect, levels: Sequence[LevelFinding]) -> Verdict:
    if clause.where == "mean":
        outcomes: list[Outcome] = [effect.outcome]
    else:
        outcomes = [level.outcome for level in levels]
    holds, opposite, untested = (outcomes.count(outcome) for outcome in ("holds", "opposite", "untested"))
    if clause.where == "some":
        if holds:
            return "supported"
        if untested:
            return "not enough data"
        return "contradicted" if opposite == len(outcomes) else "not supported"
    if opposite:
        return "contradicted"
    if untested:
        return "not enough data"
    return "supported" if holds == len(outcomes) else "not supported"


def _missing(clause: Clause, evidence: ClaimData, places: Sequence[_Place]) -> list[str]:
    """Unfinished runs at the levels of the clause, all levels for `at: best`."""
    numbers = {place.treatment.level for place in places}
    missing: list[str] = []
    for label in compared_treatments([clause]):
        rows = _row_label(clause, label, evidence)
        levels = evidence.level_numbers(rows) if clause.at == "best" else {0} if label == DENSE else numbers
        missing += evidence.describe_missing(rows, levels)
    return missing


def _censored(
    clause: Clause, places: Sequence[_Place], cells: Sequence[_Cell], pooled: _Tested | None
) -> tuple[tuple[str, int, int], ...]:
    """(label, runs whose lowest loss was at the last iteration, runs) of each side, over the runs that are compared."""
    # A mean over levels has the seeds that all levels have.
    seeds = [pooled.cell.treatment if pooled and clause.where == "mean" else cell.treatment for cell in cells]
    sides: dict[str | None, Sequence[LevelValues | float | None]] = {
        clause.treatment: [place.treatment for place in places],
        clause.reference: [place.reference for place in places],
        clause.control: [place.control for place in places],
    }
    counts = []
    for label, values in sides.items():
        if label is not None and label != CHANCE:
            compared = [(value, at) for value, at in zip(values, seeds, strict=True) if isinstance(value, LevelValues)]
            runs = {(value.level, seed): seed in value.censored for value, at in compared for seed in at}
            counts.append((label, sum(runs.values()), len(runs)))
    return tuple(counts)


def _seeds_needed(tested: _Tested | None, detect: float, corrected_over: int) -> int | None:
    if tested is None or tested.test is None or tested.comparison is None:
        return None
    spread = paired_spread(tested.comparison)
    if detect:
        return seeds_needed(detect, spread, alpha=SIGNIFICANCE / corrected_over) if spread else None
    return tested.test.seeds_needed
