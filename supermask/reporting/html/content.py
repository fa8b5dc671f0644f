"""What a report says, as plain data: the page, and whoever else shows it, adds nothing but how it looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from supermask.analysis.claims import ClaimFinding
from supermask.core.text import Row
from supermask.datasets.specs import data_notices, demo_notice
from supermask.reporting.figures import slugify
from supermask.reporting.html.provenance import Provenance, collect_provenance
from supermask.reporting.html.study import StudySection, build_study_section
from supermask.store import Store
from supermask.study.plan import Plan

VERDICTS = ("supported", "not supported", "contradicted", "not enough data")


@dataclass(frozen=True)
class Report:
    """Everything that the page says, in its order."""

    claims: tuple[ClaimFinding, ...]
    studies: tuple[StudySection, ...]
    making: Provenance
    scale: str = ""
    """The scale that all studies were asked for at; empty where none was named."""

    @property
    def title(self) -> str:
        """The study's own, where there is one."""
        if len(self.studies) == 1:
            return self.studies[0].title
        return "What the runs say"

    @property
    def notices(self) -> list[str]:
        """What has to be said first: that it is a demonstration, and what is known of the data; a sentence each."""
        notes = [note for _, _, note in self.making.data]
        return [text for text in (demo_notice(part.dataset for part in self.studies), *data_notices(notes)) if text]

    @property
    def verdicts(self) -> dict[str, int]:
        """Verdict -> how many claims have it, in the order of `VERDICTS`."""
        return {verdict: sum(claim.verdict == verdict for claim in self.claims) for verdict in VERDICTS}

    def link_of(self, claim: ClaimFinding) -> tuple[str, str] | None:
        """(id on the page, what is there) of the figure that shows a claim, or of its study; None: neither is here."""
        part = next((part for part in self.studies if part.name == claim.study), None)
        if part is None:
            return None
        plot = next((plot for plot in part.plots if plot.name == claim.figure), None)
        return (plot.id, f"Figure: {plot.title}") if plot else (part.id, f"Study: {part.title}")


def build_report(
    studies: Sequence[tuple[Plan, list[Row], list[str]]],
    claims: Sequence[ClaimFinding],
    store: Store,
    made_by: str,
    scale: str = "",
    part_of: Callable[[str, Plan, list[Row], Store], StudySection] = build_study_section,
) -> Report:
    """The report over studies: each with its plan, its rows and the texts of its damaged runs (`rows.rows_of_plan`).

    `made_by` is the command that makes it again; `part_of` makes a study's part, or remembers it. Of the store it reads
    the curves of learned masks and, once for each, the environments and the runs whose certificate does not hold.
    Raises what reading the store raises.
    """
    ids = _section_ids([plan.study.name for plan, _, _ in studies])
    parts = [part_of(part_id, plan, rows, store) for part_id, (plan, rows, _) in zip(ids, studies, strict=True)]
    damaged = [text for _, _, texts in studies for text in texts]
    making = collect_provenance([rows for _, rows, _ in studies], damaged, store, made_by)
    return Report(tuple(claims), tuple(parts), making, scale)


def plot_data(report: Report) -> dict[str, dict[str, Any]]:
    """Plot id -> Plotly figure: `data`, `layout`; `label`, the name of this view of it; `views`: the other ones."""
    return {plot.id: plot.figure for part in report.studies for plot in part.plots}


def table_data(report: Report) -> dict[str, dict[str, Any]]:
    """Table id -> its data, by columns: what `wireTables` fills the page's tables with."""
    return {table.id: table.data() for part in report.studies for table in part.tables}


def _section_ids(names: Sequence[str]) -> list[str]:
    """One id a study, the same whenever the same studies are given; nothing of a name but letters, digits, dashes."""
    ids: list[str] = []
    for name in names:
        stem = f"study-{slugify(name)}"
        free = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(names) + 1))
        ids.append(next(each for each in free if each not in ids))
    return ids
