"""Results of the evaluation of claims, as plain data for the command line, the report and notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["supported", "not supported", "contradicted", "not enough data"]


@dataclass(frozen=True)
class LevelFinding:
    """One treatment against its reference at one level. Accuracies and differences are in percentage points."""

    level: int
    remaining: float
    """Weights remaining in the treatment's networks, percent (mean over seeds)."""
    n: int
    """Seeds of the treatment; number of pairs if the test is paired."""
    n_reference: int | None
    """Seeds of the reference; None if it is a number (chance)."""
    test: str
    """`paired t`, `Welch t` or `one-sample t`."""
    mean: float | None
    """None if no run has finished; the same for the fields below."""
    reference_mean: float | None
    difference: float | None
    interval95: tuple[float, float] | None
    hedges_g: float | None
    p: float | None
    """p of the clause at this level alone, not corrected."""
    p_holm: float | None
    """p after Holm's correction over the levels of the clause."""
    outcome: Literal["holds", "opposite", "undecided", "untested"]
    """`opposite`: the opposite of the claim is significant."""
    note: str = ""
    """Reason if there was no test."""
    hedges_g_interval95: tuple[float, float] | None = None
    p_opposite_holm: float | None = None
    """p of the opposite of the claim after Holm's correction. For `above` and `below`, whose tests are two-sided, it
    equals `p_holm`."""
    p_sign_flip: float | None = None
    """p of the exact two-sided sign-flip test of no difference at this level alone; None unless seeds are paired."""


@dataclass(frozen=True)
class ClauseFinding:
    """One clause of a claim: a relation between a treatment and its reference."""

    treatment: str
    relation: str
    """`above`, `below`, `at_least`, `at_most` or `matches`."""
    reference: str
    """A treatment, `dense` or `chance`."""
    margin: float
    """Percentage points."""
    verdict: Verdict
    sentence: str
    """The result in one line of plain text, with n, effect, interval and p."""
    levels: tuple[LevelFinding, ...]
    missing: tuple[str, ...] = ()
    """Unfinished runs: `large_final: 3 to do`, `random: 1 diverged (level 4 seed 2)`."""
    seeds_needed: int | None = None
    """Seeds for a power of 80% at the smallest effect of interest, with the observed spread; None if unknown."""
    where: Literal["every", "some"] = "every"
    """`every`: all levels have to hold; `some`: one of them."""


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
