"""Functions of `api.runs` on an existing store, without worker processes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers.forgery import forge
from helpers.stored_study import RUNS, TrainedStudy, train_study, write_study

import supermask
from supermask.api import runs
from supermask.api.data import inspect_dataset
from supermask.core.errors import SystemFailure, UserError
from supermask.core.text import Row
from supermask.execution import run
from supermask.execution.run import RunOptions
from supermask.reporting.status import format_status, treatment_progress
from supermask.store import Store
from supermask.store.files.entry import RunFacts
from supermask.store.files.folders import EntryFolders
from supermask.study import study_from_dict


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("commands"))


def test_plan_counts_the_chain_that_gives_untrained_networks_their_masks(tmp_path: Path) -> None:
    """Three levels need two trained ones besides the dense network, for each of two treatments that share them."""
    treatments = [{"trained": False, "mask1": ["rewind", "constant"]}]
    study = study_from_dict({"network": "fc-8", "seeds": 2, "prune": {"levels": 3}, "treatments": treatments})
    summary = runs.plan(study, store=tmp_path)
    assert (summary.requested, summary.unique) == (2 * 2 * (1 + 2 + 3), 2 * (1 + 2 + 3 + 3))


def test_plan_counts_requested_unique_done_and_missing_runs(trained: TrainedStudy, tmp_path: Path) -> None:
    nothing_done = runs.plan(str(trained.study), store=tmp_path)
    assert (nothing_done.requested, nothing_done.unique, nothing_done.done, nothing_done.to_do) == (24, RUNS, 0, RUNS)
    done = runs.plan(str(trained.study), store=trained.store)
    assert (done.requested, done.unique, done.done, done.to_do) == (24, RUNS, RUNS, 0)
    assert done.estimate.wall_seconds(1) == 0
    more = runs.plan(str(trained.study), ["scale=more", "seeds=3"], trained.store)
    assert (more.requested, more.unique, more.done, more.to_do) == (3 * 4 * 4, 3 * 13, RUNS, 3 * 13 - RUNS)
    assert more.estimate.source == "from runs in the store"
    assert (more.network, more.recipe.iterations) == ("fc-8", 13)


@pytest.mark.parametrize(
    ("changes", "blocked"),
    [({"status": "diverged"}, 2), ({"status": "certificate_failed"}, 0), ({"attempts": 2}, 2)],
)
def test_plan_counts_runs_below_a_failed_one_apart(
    trained: TrainedStudy, changes: dict[str, Any], blocked: int
) -> None:
    """A run whose certificate failed once is trained again, so it blocks nothing."""
    failed = {"status": "certificate_failed", "certificate": {"checks": {"masks": ["fc1.weight"]}}, **changes}
    store = SimpleNamespace(facts=lambda run_id: failed)
    missing = {trained.run_id(level, "random") for level in (1, 2)}
    assert len(runs._blocked_runs(trained.plan, missing, cast(Store, store))) == blocked


def test_plan_creates_no_folder(trained: TrainedStudy, tmp_path: Path) -> None:
    runs.plan(str(trained.study), store=tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_finished_study_needs_no_data_no_workers_and_no_disk_space(
    trained: TrainedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(run, "load_data", forbidden)
    monkeypatch.setattr(run, "_check_writable", forbidden)
    schedule = runs.run(str(trained.study), store=trained.store)
    assert set(schedule.status.values()) == {"finished"}
    assert schedule.tasks_left == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"engine": "referense"},
            "'referense' is not an engine; did you mean 'reference'\\? Allowed: auto, sparse, stacked, reference.",
        ),
        ({"device": "tensor"}, "'tensor' is not a device. Allowed: cpu, cuda."),
        ({"keep": "some"}, "'some' is not a way to keep weights. Allowed: all, needed, masks."),
        ({"workers": 0}, "0 workers cannot train anything"),
    ],
)
def test_run_refuses_invalid_arguments(
    trained: TrainedStudy, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        runs.run(str(trained.study), store=tmp_path / "store", **arguments)
    assert not (tmp_path / "store").exists()


def test_missing_data_is_reported_before_the_store_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMASK_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="dataset 'mnist' was not found"):
        runs.run(str(write_study(tmp_path)), ["dataset=mnist"], tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_unwritable_store_is_reported_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *args: Any, **more: Any) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    monkeypatch.setattr("supermask.execution.local.run_plan", None)
    with pytest.raises(SystemFailure, match="the filesystem is read-only"):
        runs.run(str(write_study(tmp_path)), store=tmp_path / "store")


def test_missing_gpu_is_refused(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="no GPU"):
        runs.run(str(write_study(tmp_path)), store=tmp_path / "store", device="cuda")


def test_default_store_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERMASK_STORE", raising=False)
    assert runs.default_store_path() == Path("supermask-store")
    monkeypatch.setenv("SUPERMASK_STORE", "")
    assert runs.default_store_path() == Path("supermask-store")
    monkeypatch.setenv("SUPERMASK_STORE", "elsewhere")
    assert runs.default_store_path() == Path("elsewhere")


def test_reading_commands_need_a_store(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    for command in (
        runs.verify,
        lambda path: runs.query("SELECT 1", path),
        lambda path: runs.export("1", path, path),
    ):
        with pytest.raises(UserError, match="there is no store at"):
            command(absent)


@pytest.mark.slow
def test_figures_are_saved_with_their_data(trained: TrainedStudy, tmp_path: Path) -> None:
    saved, damaged = runs.figures(str(trained.study), [], tmp_path / "new" / "figures", trained.store)
    assert not damaged
    assert [path.name for _, paths in saved for path in paths] == [
        f"small-{figure}.{suffix}"
        for figure in ("accuracy", "early-stop", "differences", "overview", "ranking", "weight-changes")
        for suffix in ("pdf", "svg", "png", "csv", "txt")
    ]
    assert all(path.stat().st_size for _, paths in saved for path in paths)


def test_figures_of_a_study_without_runs_are_refused(trained: TrainedStudy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of study 'small' with these settings is in"):
        runs.figures(str(trained.study), ["train.lr=0.5"], tmp_path / "figures", trained.store)
    assert not (tmp_path / "figures").exists()


@pytest.mark.slow
def test_damage_is_returned_beside_the_result(trained: TrainedStudy, tmp_path: Path) -> None:
    shutil.copytree(trained.store, tmp_path / "store")
    run_id = trained.run_id(1)
    (tmp_path / "store" / "runs" / run_id[:2] / run_id / "run.json").write_text("{}")
    saved, damaged = runs.figures(str(trained.study), [], tmp_path / "figures", tmp_path / "store", formats=["png"])
    answer, also = runs.query("SELECT count(*) FROM runs", tmp_path / "store")
    assert len(saved) == 6
    assert answer.rows == [(RUNS - 1,)]
    assert damaged == also
    assert run_id in damaged[0]


def test_query_reads_every_run_and_changes_nothing(trained: TrainedStudy) -> None:
    sql = "SELECT criterion, count(*) AS n FROM runs GROUP BY ALL ORDER BY ALL"
    answer, _ = runs.query(sql, trained.store)
    assert answer.columns == ["criterion", "n"]
    assert answer.rows == [("large_final", 8), ("random", 8), (None, 2)]
    with pytest.raises(UserError, match="DELETE is not allowed"):
        runs.query("DELETE FROM runs", trained.store)
    assert runs.query(sql, trained.store)[0] == answer


def test_status_counts_runs_and_describes_the_last_level(trained: TrainedStudy) -> None:
    plan, rows, _ = runs.study_rows(str(trained.study), ["scale=more"], trained.store)
    progress = treatment_progress("large_final + zero", rows)
    assert progress.counts == {
        "finished": 4, "diverged": 0, "certificate_failed": 0,
        "ancestor_diverged": 0, "ancestor_certificate_failed": 0, "to_do": 2,
    }  # fmt: skip
    assert progress.last is not None
    assert (progress.last.level, progress.last.seeds) == (2, 2)
    assert progress.last.density == pytest.approx((128 + 39) / 592)
    last = [row for row in rows if row["treatment"] == "large_final + zero" and row["level"] == 2]
    mean = sum(float(row["early_stop_test_accuracy"] or 0) for row in last) / 2
    assert progress.last.accuracy == pytest.approx(mean)
    text = format_status(runs.treatment_labels(plan), rows)
    assert text.splitlines()[0].split()[:4] == ["treatment", "finished", "to", "do"]
    assert [line.split("  ")[0] for line in text.splitlines()[2:]] == runs.treatment_labels(plan)


def test_status_omits_empty_columns() -> None:
    row: Row = {"treatment": "a", "status": "to_do", "level": 1}
    diverged: Row = {"treatment": "b | [bold]c[/bold]", "status": "diverged", "level": 1}
    assert "diverged" not in format_status(["a"], [row])
    text = format_status(["a", "b", "[bold]c[/bold]"], [row, diverged])
    assert text.splitlines()[0].split()[:4] == ["treatment", "finished", "diverged", "to"]
    assert text.splitlines()[4].split() == ["[bold]c[/bold]", "0", "1", "0", "-", "-", "-", "-"]


def test_public_names() -> None:
    assert supermask.api.runs is runs
    assert supermask.UserError is UserError
    assert set(supermask.__all__) <= set(dir(supermask))
    with pytest.raises(AttributeError, match=r"attribute .*nothing"):
        supermask.nothing  # noqa: B018


def test_new_seed_is_not_trained_on_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_study(tmp_path)
    digits = run.load_data("digits", None, None)
    monkeypatch.setattr(run, "load_data", lambda *_: replace(digits, fingerprint="f" * 64))
    with pytest.raises(UserError, match="were trained on other data"):
        runs.run(str(trained.study), ["seeds=3"], trained.store)


def test_finished_runs_on_other_data_under_a_published_id_are_refused(tmp_path: Path) -> None:
    """Ids of version 0.1 did not name the data; such a plan looks complete, and two datasets would share a mean."""
    trained = train_study(tmp_path)
    dense = next(run for run in trained.plan.runs.values() if run.seed == 1 and run.level == 0)

    def use_other_data(facts: RunFacts, *_: object) -> None:
        facts["data"] = {"fingerprint": "e" * 64, "note": "not the usual digits"}

    forge(trained, dense.id, use_other_data)
    with pytest.raises(UserError, match=rf"\(eeeeeeeeeeee\) than .*\(467c691fbbaa\): 1 run \({dense.id[:12]}\)"):
        runs.run(str(trained.study), store=trained.store)
    assert runs.run(str(trained.study), ["seeds=[0]"], trained.store).tasks_left == 0


def test_run_reads_finished_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train_study(tmp_path)
    reads: list[str] = []
    read_facts = EntryFolders.read_facts
    monkeypatch.setattr(
        EntryFolders,
        "read_facts",
        lambda folders, kind, key, folder: reads.append(key) or read_facts(folders, kind, key, folder),
    )
    schedule = runs.run(str(trained.study), store=trained.store)
    assert sorted(reads) == sorted(schedule.plan.runs)


@pytest.mark.parametrize("count", [1.5, "many", True])
def test_counts_that_are_no_whole_numbers_are_refused(count: Any) -> None:
    for name in ("cores", "gpus"):
        with pytest.raises(UserError, match=rf"{name}=.*: give a whole number of 1 or more"):
            runs.plan({"treatments": [{}]}, **{name: count})
    for options in (RunOptions(Path("none"), workers=count), RunOptions(Path("none"), engine="stacked", stack=count)):
        with pytest.raises(UserError, match="give a whole number of 1 or more"):
            options.validate()


@pytest.mark.parametrize("name", [3, {"x_train": 1}])
def test_an_inspected_dataset_is_a_text(name: Any) -> None:
    with pytest.raises(UserError, match=r"is not a dataset: give a name or a locator, such as npz:own\.npz"):
        inspect_dataset(name)
