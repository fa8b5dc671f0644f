"""Plans and rows of studies from tables of runs, in place of a store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from supermask.core.errors import UserError, quote
from supermask.core.text import Row
from supermask.datasets.specs import DATASETS
from supermask.store.row_files import read_plan_inputs, read_row_files, rows_on_plan
from supermask.study import builtin_studies, load_study
from supermask.study.plan import Plan, make_plan
from supermask.study.plan_inputs import PlanInputs


@dataclass(frozen=True)
class StudyFromTables:
    """A study at one of its scales, with the rows that tables have of it."""

    plan: Plan
    rows: list[Row]
    scale: str
    """Name of the scale; empty for a study without one."""
    notices: tuple[str, ...] = ()


def read_studies_from_tables(
    files: Sequence[Path], studies: Sequence[str] = (), overrides: Sequence[str] = ()
) -> list[StudyFromTables]:
    """Return the studies of these tables, with one row per planned run.

    A row belongs to a study and scale whose plan has its id; where plans share a run, it counts in each. Without
    `scale=` among the overrides, each scale that the tables have rows of is returned; without `studies`, all shipped
    studies that they name. The seeds are those of the rows unless `seeds=` is given.

    Raises UserError for files that are no tables of runs, rows of studies that are not shipped, and rows that belong to
    none of the studies and settings.
    """
    rows = read_row_files(files)
    if not rows:
        raise UserError(f"{_names(files)}: there is no row.")
    by_id = {str(row["id"]): row for row in rows}
    by_study: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_study.setdefault(str(row["study"]), {})[str(row["id"])] = row
    shipped = {study.name: study.scales for study in builtin_studies()}
    if not studies:
        if unknown := [name for name in by_study if name not in shipped]:
            raise UserError(
                f"{_names(files)}: study {quote(unknown[0])} is not shipped; give its file, as in `supermask claims "
                "my-study.yaml --rows FILE.parquet`."
            )
        studies = [name for name in shipped if name in by_study]
    matched_studies: list[StudyFromTables] = []
    for study in dict.fromkeys(studies):
        name = load_study(study, overrides).name
        if name not in by_study:
            raise UserError(
                f"{_names(files)}: there is no row of study {quote(name)}; the tables have "
                f"{', '.join(map(quote, by_study))}."
            )
        matched_studies += _match(study, by_study[name], by_id, overrides, shipped.get(study, ()), files)
    return matched_studies


def _match(
    study: str,
    rows: dict[str, Row],
    by_id: dict[str, Row],
    overrides: Sequence[str],
    scales: Sequence[str],
    files: Sequence[Path],
) -> list[StudyFromTables]:
    """Return the study at each scale that has rows. Raises UserError if rows belong to none.

    `rows`: those that name the study. `by_id`: those of all studies.
    """
    left = dict(rows)
    found: list[StudyFromTables] = []
    fixed_seeds = any(text.partition("=")[0].strip() == "seeds" for text in overrides)
    recorded = read_plan_inputs(files, load_study(study, overrides).name)
    attempts = itertools.product(_candidates(overrides, scales), [*recorded, *_named_inputs(rows)])
    for (scale, settings), inputs in attempts:
        if not left:
            break
        seeds = [] if fixed_seeds else [_seeds_override(left)]
        loaded = load_study(study, [*settings, *seeds])
        if loaded.dataset not in DATASETS and not _knows_data(loaded.dataset, inputs):
            if any(_knows_data(loaded.dataset, other) for other in recorded):
                continue
            # A plan needs the shapes and counts of the images; rows alone do not have them.
            raise UserError(
                f"{_names(files)}: study {quote(loaded.name)} is on data of your own ({quote(loaded.dataset)}), whose "
                "shapes these files do not record: write them with `supermask table STUDY --format parquet`, or leave "
                "out --rows and give the store with --store."
            )
        plan = make_plan(loaded, inputs)
        matched = {run_id: left[run_id] for run_id in plan.runs.keys() & left.keys()}
        if not matched:
            continue
        if not fixed_seeds and _seeds_override(matched) != _seeds_override(left):
            # Other rows, such as those of another scale, have more seeds.
            plan = make_plan(load_study(study, [*settings, _seeds_override(matched)]), inputs)
        # Of a run that two studies trained, each has its own result.
        found.append(StudyFromTables(plan, rows_on_plan(plan, {**by_id, **rows}), scale))
        left = {run_id: row for run_id, row in left.items() if run_id not in matched}
    example = next(iter(left.values()), None)
    if example is None:
        return found
    kind = (
        f"{len(left):,} of {len(rows):,} rows of study {quote(str(example['study']))} (run {example['id']}: "
        f"{example['network']} on {example['dataset']}, {example['iterations']} iterations, level {example['level']})"
    )
    if found and overrides:
        # The settings select among the rows.
        message = f"{_names(files)}: {kind} are of other settings, and are not used."
        return [StudyFromTables(part.plan, part.rows, part.scale, (message,)) for part in found]
    settings_text = " ".join(overrides) or f"its scales ({', '.join(scales) or 'none'})"
    raise UserError(
        f"{_names(files)}: {kind} are not of {settings_text}. Give the settings that they were run with, as in "
        f"`supermask claims {study} KEY=VALUE --rows FILE.parquet`, or write the table again with this version."
    )


def _candidates(overrides: Sequence[str], scales: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(scale, overrides) to try: the scale given, or each one, and the study without a scale."""
    given = [text.partition("=")[2].strip() for text in overrides if text.partition("=")[0].strip() == "scale"]
    if given:
        yield given[-1], list(overrides)
        return
    for scale in scales:
        yield scale, [f"scale={scale}", *overrides]
    yield "", list(overrides)


def _named_inputs(rows: dict[str, Row]) -> list[PlanInputs]:
    """Return inputs that the ids can be of: the published data first, then the fingerprints of the rows."""
    named = sorted({str(row["data_fingerprint"]) for row in rows.values() if row.get("data_fingerprint")})
    return [PlanInputs(), *map(PlanInputs, named)]


def _knows_data(dataset: str, inputs: PlanInputs) -> bool:
    return inputs.data_spec is not None and inputs.data_spec.name == dataset


def _seeds_override(rows: dict[str, Row]) -> str:
    return f"seeds={sorted({int(row['seed'] or 0) for row in rows.values()})}"


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)
