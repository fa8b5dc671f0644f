"""Live report: rebuilt per study when runs are added, with pauses between builds."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.stored_study import RUNS, TrainedStudy, train_study

from supermask.core.errors import UserError
from supermask.reporting.html import build_report, plot_data, sections, table_data
from supermask.serve import live_report
from supermask.serve.live_report import LiveReport
from supermask.serve.store_cache import CachedStore
from supermask.serve.studies import StoredStudy
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study import load_study
from supermask.study.plan import make_plan


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("live"))


@pytest.fixture
def store(trained: TrainedStudy, tmp_path: Path) -> Path:
    """A copy of the store that the test may change."""
    shutil.copytree(trained.store, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(live_report, "REST_FACTOR", 0.0)
    yield


def studies_of(trained: TrainedStudy) -> list[StoredStudy]:
    """The study, and a second one with another level that has no run."""
    more = make_plan(load_study(trained.study, ["scale=more", "seeds=1"]))
    return [StoredStudy("a", "small", trained.plan), StoredStudy("b", "small, more", more)]


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait for another thread, at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def build(report: LiveReport, studies: list[StoredStudy]) -> None:
    """Start a build and wait for its end."""
    before = report.parts
    report.update(studies)
    wait_until(lambda: report.parts is not before)


def test_parts_equal_the_static_report(trained: TrainedStudy, store: Path) -> None:
    cache = CachedStore(store)
    cache.refresh()
    live = LiveReport(cache)
    build(live, studies_of(trained)[:1])
    rows = plan_rows(trained.plan, trained.open_store())
    report = build_report([(trained.plan, *rows)], [], trained.open_store(), live_report.MADE_BY)
    assert dict(live.parts.sections) == sections(report)
    for name, value in {**plot_data(report), **table_data(report)}.items():
        assert json.loads(live.data(name) or "") == json.loads(json.dumps(value))
    assert set(live.parts.data) == {*plot_data(report), *table_data(report), "study-small-file"}
    assert live.data("nothing") is None
    assert live.data("../x") is None


def test_new_runs_rebuild_only_their_study(trained: TrainedStudy, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained.run_id(2, "random", seed=1)
    away = store.parent / "away"
    (store / "runs" / run_id[:2] / run_id).rename(away)
    parts: list[str] = []
    real = live_report.build_study_section
    monkeypatch.setattr(live_report, "build_study_section", lambda name, *more: parts.append(name) or real(name, *more))
    cache = CachedStore(store)
    cache.refresh()
    live, studies = LiveReport(cache), studies_of(trained)
    build(live, studies)
    assert parts == ["study-small", "study-small-2"]
    first = live.parts
    live.update(studies)
    assert live.parts is first
    away.rename(store / "runs" / run_id[:2] / run_id)
    cache.refresh()
    build(live, studies)
    # Seed 1 does not belong to the second study, whose section is cached.
    assert parts == ["study-small", "study-small-2", "study-small"]
    sections, data = first.revisions["sections"], first.revisions["data"]
    assert {n for n, rev in live.parts.revisions["sections"].items() if rev != sections[n]} >= {"study-small"}
    assert live.parts.revisions["sections"]["study-small-2"] == sections["study-small-2"]
    changed = {name for name, revision in live.parts.revisions["data"].items() if revision != data[name]}
    assert changed == {name for name in data if not name.startswith("study-small-2-")}
    assert f"{RUNS} runs finished" in live.parts.sections["study-small"]


def test_a_run_that_was_computed_again_rebuilds_its_study(
    trained: TrainedStudy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another result and the same status, as after `verify --repair`."""
    parts: list[str] = []
    real = live_report.build_study_section
    monkeypatch.setattr(live_report, "build_study_section", lambda name, *more: parts.append(name) or real(name, *more))
    cache, run_id = CachedStore(store), trained.run_id(2, "random", seed=1)
    cache.refresh()
    live, studies = LiveReport(cache), studies_of(trained)
    build(live, studies)
    first = live.parts
    entry = Store(store).read(run_id)
    Store(store).quarantine(run_id, "a test")
    cache.refresh()
    facts = {**entry.facts, "metrics": {**entry.facts["metrics"], "final_test_accuracy": 0.0}}
    Store(store).commit(run_id, facts, entry.tensors, entry.weights or {})
    cache.refresh()
    build(live, studies)
    assert parts == ["study-small", "study-small-2", "study-small"]
    changed = {n for n, rev in live.parts.revisions["data"].items() if rev != first.revisions["data"][n]}
    assert changed == {n for n in changed if not n.startswith("study-small-2-")} != set()


@pytest.mark.parametrize(
    ("error", "message", "printed"),
    [
        (UserError("no such thing."), "The report cannot be made: no such thing.", ""),
        (KeyError("x"), "The report cannot be made; the traceback is in the server's terminal.", "KeyError: 'x'\n"),
    ],
)
def test_failed_build_is_reported_and_not_repeated(
    trained: TrainedStudy,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    message: str,
    printed: str,
) -> None:
    tries: list[int] = []

    def fails(*_: Any, **__: Any) -> None:
        tries.append(1)
        raise error

    monkeypatch.setattr(live_report, "build_report", fails)
    cache = CachedStore(store)
    cache.refresh()
    live = LiveReport(cache)
    for _ in range(3):
        live.update(studies_of(trained))
        wait_until(lambda: live.error)
        wait_until(lambda: not live._building.locked())
    assert live.error == message
    assert len(tries) == 1
    err = capsys.readouterr().err
    assert err.endswith(printed) and bool(err) == bool(printed)


def test_builds_have_pauses_between_them(trained: TrainedStudy, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_report, "REST_FACTOR", 1e6)
    cache = CachedStore(store)
    cache.refresh()
    live = LiveReport(cache)
    # There is none after the first build, which also imports libraries.
    for _ in range(2):
        build(live, studies_of(trained))
        wait_until(lambda: not live._building.locked())
        cache.revision += 1
    second = live.parts
    live.update(studies_of(trained))
    assert not live._building.locked()
    assert live.parts is second


def test_studies_without_finished_runs_are_left_out(trained: TrainedStudy, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    cache = CachedStore(tmp_path / "empty")
    cache.refresh()
    live = LiveReport(cache)
    build(live, [*studies_of(trained), StoredStudy("c", "unplanned", None, "why not")])
    assert live.parts.sections == {}
    assert live.parts.revisions["data"] == {}
