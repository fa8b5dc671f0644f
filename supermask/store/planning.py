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
from supermask.networks.network import is_user_network
from supermask.store.files.entry import CorruptEntry
from supermask.store.run_store import Store
from supermask.study import Study
from supermask.study.networks import network_source
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
    sources: dict[str, str] = {}
    for name in study.user_criteria:
        try:
            sources[name] = code_sha256(name)
        except UserModuleNotFound as error:
            stored = _stored_runs(study, store) if stored is None else stored
            sources[name] = _stored_source(study, name, stored, error)
            notices.append(f"criterion {name!r}: {error} Shown as the runs in the store were made.")
    code = PlanInputs(criterion_sources=sources)
    if is_user_network(study.network):
        stored = _stored_runs(study, store) if stored is None else stored
        code, notice = _with_network(code, study, stored)
        notices += [notice] if notice else []
    try:
        inputs = replace(code, data_fingerprint=run_fingerprint(study.dataset, data_dir))
    except (UserError, SystemFailure) as error:
        stored = _stored_runs(study, store) if stored is None else stored
        plan = _plan_for_stored_data(study, stored, code)
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
        for fingerprint, count in _stored_data(study, stored, code).items():
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


def _with_network(code: PlanInputs, study: Study, stored: Iterable[Run]) -> tuple[PlanInputs, str]:
    """Return the inputs with the source and the facts of the user's network, and a notice or an empty string.

    The code is not imported: the facts are those of the store's runs, and `supermask run` finds those of a new network.
    """
    runs = [run for run in stored if run.network == study.network and run.network_source is not None]
    notice = ""
    try:
        source = network_source(study.network)
    except UserModuleNotFound as error:
        versions = sorted({str(run.network_source) for run in runs})
        if len(versions) > 1:
            listed = ", ".join(version[:12] for version in versions)
            raise UserError(
                f"{error} The store has runs of {len(versions)} versions of it ({listed}): run the command in the "
                "folder with the version that you mean."
            ) from None
        if not versions:
            raise
        source, notice = versions[0], f"{error} Shown as the runs in the store were made."
    facts = next((run.network_facts for run in runs if run.network_source == source), None)
    if facts is None:
        notice = (
            f"network {quote(study.network)} is not imported for a plan: `supermask run` examines it first, and its "
            "tensors, weights and costs are known then."
        )
    return replace(code, network_source=source, network_facts=facts), notice


def _stored_source(study: Study, name: str, stored: Iterable[Run], error: UserModuleNotFound) -> str:
    sources = {run.step.criterion_source for run in stored if run.step and run.step.criterion == name} - {None}
    if len(sources) > 1:
        versions = ", ".join(sorted(str(source)[:12] for source in sources))
        raise UserError(
            f"criterion {name!r}: {error} The store has runs of {len(sources)} versions of it ({versions}): run the "
            "command in the folder with the version that you mean."
        )
    if not sources:
        raise UserModuleNotFound(f"study {study.name!r}: criterion {name!r}: {error}")
    return str(sources.pop())


def _stored_data(study: Study, stored: Iterable[Run], code: PlanInputs) -> dict[str | None, int]:
    """Return fingerprint -> number of the store's runs that belong to this study on that data."""
    ids = {run.id for run in stored}
    counts = {}
    for fingerprint in sorted({run.data_fingerprint for run in stored}, key=lambda value: value or ""):
        runs = make_plan(study, replace(code, data_fingerprint=fingerprint)).runs
        if count := len(runs.keys() & ids):
            counts[fingerprint] = count
    return counts


def _plan_for_stored_data(study: Study, stored: Iterable[Run], code: PlanInputs) -> Plan:
    counts = _stored_data(study, stored, code)
    if len(counts) > 1:
        parts = "; ".join(f"{count:,} on {_describe_data(fingerprint)}" for fingerprint, count in counts.items())
        raise UserError(
            f"the store has runs of study {quote(study.name)} on {len(counts)} different datasets called "
            f"{quote(study.dataset)} ({parts}), which no mean may mix: set SUPERMASK_DATA to the folder with the data "
            "that you mean."
        )
    return make_plan(study, replace(code, data_fingerprint=next(iter(counts), None)))


def _describe_data(fingerprint: str | None) -> str:
    return "the published files" if fingerprint is None else f"fingerprint {fingerprint[:12]}"
