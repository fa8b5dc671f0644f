"""Plans and rows of studies from tables of runs, in place of a store."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from supermask.analysis.comparisons import check_one_setting
from supermask.core.errors import UserError, quote
from supermask.core.text import Row, agree, escape_controls, pluralize
from supermask.datasets.specs import DATASETS
from supermask.store.row_files import read_plan_inputs, read_row_files, rows_on_plan
from supermask.study import Study, StudyLike, builtin_studies, load_study
from supermask.study.plan import Plan, make_plan
from supermask.study.plan_inputs import PlanInputs

MAX_LISTED_FILES = 3
"""Tables that a message names; the others are counted."""


@dataclass(frozen=True)
class StudyFromTables:
    """A study at one of its scales, with the rows that tables have of it."""

    plan: Plan
    rows: list[Row]
    scale: str
    """Name of the scale; empty for a study without one."""
    notices: tuple[str, ...] = ()


def refuse_store_with_tables(store: str | Path | None) -> None:
    """Raise UserError if a store is given beside tables of runs."""
    if store is not None:
        raise UserError("give either a store or tables of runs: leave out --store or --rows.")


@dataclass(frozen=True)
class _Tables:
    """Rows of tables of runs."""

    files: Sequence[Path]
    by_study: dict[str, dict[str, Row]]
    """Name of a study -> run id -> row."""

    @property
    def names(self) -> str:
        """Names of the files, for messages."""
        names = [escape_controls(file.name) for file in self.files[:MAX_LISTED_FILES]]
        more = len(self.files) - len(names)
        return ", ".join(names) + (f" and {more} more" if more else "")

    def study_rows(self, name: str) -> dict[str, Row]:
        """Return run id -> row of a study. Raises UserError if there is none."""
        if name not in self.by_study:
            raise UserError(
                f"{self.names}: there is no row of study {quote(name)}; the tables have "
                f"{', '.join(map(quote, self.by_study))}."
            )
        return self.by_study[name]

    def rows_for(self, name: str) -> dict[str, Row]:
        """Return run id -> row of a study, and of other studies for runs that it does not have.

        Each study has its own result of a run that several of them trained, and results differ between environments.
        Those of the environment that most rows of the study come from are taken, whatever the order of the files.
        """
        study_rows = self.study_rows(name)
        environments = Counter(row.get("environment") for row in study_rows.values())

        def preference(row: Row) -> tuple[int, str, str]:
            return -environments[row.get("environment")], str(row["study"]), str(row.get("environment"))

        others = [row for rows in self.by_study.values() for row in rows.values()]
        # The preferred one last, so that it stays.
        return {str(row["id"]): row for row in sorted(others, key=preference, reverse=True)} | study_rows


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
    tables = _read_tables(files)
    if not studies:
        shipped = [study.name for study in builtin_studies()]
        if unknown := [name for name in tables.by_study if name not in shipped]:
            raise UserError(
                f"{tables.names}: study {quote(unknown[0])} is not shipped; give its file, as in `supermask claims "
                "my-study.yaml --rows FILE.parquet`."
            )
        studies = [name for name in shipped if name in tables.by_study]
    return [part for study in dict.fromkeys(studies) for part in _match(tables, study, overrides)]


def read_study_from_tables(files: Sequence[Path], study: StudyLike, overrides: Sequence[str] = ()) -> StudyFromTables:
    """Return one study at one scale, with one row per planned run, as `read_studies_from_tables` reads it.

    Raises UserError as it does, and for rows of several scales if no `scale=` is given.
    """
    tables = _read_tables(files)
    parts = _match(tables, study, overrides)
    if len(parts) > 1:
        scales = ", ".join(part.scale or "none" for part in parts)
        raise UserError(f"{tables.names}: there are rows of several scales ({scales}): select one with scale=NAME.")
    return parts[0]


def make_table_finder(files: Sequence[Path]) -> Callable[[Study], tuple[Plan, list[Row]] | None]:
    """Return the function that finds the plan and rows of a study in these tables; None if they have none of it."""
    tables = _read_tables(files)

    def find_rows(study: Study) -> tuple[Plan, list[Row]] | None:
        if study.name not in tables.by_study:
            return None
        parts, _, _ = _find_parts(tables, study, [("", [])])
        return (parts[0].plan, parts[0].rows) if parts else None

    return find_rows


def read_other_rows(
    file: Path, study: StudyLike, overrides: Sequence[str] = (), scale: str = ""
) -> tuple[list[Row], list[str]]:
    """Return the rows of a study in a table of somebody else, and sentences on what they are.

    Rows of these settings are taken for what their ids say, with any seeds, else those of one other scale of the study,
    or of a scale without the other settings. Rows of unknown settings or of another version of the program keep the
    labels of the table. `scale`: that of our runs.

    Raises UserError for a file that is no table of runs, for rows that say something else than their ids, and for rows
    of several other scales.
    """
    tables = _read_tables([file])
    kept = [text for text in overrides if text.partition("=")[0].strip() not in ("scale", "seeds")]
    # Our settings first, then those at other scales, then the scales without the other settings.
    candidates = [
        (name, [f"scale={name}", *settings] if name else settings)
        for settings in ([kept, []] if kept else [[]])
        for name in dict.fromkeys((scale, *_shipped_scales(study), ""))
    ]
    parts, left, _ = _find_parts(tables, study, candidates[:1])
    if not parts and candidates[1:]:
        parts, left, _ = _find_parts(tables, study, candidates[1:])
    if len(parts) > 1:
        names = ", ".join(part.scale or "none" for part in parts)
        raise UserError(
            f"{tables.names} has runs of several scales ({names}), and none of these settings: write a table of one of "
            "them with `supermask table STUDY scale=NAME --format parquet`."
        )
    study_rows = tables.study_rows(load_study(study, candidates[0][1]).name)
    if not parts:
        rows = list(study_rows.values())
        check_one_setting(rows, tables.names)
        return rows, [
            f"The rows of {tables.names} are of other settings than the study here, or of another version: their "
            "treatments and levels are taken from the table's labels."
        ]
    notes = []
    if left:
        count = pluralize(len(study_rows), "row")
        be = agree("is", "are", len(left))
        notes.append(f"{len(left):,} of {count} of {tables.names} {be} of other settings and not used.")
    return parts[0].rows, notes


def _read_tables(files: Sequence[Path]) -> _Tables:
    rows = read_row_files(files)
    tables = _Tables(files, {})
    if not rows:
        raise UserError(f"{tables.names}: there is no row.")
    for row in rows:
        tables.by_study.setdefault(str(row["study"]), {})[str(row["id"])] = row
    return tables


def _match(tables: _Tables, study: StudyLike, overrides: Sequence[str]) -> list[StudyFromTables]:
    """Return the study at each scale that has rows. Raises UserError if rows belong to none."""
    scales = _shipped_scales(study)
    found, left, unknown_data = _find_parts(tables, study, list(_candidates(overrides, scales)))
    example = next(iter(left.values()), None)
    if example is None:
        return found
    name = str(example["study"])
    if unknown_data and not found:
        # A plan needs the shapes and counts of the images; rows alone do not have them.
        raise UserError(
            f"{tables.names}: study {quote(name)} is on data of your own ({quote(unknown_data)}), whose shapes "
            "these files do not record: write them with `supermask table STUDY --format parquet`, or leave out --rows "
            "and give the store with --store."
        )
    kind = (
        f"{len(left):,} of {pluralize(len(tables.by_study[name]), 'row')} of study {quote(name)} (run {example['id']}: "
        f"{example['network']} on {example['dataset']}, {example['iterations']} iterations, level {example['level']})"
    )
    if found and overrides:
        # The settings select among the rows.
        message = f"{tables.names}: {kind} are of other settings, and are not used."
        return [replace(part, notices=(message,)) for part in found]
    settings_text = " ".join(overrides) or f"its scales ({', '.join(scales) or 'none'})"
    raise UserError(
        f"{tables.names}: {kind} are not of {settings_text}. Give the settings that they were run with, such as "
        "scale=NAME or KEY=VALUE, or write the table again with this version."
    )


def _find_parts(
    tables: _Tables, study: StudyLike, candidates: Sequence[tuple[str, list[str]]]
) -> tuple[list[StudyFromTables], dict[str, Row], str]:
    """Return (study at each of the settings that have rows, rows of none of them, name of data that are not known).

    `candidates`: (scale, settings). A row belongs to the first settings whose plan has its id. Raises UserError if a
    row says something else than its id.
    """
    found: list[StudyFromTables] = []
    name = load_study(study, candidates[0][1]).name
    rows = tables.study_rows(name)
    left, unknown_data = dict(rows), ""
    available = tables.rows_for(name)
    recorded = read_plan_inputs(tables.files, name)
    for (scale, settings), inputs in itertools.product(candidates, [*recorded, *_named_inputs(rows)]):
        if not left:
            break
        loaded = _load_with_seeds(study, settings, left)
        if loaded.dataset not in DATASETS and not _knows_data(loaded.dataset, inputs):
            if not any(_knows_data(loaded.dataset, other) for other in recorded):
                unknown_data = loaded.dataset
            continue
        plan = make_plan(loaded, inputs)
        matched = {run_id: left[run_id] for run_id in plan.runs.keys() & left.keys()}
        if not matched:
            continue
        if (with_fewer_seeds := _load_with_seeds(study, settings, matched)).seeds != loaded.seeds:
            # Other rows, such as those of another scale, have more seeds.
            plan = make_plan(with_fewer_seeds, inputs)
        found.append(StudyFromTables(plan, rows_on_plan(plan, available), scale))
        left = {run_id: row for run_id, row in left.items() if run_id not in matched}
    return found, left, unknown_data


def _load_with_seeds(study: StudyLike, settings: Sequence[str], rows: dict[str, Row]) -> Study:
    """Return the study with the seeds of these rows, unless the settings name seeds."""
    if any(text.partition("=")[0].strip() == "seeds" for text in settings):
        return load_study(study, settings)
    seeds = sorted({int(row["seed"] or 0) for row in rows.values()})
    if isinstance(study, Study):
        return load_study(study, settings).model_copy(update={"seeds": tuple(seeds)})
    return load_study(study, [*settings, f"seeds={seeds}"])


def _shipped_scales(study: StudyLike) -> tuple[str, ...]:
    return next((shipped.scales for shipped in builtin_studies() if shipped.name == study), ())


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
