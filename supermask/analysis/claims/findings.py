"""Results of the evaluation of claims, as plain data for the command line, the report and notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["supported", "not supported", "contradicted", "not enough data", "no verdict"]
"""`no verdict`: the data is a demonstration."""

Outcome = Literal["holds", "opposite", "undecided", "untested"]
"""Result of one test. `opposite`: the opposite of the claim is significant."""

MIN_SEEDS = 5
"""Seeds that both sides need; with fewer there is no test and no verdict."""

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class LevelFinding:
    """One treatment against its reference at one level. Accuracies and differences are in percentage points."""

    level: int
    remaining: float
    """Weights remaining in the treatment's networks, percent (mean over seeds)."""
    n: int
    """Seeds that both sides have."""
    test: str
    """`paired t` or `one-sample t`; `none` if there was no test."""
    mean: float | None
    """None if no run has finished; the same for the fields below."""
    reference_mean: float | None
    difference: float | None
    interval95: Interval
    hedges_g: float | None
    p: float | None
    """p of the clause at this level alone, not corrected."""
    p_holm: float | None
    """p after Holm's correction over the levels of the clause."""
    outcome: Outcome
    """By `p` if every level has to hold, else by `p_holm`. It decides the verdict only if `where` is not `mean`."""
    note: str = ""
    """Reason if there was no test."""
    hedges_g_interval95: Interval = None
    p_opposite: float | None = None
    """p of the opposite of the clause at this level alone."""
    p_opposite_holm: float | None = None
    p_sign_flip: float | None = None
    """p of the exact two-sided sign-flip test of no difference at this level alone; None for chance."""


@dataclass(frozen=True)
class Effect:
    """Primary endpoint: the per-seed mean over the band of the difference at equal levels, and one test over seeds."""

    n: int
    """Seeds that both sides have at every level of the band."""
    test: str
    """`paired t` or `one-sample t`; `none` if there was no test."""
    mean: float | None
    reference_mean: float | None
    difference: float | None
    interval95: Interval
    margin: float
    """In the unit of the measure; if it is a share of what a control loses, its mean over seeds."""
    p: float | None
    """p of the clause."""
    p_opposite: float | None
    outcome: Outcome
    note: str = ""
    hedges_g: float | None = None
    hedges_g_interval95: Interval = None
    p_sign_flip: float | None = None
    error_ratio: float | None = None
    """Error rate of the treatment / error rate of the reference, geometric mean; None for iterations."""
    error_ratio_interval95: Interval = None


@dataclass(frozen=True)
class ClauseFinding:
    """One clause of a claim: a relation between a treatment and its reference."""

    treatment: str
    relation: str
    """`above`, `below`, `at_least`, `at_most` or `matches`."""
    reference: str
    """A treatment, `dense` or `chance`."""
    margin: float
    """In the unit of the measure; 0 if it is a share of what a control loses."""
    verdict: Verdict
    sentence: str
    """The result in one line of plain text, with n, effect, interval and p."""
    levels: tuple[LevelFinding, ...]
    missing: tuple[str, ...] = ()
    """Unfinished runs: `large_final: 3 to do`, `random: 1 diverged (level 4 seed 2)`."""
    seeds_needed: int | None = None
    """Seeds for a power of 80% at the difference found (or the one of interest), with the observed spread; None if it
    is supported or unknown."""
    where: Literal["mean", "every", "some"] = "mean"
    """`mean`: one test of the mean over the band; `every`: all levels have to hold; `some`: one of them."""
    effect: Effect | None = None
    """None if there is no level to compare at."""
    unit: Literal["points", "iterations"] = "points"
    note: str = ""
    """Reason for which the clause has no verdict."""
    at: Literal["levels", "best"] = "levels"
    band: tuple[float, ...] | None = None
    """The band stated, in percent of weights remaining; `levels` has the levels that it contains."""
    share: float | None = None
    """The margin as a share, in percent, of what `control` loses."""
    control: str | None = None
    deciding: int | None = None
    """Index of the level that decides where levels do."""
    detect: float = 0.0
    """The difference of interest that `seeds_needed` is for; 0 for the one that was found."""
    censored: tuple[tuple[str, int, int], ...] = ()
    """For iterations, per side: label, runs whose lowest validation loss was at the last iteration, runs compared."""


@dataclass(frozen=True)
class ClaimFinding:
    """A claim with its verdict."""

    id: str
    number: int | None
    """Number of the paper's claim, 1 to 15; None for a user's own."""
    statement: str
    study: str
    """Name of the evaluated study."""
    source: str
    figure: str
    """Name of the figure that shows it (`accuracy`, `heuristic`, `supermasks`); empty if there is none."""
    verdict: Verdict
    sentence: str
    clauses: tuple[ClauseFinding, ...]
    dataset: str = ""
    """Data set of the study; empty if no study was evaluated."""
    data_notes: tuple[str, ...] = ()
    """Notes on the data of its runs, such as a nonstandard source."""
    part: str = ""
    """Letter that tells the parts of one numbered claim apart, such as one per network; empty if there is one."""
    setting: str = ""
    """Network, data and length of training of the evaluated runs: `fc-300-100 on mnist, 16,500 iterations`."""

    def __repr__(self) -> str:
        return f"claim {self.name}, {self.verdict}: {self.sentence or self.statement}"

    @property
    def name(self) -> str:
        """Number and part, or the id of a user's own claim."""
        return self.id if self.number is None else f"{self.number}{self.part}"
