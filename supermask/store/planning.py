"""Plans of studies on the data and user code at hand or, where these are not there, on those that a store's runs had.

A run's id contains the fingerprint of unpublished data and the hash of user code. Training needs both at hand. Reading
results does not: from any folder, without the data and without the code, the store's runs say what they were made with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from supermask.core.errors import SystemFailure, UserError, quote
from supermask.datasets.loading import DataIdentity, identify
from supermask.datasets.specs import DATASETS, DatasetSpec
from supermask.store.files.entry import CorruptEntry, NewerFormat
from supermask.store.run_store import Store
from supermask.study import Study
from supermask.study.networks import network_source
from supermask.study.plan import Plan, make_plan
from supermask.study.plan_inputs import PlanInputs
from supermask.study.run import Run
from supermask.study.source_files import UserModuleNotFound
from supermask.study.user_code import code_sha256
from supermask.study.user_data import data_source, identify_user_data, read_user_data


@dataclass(frozen=True)
class _StoredData:
    """The data that stored runs were made on."""

    fingerprint: str | None
    source: str | None
    spec: DatasetSpec | None

    def __str__(self) -> str:
        return _describe_data(self.fingerprint)

    def plan(self, study: Study, code_inputs: PlanInputs) -> Plan:
        """Return the plan of a study on these data; `code_inputs`: the sources of user code."""
        inputs = replace(code_inputs, data_fingerprint=self.fingerprint, data_source=self.source, data_spec=self.spec)
        return make_plan(study, inputs)


def plan_study(study: Study, store: Store, data_dir: Path | None = None, call_user_code: bool = False) -> Plan:
    """Return the plan of a study for the data and code found here, else for those of the store's runs.

    `Plan.notices` says what was assumed. `call_user_code`: call the function that returns the data of the study, if it
    names one. Only training does.

    Raises UserError as `make_plan` does, and if the store's runs of the study are on several datasets or versions of a
    criterion, none of which is found here.
    """
    notices: list[str] = []
    stored: list[Run] | None = None
    criteria: dict[str, str] = {}
    losses: dict[str, str] = {}
    source: str | None = None
    named = [("criterion", name, criteria) for name in study.user_criteria]
    for kind, name, sources in [*named, *(("loss", name, losses) for name in study.user_losses)]:
        try:
            sources[name] = code_sha256(name)
        except UserModuleNotFound as error:
            stored = _stored_runs(study, store) if stored is None else stored
            sources[name] = _stored_source(study, kind, name, stored, error)
            notices.append(f"{kind} {name!r}: {error} Shown as the runs in the store were made.")
    code_inputs = PlanInputs(criterion_sources=criteria, loss_sources=losses)
    for name in study.user_networks:
        stored = _stored_runs(study, store) if stored is None else stored
        code_inputs, notice = _add_network_inputs(code_inputs, name, stored)
        notices += [notice] if notice else []
    try:
        source = data_source(study.dataset)
        identity = _identify(study, source, data_dir, call_user_code)
        inputs = replace(
            code_inputs, data_fingerprint=identity.fingerprint, data_source=source, data_spec=identity.spec
        )
    except (UserError, SystemFailure) as error:
        stored = _stored_runs(study, store) if stored is None else stored
        if source is not None:
            stored = [run for run in stored if run.data_source == source]
        if study.dataset not in DATASETS and (call_user_code or not _stored_data(study, stored, code_inputs)):
            raise  # Nobody knows the shapes of these data, or they are wanted for training.
        plan = _plan_for_stored_data(study, stored, code_inputs)
        if source is not None:
            return replace(plan, notices=tuple(notices))  # The function was called for these runs: nothing is missing.
        problem = str(error).splitlines()[0].rstrip(".:")
        fingerprint = plan.inputs.data_fingerprint
        if plan.inputs.data_spec is not None:
            notices.append(f"{problem}. Shown as the runs in the store were made (data {str(fingerprint)[:12]}).")
        elif fingerprint is not None:
            notices.append(
                f"{problem}. The runs in the store on other data are shown (fingerprint {fingerprint[:12]})."
            )
        elif not plan.runs.keys() & store.run_ids():
            notices.append(f"{problem}. The published files are assumed.")
        return replace(plan, notices=tuple(notices))
    plan = make_plan(study, inputs)
    # Without this, runs that seem to be lost would be trained again for hours.
    if not plan.runs.keys() & store.run_ids():
        stored = _stored_runs(study, store) if stored is None else stored
        for data, count in _stored_data(study, stored, code_inputs).items():
            notices.append(
                f"{count:,} runs of this study in the store are on other data ({data}) than is "
                f"found here ({_describe_data(inputs.data_fingerprint)}), and are not shown: set SUPERMASK_DATA to the "
                "folder with that data."
            )
    return replace(plan, notices=tuple(notices))


def _identify(study: Study, source: str | None, data_dir: Path | None, call_user_code: bool) -> DataIdentity:
    """Return fingerprint and specification of the study's data. Raises UserError for data that are not there."""
    if source is None:
        return identify(study.dataset, data_dir)
    if call_user_code:
        images = read_user_data(study.dataset)
        return DataIdentity(images.run_fingerprint, images.facts)
    known = identify_user_data(study.dataset, source)
    if known is None:
        raise UserError(
            f"dataset {quote(study.dataset)}: the data are not known yet, because its function is called by "
            "`supermask run` and `supermask data inspect` only: give one of these commands first."
        )
    return known


