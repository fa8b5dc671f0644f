"""Plans for reading: the data and user code of a store's runs are known without either, and never mixed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.forgery import make_newer
from helpers.small_studies import train_plan

from supermask.analysis.claims import evaluate_claims
from supermask.analysis.summary import check_one_experiment
from supermask.api import reports, runs
from supermask.core.errors import UserError
from supermask.datasets import digits, loading
from supermask.datasets.images import LabeledImages, RawDataset
from supermask.reporting.status import format_status
from supermask.store import Store
from supermask.store.planning import plan_study
from supermask.store.replay import _load_user_criterion
from supermask.store.rows import check_same_data, plan_rows
from supermask.study import study_from_dict
from supermask.study.plan import Plan, make_plan
from supermask.study.plan_inputs import PlanInputs

STUDY: dict[str, Any] = {
    "network": "fc-8",
    "seeds": 2,
    "train": {"epochs": 0.3, "evaluate_every": 4},
    "prune": {"levels": 1, "rates": {"hidden": 0.5, "output": 0.3}},
    "treatments": [{"criterion": ["large_final", "random"]}],
    "claims": [
        {"id": "c", "statement": "s", "clauses": [{"treatment": {"criterion": "large_final"}, "above": "chance"}]}
    ],
}
"""10 runs of 7 iterations on digits: per seed a dense one and two pruned ones."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("SUPERMASK_STORE", raising=False)
    yield tmp_path


def use_other_digits(patch: pytest.MonkeyPatch) -> str:
    """Make `digits` other images; return their fingerprint."""
    real = digits.decode

    def decode(spec: Any) -> RawDataset:
        data = real(spec)
        return RawDataset(LabeledImages(data.train.images[:, :, ::-1].copy(), data.train.labels), data.test)

    patch.setattr(digits, "decode", decode)
    found = loading.load("digits").run_fingerprint
    assert found is not None
    return found


def lose_digits(patch: pytest.MonkeyPatch) -> None:
    def decode(spec: Any) -> RawDataset:
        raise UserError("dataset 'digits' was not found (in a test).")

    patch.setattr(digits, "decode", decode)


def rows(plan: Plan, store: Path) -> list[Any]:
    return plan_rows(plan, Store(store))[0]


def finished(plan: Plan, store: Path) -> int:
    return sum(row["status"] == "finished" for row in rows(plan, store))


# --- data ----------------------------------------------------------------------------------------------------------


def test_runs_on_other_data_have_other_ids(tmp_path: Path) -> None:
    study = study_from_dict(STUDY)
    published = make_plan(study)
    with pytest.MonkeyPatch.context() as patch:
        fingerprint = use_other_digits(patch)
        other = plan_study(study, Store(tmp_path / "store"))
    assert other.inputs.data_fingerprint == fingerprint
    assert {run.data_fingerprint for run in other.runs.values()} == {fingerprint}
    assert not other.runs.keys() & published.runs.keys()
    assert plan_study(study, Store(tmp_path / "store")).runs.keys() == published.runs.keys()
    assert make_plan(study, PlanInputs(fingerprint)).runs.keys() == other.runs.keys()


