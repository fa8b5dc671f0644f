"""The band of a study's primary endpoint, and its comparisons: one test per treatment for the takeaway of a figure."""

from __future__ import annotations

import math

from supermask.analysis.claims.findings import MIN_SEEDS
from supermask.analysis.claims.paper import paper_tasks, study_tasks
from supermask.analysis.stats import Comparison, compare, seed_means
from supermask.analysis.summary import DENSITY_TOLERANCE, Summary
from supermask.study import Study


def endpoint_band(study: Study, network: str, reference: str, measure: str) -> tuple[float, float] | None:
    """Return the band (most, least percent of weights left) over which claims compare treatments with `reference`.

    Claims: the paper's about this network and data, and those of the study's file. None unless all of their clauses on
    `measure` with this reference have one and the same band.
    Source: Zhou et al. 2019, authors' response, items 2 and 4.
    """
    about = [task for task in paper_tasks() if study.name in task.studies and task.is_about(network, study)]
    claims = [task.claim for task in (*(t.with_claim_for(study) for t in about), *study_tasks(study)) if task.claim]
    bands = {
        clause.band
        for claim in claims
        for clause in claim.clauses
        if clause.reference == reference and clause.measure == measure and clause.at == "levels"
    }
    return next(iter(bands)) if len(bands) == 1 else None  # type: ignore[return-value]


def compare_over_band(summary: Summary) -> dict[str, Comparison]:
    """Return treatment -> its mean over the levels of `summary.band` compared with the reference's, by seed.

    As a claim's primary endpoint: all planned levels of the band at equal density, and seeds that have finished all of
    them on both sides. Treatments with fewer than `MIN_SEEDS` such seeds are left out; empty without a band.
    """
    if summary.band is None:
        return {}
    most, least = summary.band
    low, high = least * (1 - DENSITY_TOLERANCE), most * (1 + DENSITY_TOLERANCE)
    references = summary.planned_levels(summary.reference)
    comparisons = {}
    for label in summary.series:
        sides = [
            (ours, references[level])
            for level, ours in summary.planned_levels(label).items()
            if label != summary.reference
            and low <= ours.remaining <= high
            and level in references
            and math.isclose(ours.remaining, references[level].remaining, rel_tol=DENSITY_TOLERANCE)
        ]
        seeds = [ours.values.keys() & theirs.values.keys() for ours, theirs in sides]
        means = [
            seed_means([{seed: side[index].values[seed] for seed in at} for side, at in zip(sides, seeds, strict=True)])
            for index in (0, 1)
        ]
        if len(means[0]) >= MIN_SEEDS:
            comparisons[label] = compare(means[0], means[1])
    return comparisons