def _stored_runs(study: Study, store: Store) -> list[Run]:
    """Return the store's runs on the study's dataset; entries that are damaged or of a newer format are skipped."""
    runs = []
    for run_id in sorted(store.run_ids()):
        try:
            facts = store.facts(run_id)
            if facts.get("dataset") == study.dataset:
                runs.append(Run.from_data(facts))
        except (CorruptEntry, NewerFormat, KeyError, TypeError):
            # A plan is needed to train a damaged run again; `verify` is what reports it.
            continue
    return runs


def _add_network_inputs(code_inputs: PlanInputs, name: str, stored: Iterable[Run]) -> tuple[PlanInputs, str]:
    """Return the inputs with the source and the facts of a user's network, and a notice or an empty string.

    The code is not imported: the facts are those of the store's runs, and `supermask run` finds those of a new network.
    """
    runs = [run for run in stored if run.network == name and run.network_source is not None]
    notice = ""
    try:
        source = network_source(name)
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
            f"network {quote(name)} is not imported for a plan: `supermask run` examines it first, and its "
            "tensors, weights and costs are known then."
        )
    known = {**code_inputs.network_facts, **({} if facts is None else {name: facts})}
    return replace(
        code_inputs, network_sources={**code_inputs.network_sources, name: source}, network_facts=known
    ), notice


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


def _stored_data(study: Study, stored: Iterable[Run], code_inputs: PlanInputs) -> dict[_StoredData, int]:
    """Return data -> number of the store's runs that belong to this study on those data.

    `code_inputs`: the sources of user code.
    """
    stored = list(stored)
    ids = {run.id for run in stored}
    distinct = {_StoredData(run.data_fingerprint, run.data_source, run.data_spec) for run in stored}
    counts = {}
    for data in sorted(distinct, key=lambda item: (item.fingerprint or "", item.source or "")):
        try:
            runs = data.plan(study, code_inputs).runs
        except UserError:
            continue  # Data with fewer images than the study asks for.
        if count := len(runs.keys() & ids):
            counts[data] = count
    return counts


def _plan_for_stored_data(study: Study, stored: Iterable[Run], code_inputs: PlanInputs) -> Plan:
    counts = _stored_data(study, stored, code_inputs)
    if len(counts) > 1:
        parts = "; ".join(f"{count:,} on {data}" for data, count in counts.items())
        raise UserError(
            f"the store has runs of study {quote(study.name)} on {len(counts)} different datasets called "
            f"{quote(study.dataset)} ({parts}), which no mean may mix: set SUPERMASK_DATA to the folder with the data "
            "that you mean."
        )
    return next(iter(counts), _StoredData(None, None, None)).plan(study, code_inputs)


def _describe_data(fingerprint: str | None) -> str:
    return "the published files" if fingerprint is None else f"fingerprint {fingerprint[:12]}"