@pytest.mark.slow
def test_two_datasets_of_one_name_are_never_averaged(tmp_path: Path) -> None:
    """The case that was reported: seed 0 on one dataset, seed 1 on another one of the same name, one store."""
    store = tmp_path / "store"
    train_plan(plan_study(study_from_dict({**STUDY, "seeds": [0]}), Store(store)), store)
    both = study_from_dict(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        use_other_digits(patch)
        train_plan(plan_study(study_from_dict({**STUDY, "seeds": [1]}), Store(store)), store)
        other = plan_study(both, Store(store))
        assert finished(other, store) == 3
        check_same_data(rows(other, store))
    published = plan_study(both, Store(store))
    assert finished(published, store) == 3
    assert not {row["id"] for row in rows(published, store) if row["status"] == "finished"} & other.runs.keys()
    # Without the data, it is not known which of the two is meant.
    with pytest.MonkeyPatch.context() as patch:
        lose_digits(patch)
        with pytest.raises(
            UserError, match=r"on 2 different datasets called 'digits' \(3 on the published files; 3 on"
        ):
            plan_study(both, Store(store))


def test_results_on_other_data_are_readable_without_it(tmp_path: Path) -> None:
    store, study = tmp_path / "store", study_from_dict(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        fingerprint = use_other_digits(patch)
        train_plan(plan_study(study, Store(store)), store)
    with pytest.MonkeyPatch.context() as patch:
        lose_digits(patch)
        plan = plan_study(study, Store(store))
        assert finished(plan, store) == len(plan.runs) == 6
        assert plan.notices == (
            "dataset 'digits' was not found (in a test). The runs in the store on other data are shown "
            f"(fingerprint {fingerprint[:12]}).",
        )
        fresh = plan_study(study, Store(tmp_path / "none"))
        assert fresh.notices == ("dataset 'digits' was not found (in a test). The published files are assumed.",)
        assert fresh.inputs == PlanInputs()
        assert runs.plan(STUDY, store=tmp_path / "none").warnings[0] == fresh.notices[0]
    plan = plan_study(study, Store(store))
    assert finished(plan, store) == 0
    assert plan.notices[0].startswith("6 runs of this study in the store are on other data (fingerprint ")


def test_no_notice_if_the_store_has_the_published_runs(tmp_path: Path) -> None:
    store, study = tmp_path / "store", study_from_dict(STUDY)
    train_plan(plan_study(study, Store(store)), store)
    with pytest.MonkeyPatch.context() as patch:
        lose_digits(patch)
        assert plan_study(study, Store(store)).notices == ()


def test_runs_of_a_newer_version_are_left_out(tmp_path: Path) -> None:
    store, study = tmp_path / "store", study_from_dict(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        use_other_digits(patch)
        train_plan(plan_study(study, Store(store)), store)
    run_id = max(Store(store).run_ids())
    make_newer(store, run_id)
    with pytest.MonkeyPatch.context() as patch:
        lose_digits(patch)
        plan = plan_study(study, Store(store))
    assert run_id in plan.runs
    assert finished(plan, store) == len(plan.runs) - 1


def mixed_rows(tmp_path: Path) -> tuple[Plan, list[Any]]:
    """Return finished rows of one plan of which seed 1 has other data, as a merged store of an old release has them."""
    store, plan = tmp_path / "store", make_plan(study_from_dict(STUDY))
    train_plan(plan, store)
    return plan, [row | ({"data_fingerprint": "f" * 64} if row["seed"] == 1 else {}) for row in rows(plan, store)]


def test_everything_that_averages_refuses_mixed_data(tmp_path: Path) -> None:
    plan, mixed = mixed_rows(tmp_path)
    message = (
        r"on 2 different datasets called 'digits', which no mean may mix: 3 on data 467c691fbbaa \(.*; 3 on data fff"
    )
    store = Store(tmp_path / "store")
    for average in (
        lambda: check_same_data(mixed),
        lambda: check_one_experiment(mixed),
        lambda: evaluate_claims([(plan.study, mixed)]),
        lambda: reports.build_report_for([(plan, mixed, [])], store, "supermask report"),
    ):
        with pytest.raises(UserError, match=message):
            average()
    assert "mixed data" in format_status(["large_final"], mixed), "status counts the runs and averages nothing"
    check_same_data([row for row in mixed if row["seed"] == 1])


def test_a_worker_refuses_data_that_the_plan_is_not_for(tmp_path: Path) -> None:
    plan = make_plan(study_from_dict(STUDY), PlanInputs("e" * 64))
    with pytest.raises(UserError, match="was planned for data with fingerprint eeeeeeeeeeee, but the published files"):
        train_plan(plan, tmp_path / "store")


# --- user code -----------------------------------------------------------------------------------------------------

MODULE = "from helper_of_score import power\n\ndef score(layer, rng):\n    return layer.w_final.abs() ** power\n"


def write_module(folder: Path, power: float = 1.0) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "scores_of_mine.py").write_text(MODULE)
    (folder / "helper_of_score.py").write_text(f"power = {power}\n")


@pytest.fixture
def user_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    write_module(tmp_path / "code")
    monkeypatch.setattr("supermask.study.user_code._imported_hashes", {})
    _load_user_criterion.cache_clear()
    yield {**STUDY, "seeds": 1, "claims": [], "treatments": [{"criterion": "scores_of_mine:score"}]}
    for name in ("scores_of_mine", "helper_of_score"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_reading_never_imports_user_code_and_works_without_it(
    tmp_path: Path, user_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    monkeypatch.chdir(tmp_path / "code")
    plan = plan_study(study_from_dict(user_study), Store(store))
    assert "scores_of_mine" not in sys.modules
    train_plan(plan, store)
    assert "scores_of_mine" in sys.modules, "training imports it"
    del sys.modules["scores_of_mine"]
    for name in ("code", "."):
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setattr(sys, "path", [p for p in sys.path if not p.startswith(str(tmp_path))])
        again, found, damaged = runs.study_rows(user_study, store=store)
        assert {row["status"] for row in found} == {"finished"} and not damaged
        assert again.runs.keys() == plan.runs.keys()
        runs.plan(user_study, store=store)
        runs.figures(user_study, [], tmp_path / "figures", store)
        assert "scores_of_mine" not in sys.modules
    assert again.notices[0].startswith(
        "criterion 'scores_of_mine:score': there is no module 'scores_of_mine'; looked in"
    )
    with pytest.raises(UserError, match="there is no module 'scores_of_mine'"):
        runs.study_rows(user_study, store=tmp_path / "another")


def test_a_changed_helper_makes_other_runs(
    tmp_path: Path, user_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case that was reported: `run` said "2 finished" and kept the result of the former helper."""
    store = tmp_path / "store"
    monkeypatch.chdir(tmp_path / "code")
    first = plan_study(study_from_dict(user_study), Store(store))
    train_plan(first, store)
    write_module(tmp_path / "code", power=-1.0)
    changed = plan_study(study_from_dict(user_study), Store(store))
    assert len(changed.runs.keys() & first.runs.keys()) == 1, "only the dense run is shared"
    with pytest.raises(UserError, match="'helper_of_score' was changed after this process imported it"):
        train_plan(changed, store)
    for name in ("scores_of_mine", "helper_of_score"):
        del sys.modules[name]
    monkeypatch.setattr("supermask.study.user_code._imported_hashes", {})
    train_plan(changed, store)
    # From another folder, the two versions cannot be told apart.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not p.startswith(str(tmp_path))])
    with pytest.raises(UserError, match="has runs of 2 versions of it"):
        runs.study_rows(user_study, store=store)


def test_inputs_of_a_note_are_checked() -> None:
    inputs = PlanInputs("a" * 64, {"m:f": "b" * 64})
    assert PlanInputs.from_data(inputs.to_data()) == inputs
    assert PlanInputs().to_data() == {}
    for data in (None, [], "x", {"data_fingerprint": 3, "criterion_sources": ["m:f"]}, {"data_fingerprint": "../x"}):
        assert PlanInputs.from_data(data) == PlanInputs()
    assert PlanInputs.from_data({"criterion_sources": {"m:f": "b" * 64, "m:g": None}}) == replace(
        inputs, data_fingerprint=None
    )
