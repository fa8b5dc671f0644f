"""Plans of studies on the data and user code at hand or, where these are not there, on those that a store's runs had.

A run's id contains the fingerprint of unpublished data and the hash of user code. Training needs both at hand. Reading
results does not: from any folder, without the data and without the code, the store's runs say what they were made with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from supermask.core.errors import SystemFailure, UserError, quote
from supermask.datasets.loading import run_fingerprint
from supermask.store.files.entry import CorruptEntry
from supermask.store.run_store import Store
from supermask.study import Study
from supermask.study.plan import Plan, PlanInputs, make_plan
from supermask.study.run import Run
from supermask.study.user_code import UserModuleNotFound, code_sha256


def plan_study(study: Study, store: Store, data_dir: Path | None = None) -> Plan:
    """Return the plan of a study for the data and code found here, else for those of the store's runs.

    `Plan.notices` says what was assumed.

    Raises UserError as `make_plan` does, and if the store's runs of the study are on several datasets or versions of a
    criterion, none of which is found here.
    """
    notices: list[str] = []
    stored: list[Run] | None = None
    criteria: dict[str, str] = {}
    losses: dict[str, str] = {}
    named = [("criterion", name, criteria) for name in study.user_criteria]
    for kind, name, sources in [*named, *(("loss", name, losses) for name in study.user_losses)]:
        try:
            sources[name] = code_sha256(name)
        except UserModuleNotFound as error:
            stored = _stored_runs(study, store) if stored is None else stored
            sources[name] = _stored_source(study, kind, name, stored, error)
            notices.append(f"{kind} {name!r}: {error} Shown as the runs in the store were made.")
    sources_known = PlanInputs(None, criteria, losses)
    try:
        inputs = replace(sources_known, data_fingerprint=run_fingerprint(study.dataset, data_dir))
    except (UserError, SystemFailure) as error:
        stored = _stored_runs(study, store) if stored is None else stored
        plan = _plan_for_stored_data(study, stored, sources_known)
        problem = str(error).splitlines()[0].rstrip(".:")
        fingerprint = plan.inputs.data_fingerprint
        if fingerprint is not None:
            notices.append(
                f"{problem}. The runs in the store on other data are shown (fingerprint {fingerprint[:12]})."
            )
        elif not plan.runs.keys() & store.run_ids():
            notices.append(f"{problem}. The published files are assumed.")
        return replace(plan, notices=tuple(notices))
    plan = make_plan(study, inputs)
    if not plan.runs.keys() & store.run_ids():
        stored = _stored_runs(study, store) if stored is None else stored
        for fingerprint, count in _stored_data(study, stored, sources_known).items():
            notices.append(
                f"{count:,} runs of this study in the store are on other data ({_describe_data(fingerprint)}) than is "
                f"found here ({_describe_data(inputs.data_fingerprint)}), and are not shown: set SUPERMASK_DATA to the "
                "folder with that data."
            )
    return replace(plan, notices=tuple(notices))


def _stored_runs(study: Study, store: Store) -> list[Run]:
    """Return the store's runs on the study's dataset; damaged entries are skipped."""
    runs = []
    for run_id in sorted(store.run_ids()):
        try:
            facts = store.facts(run_id)
            if facts.get("dataset") == study.dataset:
                runs.append(Run.from_data(facts))
        except (CorruptEntry, KeyError, TypeError):
            continue
    return runs


def _stored_source(study: Study, kind: str, name: str, stored: Iterable[Run], error: UserModuleNotFound) -> str:
    if kind == "criterion":
        sources = {run.step.criterion_source for run in stored if run.step and run.step.criterion == name} - {None}
    else:
        sources = {run.recipe.loss_source for run in stored if run.recipe.loss == name} - {None}
    if len(sources) > 1:
        versions = ", ".join(sorted(str(source)[:12] for source in sources))
        raise UserError(
            f"{kind} {name!r}: {error} The store has runs of {len(sources)} versions of it ({versions}): run the "
            "command in the folder with the version that you mean."
        )
    if not sources:
        raise UserModuleNotFound(f"study {study.name!r}: {kind} {name!r}: {error}")
    return str(sources.pop())


def _stored_data(study: Study, stored: Iterable[Run], inputs: PlanInputs) -> dict[str | None, int]:
    """Return fingerprint -> number of the store's runs that belong to this study on that data."""
    ids = {run.id for run in stored}
    counts = {}
    for fingerprint in sorted({run.data_fingerprint for run in stored}, key=lambda value: value or ""):
        runs = make_plan(study, replace(inputs, data_fingerprint=fingerprint)).runs
        if count := len(runs.keys() & ids):
            counts[fingerprint] = count
    return counts


def _plan_for_stored_data(study: Study, stored: Iterable[Run], inputs: PlanInputs) -> Plan:
    counts = _stored_data(study, stored, inputs)
    if len(counts) > 1:
        parts = "; ".join(f"{count:,} on {_describe_data(fingerprint)}" for fingerprint, count in counts.items())
        raise UserError(
            f"the store has runs of study {quote(study.name)} on {len(counts)} different datasets called "
            f"{quote(study.dataset)} ({parts}), which no mean may mix: set SUPERMASK_DATA to the folder with the data "
            "that you mean."
        )
    return make_plan(study, replace(inputs, data_fingerprint=next(iter(counts), None)))


def _describe_data(fingerprint: str | None) -> str:
    return "the published files" if fingerprint is None else f"fingerprint {fingerprint[:12]}"
