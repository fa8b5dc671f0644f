"""The golden store of release 0.1 is read, verified, resumed and extended by this version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from golden.make_store import TREATMENTS, USER_TREATMENTS, golden_study
from helpers.faulty_disk import quick_folder
from helpers.golden_store import EXPECTED, GOLDEN, copy_golden, golden_entries
from helpers.small_studies import train_plan

from supermask.store import Store
from supermask.store.rows import store_rows
from supermask.store.verify import verify_store
from supermask.study.plan import make_plan


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def test_it_is_small_and_has_every_kind_of_entry() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*")) < 700_000
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 300_000
    assert golden_entries(GOLDEN).keys() == {
        "finished dense", "finished pruned", "finished user", "finished untrained", "finished bernoulli",
        "finished rounded", "finished edge_popup", "finished signed", "certificate_failed signed", "diverged dense",
        "snapshot iteration_4", "snapshot gradient", "snapshot lowest_validation_loss", "checkpoint",
    }  # fmt: skip
    assert any(path.name == "weights.dropped" for path in GOLDEN.rglob("*"))


def test_every_row_is_read_as_the_release_read_it() -> None:
    rows, damaged = store_rows(Store(GOLDEN))
    assert not damaged
    for row, expected in zip(rows, EXPECTED["rows"], strict=True):
        assert {name: row.get(name) for name in expected} == expected


def test_every_entry_is_verified_as_the_release_verified_it(folder: Path) -> None:
    verdicts = {verdict.key: verdict.verdict for verdict in verify_store(copy_golden(folder))}
    assert verdicts == EXPECTED["verdicts"]


@pytest.mark.slow
def test_reading_changes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in GOLDEN.rglob("*")}
    store_rows(Store(GOLDEN))
    list(verify_store(Store(GOLDEN)))
    assert {path: path.stat().st_mtime_ns for path in GOLDEN.rglob("*")} == before


def test_its_study_is_done_and_a_further_level_is_trained_from_it(folder: Path) -> None:
    store = copy_golden(folder)
    assert train_plan(make_plan(golden_study()), store.root, engine="auto").ended == []
    assert train_plan(make_plan(golden_study(treatments=USER_TREATMENTS)), store.root, engine="auto").ended == []
    # Treatments of which no snapshot is needed that was not kept: another machine could not train it to equal bits.
    names = ("iterative", "at once", "untrained", "learned")
    more = make_plan(golden_study(levels=3, treatments=[t for t in TREATMENTS if t["name"] in names]))
    plan_run = train_plan(more, store.root, engine="auto")
    assert plan_run.trained and not set(plan_run.trained) & Store(GOLDEN).run_ids() and not plan_run.replayed
    assert {*plan_run.schedule.status.values()} == {"finished"}
    assert not (store.root / "quarantine").exists()


def test_its_checkpoint_is_whole_and_its_run_is_finished(folder: Path) -> None:
    store = copy_golden(folder)
    (checkpoint,) = (path.name for path in (store.root / "checkpoints").iterdir())
    assert store.load_checkpoint(checkpoint) is not None
    plan = make_plan(golden_study(treatments=TREATMENTS[:1], seeds=[1]))
    assert checkpoint in plan.runs
    train_plan(plan, store.root)
    assert store.has(checkpoint) and not (store.root / "checkpoints" / checkpoint).exists()
