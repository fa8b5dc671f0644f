"""What the evaluation of a claim gives: plain data, for the command line, the report and a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["supported", "not supported", "contradicted", "not enough data"]


@dataclass(frozen=True)
class LevelFinding:
    """One treatment against what it is compared with, at one level. Accuracies and differences in percentage points."""

    level: int
    remaining: float
    """Weights remaining of the treatment, percent (mean over seeds)."""
    n: int
    """Seeds of the treatment that are compared; pairs, where the test is paired."""
    n_reference: int | None
    """Seeds of the reference; None where it is a number."""
    test: str
    """`paired t`, `Welch t` or `one-sample t`."""
    mean: float | None
    """None where nothing has finished; so too below."""
    reference_mean: float | None
    difference: float | None
    interval95: tuple[float, float] | None
    hedges_g: float | None
    p: float | None
    """Of this level alone."""
    p_holm: float | None
    """Holm's, over the levels that the clause looks at."""
    outcome: Literal["holds", "opposite", "undecided", "untested"]
    """`opposite`: the reverse of what is claimed is significant."""
    note: str = ""
    """Why there was no test."""
    hedges_g_interval95: tuple[float, float] | None = None
    p_opposite_holm: float | None = None
    """Holm's p of the reverse of what is claimed; that of `above` and `below` is two-sided, and the same."""
    p_sign_flip: float | None = None
    """Exact sign-flip permutation test of no difference, two-sided, of this level alone; where the seeds are paired."""


@dataclass(frozen=True)
class ClauseFinding:
    """One treatment's part in a claim."""

    treatment: str
    relation: str
    """`above`, `below`, `at_least`, `at_most` or `matches`."""
    reference: str
    """A treatment, `dense`, `chance`."""
    margin: float
    """Percentage points."""
    verdict: Verdict
    sentence: str
    """What it comes down to, with n, effect, interval and p; one line of plain text."""
    levels: tuple[LevelFinding, ...]
    missing: tuple[str, ...] = ()
    """Runs that should be there and are not, in words: `3 runs to do`, `large_final, level 4, seed 2 diverged`."""
    seeds_needed: int | None = None
    """For a power of 80% at the smallest effect that would matter, with the spread seen here; None where unknown."""
    where: Literal["every", "some"] = "every"
    """Whether it is claimed of every one of these levels, or of some."""


@dataclass(frozen=True)
class ClaimFinding:
    """A claim and what became of it here."""

    id: str
    number: int | None
    """Of the paper's fifteen; None for a user's own."""
    statement: str
    study: str
    """Name of the study that was looked at."""
    source: str
    figure: str
    """Name of the study's figure that shows it: `accuracy`, `heuristic`, `supermasks`; empty if none does."""
    verdict: Verdict
    sentence: str
    clauses: tuple[ClauseFinding, ...]
    dataset: str = ""
    """That the study is about; empty where no study was looked at."""
    data_notes: tuple[str, ...] = ()
    """What has to be known of the data that its runs were made with."""
