"""The report on the live page: made again when runs have come, study by study, and never all the time."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.stored_study import RUNS, Carried, carried_out

from supermask.core.errors import UserError
from supermask.reporting.html import build_report, plot_data, sections, table_data
from supermask.serve import live_report
from supermask.serve.live_report import LiveReport
from supermask.serve.store_cache import CachedStore
from supermask.serve.studies import StoredStudy
from supermask.store.rows import plan_rows
from supermask.study import load_study
from supermask.study.plan import make_plan


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    return carried_out(tmp_path_factory.mktemp("live"))


@pytest.fixture
def store(carried: Carried, tmp_path: Path) -> Path:
    """A copy of the store, to be changed."""
    shutil.copytree(carried.store, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(live_report, "REST_FACTOR", 0.0)
    yield


def known(carried: Carried) -> list[StoredStudy]:
    """The study, and the same with another level of which no run is there."""
    more = make_plan(load_study(carried.study, ["scale=more", "seeds=1"]))
    return [StoredStudy("a", "small", carried.plan), StoredStudy("b", "small, more", more)]


def until(done: Callable[[], Any]) -> None:
    """Waits for a thread."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def made(report: LiveReport, studies: list[StoredStudy]) -> None:
    """Lets it be made, and waits for it."""
    before = report.parts
    report.update(studies)
    until(lambda: report.parts is not before)


def test_its_parts_are_the_reports(carried: Carried, store: Path) -> None:
    shelf = CachedStore(store)
    shelf.refresh()
    live = LiveReport(shelf)
    made(live, known(carried)[:1])
    rows = plan_rows(carried.plan, carried.opened())
    report = build_report([(carried.plan, *rows)], [], carried.opened(), live_report.MADE_BY)
    assert dict(live.parts.sections) == sections(report)
    for name, value in {**plot_data(report), **table_data(report)}.items():
        assert json.loads(live.data(name) or "") == json.loads(json.dumps(value))
    assert set(live.parts.data) == {*plot_data(report), *table_data(report), "study-small-file"}
    assert live.data("nothing") is None
    assert live.data("../x") is None


def test_it_is_made_again_when_runs_have_come_and_only_what_changed(
    carried: Carried, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = carried.run_id(2, "random", seed=1)
    away = store.parent / "away"
    (store / "runs" / run_id[:2] / run_id).rename(away)
    parts: list[str] = []
    real = live_report.build_study_section
    monkeypatch.setattr(live_report, "build_study_section", lambda name, *more: parts.append(name) or real(name, *more))
    shelf = CachedStore(store)
    shelf.refresh()
    live, studies = LiveReport(shelf), known(carried)
    made(live, studies)
    assert parts == ["study-small", "study-small-2"]
    first = live.parts
    live.update(studies)
    assert live.parts is first
    away.rename(store / "runs" / run_id[:2] / run_id)
    shelf.refresh()
    made(live, studies)
    # Seed 1 is not of the second study: its part is remembered.
    assert parts == ["study-small", "study-small-2", "study-small"]
    sections, data = first.revisions["sections"], first.revisions["data"]
    assert {n for n, rev in live.parts.revisions["sections"].items() if rev != sections[n]} >= {"study-small"}
    assert live.parts.revisions["sections"]["study-small-2"] == sections["study-small-2"]
    changed = {name for name, revision in live.parts.revisions["data"].items() if revision != data[name]}
    assert changed == {name for name in data if not name.startswith("study-small-2-")}
    assert f"{RUNS} runs finished" in live.parts.sections["study-small"]


def test_what_cannot_be_made_is_told_and_not_tried_again_and_again(
    carried: Carried, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fails(*_: Any, **__: Any) -> None:
        tries.append(1)
        raise UserError("no such thing.")

    monkeypatch.setattr(live_report, "build_report", fails)
    shelf = CachedStore(store)
    shelf.refresh()
    live = LiveReport(shelf)
    for _ in range(3):
        live.update(known(carried))
        until(lambda: live.error)
        until(lambda: not live._making.locked())
    assert live.error == "The report cannot be made: no such thing."
    assert len(tries) == 1


def test_it_rests_after_it_was_made(carried: Carried, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_report, "REST_FACTOR", 1e6)
    shelf = CachedStore(store)
    shelf.refresh()
    live = LiveReport(shelf)
    made(live, known(carried))
    until(lambda: not live._making.locked())
    first = live.parts
    shelf.revision += 1
    live.update(known(carried))
    assert not live._making.locked()
    assert live.parts is first


def test_studies_of_which_nothing_has_ended_are_left_out(carried: Carried, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shelf = CachedStore(tmp_path / "empty")
    shelf.refresh()
    live = LiveReport(shelf)
    made(live, [*known(carried), StoredStudy("c", "unplanned", None, "why not")])
    assert live.parts.sections == {}
    assert live.parts.revisions["data"] == {}
