"""Content of a report as plain data; the page and the live server only lay it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from supermask.analysis.claims import ClaimFinding
from supermask.core.text import Row
from supermask.datasets.specs import data_notices, demo_notice
from supermask.reporting.figures import slugify
from supermask.reporting.html.provenance import Provenance, collect_provenance
from supermask.reporting.html.study import Plot, StudySection, build_study_section, tell_apart
from supermask.store import Store
from supermask.study.plan import Plan

VERDICTS = ("supported", "not supported", "contradicted", "not enough data")
"""Verdicts that are counted; a claim on a demonstration has none of them."""


@dataclass(frozen=True)
class Report:
    """Content of a report, in the order of the page."""

    claims: tuple[ClaimFinding, ...]
    studies: tuple[StudySection, ...]
    provenance: Provenance
    scale: str = ""
    """The `scale` setting of all studies, empty if none was given."""

    @property
    def title(self) -> str:
        """Title of the study if there is one, else a general title."""
        return self.studies[0].title if len(self.studies) == 1 else "Supermask report"

    @property
    def notices(self) -> list[str]:
        """Notices for the top of the page: demonstration data, and notes on the data; one sentence each."""
        notes = [note for _, _, note in self.provenance.data]
        return [text for text in (demo_notice(part.dataset for part in self.studies), *data_notices(notes)) if text]

    @property
    def verdicts(self) -> dict[str, int]:
        """Verdict -> number of claims, in the order of `VERDICTS`."""
        return {verdict: sum(claim.verdict == verdict for claim in self.claims) for verdict in VERDICTS}

    @property
    def lead(self) -> Plot | None:
        """The figure at the top of the page: the first of the first study that has one."""
        return next((plot for part in self.studies for plot in part.plots), None)

    @property
    def is_demonstration(self) -> bool:
        """True if no claim has a verdict, because all data is a demonstration."""
        return bool(self.claims) and not any(self.verdicts.values())

    def claim_target(self, claim: ClaimFinding) -> tuple[str, str] | None:
        """Return (element id, link text) of the figure of a claim, or of its study; None if the page has neither."""
        part = next((part for part in self.studies if part.name == claim.study), None)
        if part is None:
            return None
        plot = next((plot for plot in part.plots if plot.name == claim.figure), None)
        return (plot.id, f"Figure: {plot.title}") if plot else (part.id, f"Study: {part.title}")


def build_report(
    studies: Sequence[tuple[Plan, list[Row], list[str]]],
    claims: Sequence[ClaimFinding],
    store: Store | None,
    made_by: str,
    scale: str = "",
    part_of: Callable[[str, Plan, list[Row], Store | None], StudySection] = build_study_section,
) -> Report:
    """Build the report on studies: for each its plan, its rows and the messages on its damaged runs (`plan_rows`).

    `made_by` is the command that builds the report; `part_of` builds the section of a study, or returns a cached one.
    The store is read for the curves of learned masks, one run per environment, and runs whose certificate failed;
    without one, the report lacks these.
    """
    ids = _section_ids([plan.study.name for plan, _, _ in studies])
    parts = [part_of(part_id, plan, rows, store) for part_id, (plan, rows, _) in zip(ids, studies, strict=True)]
    differences = tell_apart([plan.study for plan, _, _ in studies])
    parts = [replace(part, difference=difference) for part, difference in zip(parts, differences, strict=True)]
    damaged = [text for _, _, texts in studies for text in texts]
    provenance = collect_provenance([rows for _, rows, _ in studies], damaged, store, made_by)
    return Report(tuple(claims), tuple(parts), provenance, scale)


def plot_data(report: Report) -> dict[str, dict[str, Any]]:
    """Return plot id -> Plotly figure: `data`, `layout`, `label` (name of this view) and `views` (the other views)."""
    return {plot.id: plot.figure for part in report.studies for plot in part.plots}


def table_data(report: Report) -> dict[str, dict[str, Any]]:
    """Return table id -> data by column, as `wireTables` in tables.js reads it."""
    return {table.id: table.data() for part in report.studies for table in part.tables}


def _section_ids(names: Sequence[str]) -> list[str]:
    """Return one element id per study, of letters, digits and dashes, reproducible and distinct."""
    ids: list[str] = []
    for name in names:
        stem = f"study-{slugify(name)}"
        free = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(names) + 1))
        ids.append(next(candidate for candidate in free if candidate not in ids))
    return ids
