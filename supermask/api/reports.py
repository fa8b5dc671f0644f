"""Functions of the commands claims, report and reproduce. They return data and print nothing."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from supermask.analysis.claims import ClaimFinding, evaluate_claims
from supermask.analysis.claims.paper import studies_with_claims
from supermask.api.comparisons import compare_study, default_columns
from supermask.api.row_files import read_studies_from_tables, refuse_store_with_tables
from supermask.api.runs import missing_result, store_path, study_rows
from supermask.core.errors import SystemFailure, UserError, check_one_of, quote
from supermask.core.files import write_atomic
from supermask.core.text import Row
from supermask.execution.run import ListenerFactory, RunOptions, run_plans
from supermask.execution.scheduler import Scheduler
from supermask.reporting.html import Report, build_report, render_report
from supermask.reporting.html.study import with_comparison
from supermask.store import Store
from supermask.store.location import output_path
from supermask.store.planning import plan_study
from supermask.store.rows import check_same_data, plan_rows
from supermask.study import builtin_studies, load_study
from supermask.study.loading import NOT_IN_THE_PAPER, paper_studies
from supermask.study.plan import Plan, make_plan

StudyRows = tuple[Plan, list[Row], list[str]]
"""(plan, one row per run, one message per damaged run) of a study."""


def report(
    studies: Sequence[str],
    overrides: Sequence[str] = (),
    out: Path = Path("report.html"),
    store: Path | None = None,
    rows: Sequence[Path] = (),
) -> Path:
    """Write the report on shipped studies or study files as one self-contained HTML file; return its path.

    `rows`: tables of runs (`supermask table --format parquet`) to read in place of a store; the studies are then
    optional. Raises UserError if no study is given, if none of their runs has ended, or if `out` cannot be a file;
    SystemFailure if it cannot be written.
    """
    return write_report(collect_report(studies, overrides, store, out, rows), out)


def collect_report(
    studies: Sequence[str],
    overrides: Sequence[str] = (),
    store: Path | None = None,
    out: Path = Path("report.html"),
    rows: Sequence[Path] = (),
    beside: Path | None = None,
) -> Report:
    """Collect the content of the report. `out` only enters the command line that the report quotes.

    `rows`: tables of runs to read in place of a store. `beside`: a table of runs that somebody else made, with the
    columns that `supermask compare` reads by default.
    """
    if rows:
        refuse_store_with_tables(store)
        if beside is not None:
            raise UserError("--with compares the runs of a store: leave out --rows or --with.")
        matched = read_studies_from_tables(rows, studies, overrides)
        tables: list[StudyRows] = [(part.plan, part.rows, []) for part in matched]
        scales = list(dict.fromkeys(part.scale for part in matched))
        command = _command(studies, overrides, out, rows)
        return build_report_for(tables, None, command, scales[0] if len(scales) == 1 else "")
    if not studies:
        shipped = ", ".join(study.name for study in builtin_studies())
        raise UserError(f"no study was given: give one or more of {shipped}, or paths to .yaml files.")
    collected = [study_rows(study, overrides, store) for study in dict.fromkeys(studies)]
    if all(row["status"] == "to_do" for _, rows, _ in collected for row in rows):
        names = ", ".join(quote(plan.study.name) for plan, _, _ in collected)
        raise UserError(
            f"no run of {names} with these settings is in {store_path(store)} yet: `supermask run` "
            f"{'it' if len(collected) == 1 else 'them'} first, with the same settings and the same --store."
        )
    if beside is not None and len(collected) != 1:
        raise UserError(f"--with is for a report on one study; {len(collected)} were given: report on one of them.")
    scales = [text.partition("=")[2] for text in overrides if text.startswith("scale=")]
    source = Store(store_path(store))
    command = _command(studies, overrides, out, beside=beside)
    content = build_report_for(collected, source, command, scales[-1] if scales else "")
    if beside is None:
        return content
    compared = compare_study(studies[0], overrides, beside, columns=default_columns(beside), store=store)
    return replace(content, studies=(with_comparison(content.studies[0], compared),))


def build_report_for(
    studies: Sequence[StudyRows], store: Store | None, command: str, scale: str = "", whole_paper: bool = False
) -> Report:
    """Build the report of studies from their rows. `whole_paper`: include claims that no study can decide."""
    for _, rows, _ in studies:
        check_same_data(rows)
    return build_report(studies, evaluate_claims_for(studies, whole_paper), store, command, scale)


def evaluate_claims_for(studies: Sequence[StudyRows], whole_paper: bool = False) -> list[ClaimFinding]:
    """Evaluate the claims about these studies on their rows."""
    return evaluate_claims(
        [(plan.study, rows) for plan, rows, _ in studies],
        whole_paper,
        {plan.study.dataset: plan.spec for plan, _, _ in studies},
    )


def write_report(content: Report, out: str | Path) -> Path:
    """Render the report and write it atomically; return its path. Raises UserError, SystemFailure."""
    out = output_path(out)
    text = render_report(content).encode("utf-8", errors="replace")
    ensure_writable(out)
    try:
        write_atomic(out, text)
    except OSError as error:
        raise SystemFailure(f"the report cannot be written to {out}: {error.strerror or error}") from error
    return out


def ensure_writable(out: str | Path) -> None:
    """Create the folder of an output file, and try to write there.

    Raises UserError, also for a file that is no HTML page, and SystemFailure.
    """
    out = output_path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder: give --out the name of a file, such as {out / 'report.html'}.")
    _refuse_other_file(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{out.parent} is not a folder: give --out a file in one.") from error
    except OSError as error:
        raise SystemFailure(f"the report cannot be written to {out}: {error.strerror or error}") from error


def _refuse_other_file(out: Path) -> None:
    """Raise UserError if something is there that is no HTML page and not empty: a study, a table, a device."""
    if not out.exists():
        return
    if not out.is_file():
        raise UserError(f"{quote(str(out))} is a device or a pipe: give --out the name of a file.")
    try:
        with out.open("rb") as file:
            start = file.read(100).lstrip().lower()
    except OSError:
        return  # Writing it says why it cannot be written.
    if start and not start.startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{quote(str(out))} exists and is no HTML page: give --out another name.")


def _command(
    studies: Sequence[str],
    overrides: Sequence[str],
    out: Path,
    rows: Sequence[Path] = (),
    beside: Path | None = None,
) -> str:
    """Return the command line of the report, without folders of the store and of tables: they depend on the machine."""
    arguments = [
        "supermask",
        "report",
        *studies,
        *overrides,
        *(text for path in rows for text in ("--rows", path.name)),
        *(["--with", beside.name] if beside else []),
    ]
    return shlex.join(arguments if out == Path("report.html") else [*arguments, "--out", out.name])


def claims(
    studies: Sequence[str], overrides: Sequence[str] = (), store: Path | None = None, rows: Sequence[Path] = ()
) -> tuple[list[ClaimFinding], list[str]]:
    """Evaluate the claims about studies (default: all shipped ones) on the runs of the store, or of tables of runs.

    `rows`: Parquet files of `supermask table`. Also returns one message per damaged run. Raises UserError as
    `load_study` and `read_studies_from_tables` do, and if no study has a claim.
    """
    if rows:
        refuse_store_with_tables(store)
        matched = read_studies_from_tables(rows, studies, overrides)
        notices = [text for part in matched for text in part.notices]
        parts: list[StudyRows] = [(part.plan, part.rows, []) for part in matched]
        findings = evaluate_claims_for(parts, whole_paper=not studies)
        return _check_findings(findings, [part.plan for part in matched]), list(dict.fromkeys(notices))
    store = store_path(store)
    names = dict.fromkeys(studies or [study.name for study in paper_studies()])
    plans = [_load_plan(name, overrides, Store(store)) for name in names]
    collected = [(plan, *plan_rows(plan, Store(store))) for plan in plans]
    findings = evaluate_claims_for(collected, whole_paper=not studies)
    messages = dict.fromkeys(message for plan, _, bad in collected for message in (*plan.notices, *bad))
    return _check_findings(findings, plans), list(messages)


def _check_findings(findings: list[ClaimFinding], plans: Sequence[Plan]) -> list[ClaimFinding]:
    """Return the findings. Raises UserError if there is none."""
    if not findings:
        given = ", ".join(quote(plan.study.name) for plan in plans)
        raise UserError(
            f"there is no claim about {given}: give a study of {', '.join(studies_with_claims())}, or add claims to "
            "the study file."
        )
    return findings


@dataclass(frozen=True)
class ReproductionResult:
    """Result of `reproduce`: the final scheduler, and the report with its file."""

    scheduler: Scheduler
    report: Report
    out: Path
    without_result: list[str]
    """One message per study in which no run has finished."""


def reproduce(
    scale: str,
    only: Sequence[str],
    options: RunOptions,
    out: Path = Path("report.html"),
    listener: ListenerFactory | None = None,
) -> ReproductionResult:
    """Train the missing runs of the shipped studies as one plan, then write the report.

    Raises UserError, SystemFailure, and `execution.local.StudyInterrupted` on Ctrl-C; the same call resumes.
    """
    options.validate()
    plans = builtin_plans(scale, only, Store(options.store))
    ensure_writable(out)
    scheduler = run_plans(plans, options, listener)
    collected = [(plan, *plan_rows(plan, scheduler.store)) for plan in plans]
    arguments = ["supermask", "reproduce", "--scale", scale, *(text for name in only for text in ("--only", name))]
    content = build_report_for(collected, scheduler.store, shlex.join(arguments), scale, whole_paper=not only)
    messages = [
        missing_result([scheduler.status[run_id] for run_id in plan.runs], f"study {quote(plan.study.name)}")
        for plan in plans
    ]
    without_result = [message for message in messages if message is not None]
    return ReproductionResult(scheduler, content, write_report(content, out), without_result)


def builtin_plans(scale: str, only: Sequence[str] = (), store: Store | None = None) -> list[Plan]:
    """Plan the shipped studies (or those in `only`) at one scale, in the order of the paper's claims.

    Without `only`, studies that are not in the paper are planned at the scale `digits`, where they take seconds.
    `store` tells the data of finished runs if no data is found; by default, the plans are for the published data.

    Raises UserError for an unknown study or scale.
    """
    order = studies_with_claims()
    shipped = sorted(
        builtin_studies(), key=lambda study: (study.name not in order, [*order, study.name].index(study.name))
    )
    for name in only:
        check_one_of("a shipped study", name, [study.name for study in shipped])
    selected = [study for study in shipped if study.name in only] if only else []
    selected = selected or [study for study in shipped if scale == "digits" or study.name not in NOT_IN_THE_PAPER]
    check_one_of("a scale", scale, list(dict.fromkeys(name for study in selected for name in study.scales)))
    return [_load_plan(study.name, [f"scale={scale}"], store) for study in selected if scale in study.scales]


def _load_plan(study: str, overrides: Sequence[str], store: Store | None) -> Plan:
    loaded = load_study(study, overrides)
    return make_plan(loaded) if store is None else plan_study(loaded, store)
