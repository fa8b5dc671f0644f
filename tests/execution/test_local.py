"""The local executor: workers that die or find damage; the store ends up the same."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
from helpers.executors import Recorder, criterion
from helpers.local_runs import TWO_CHAINS, children, execute
from helpers.small_studies import contents, facts, leftovers, small_plan, train_plan

from supermask.core.errors import SystemFailure, UserError
from supermask.execution.local import MAX_WORKER_CRASHES
from supermask.execution.tasks import Task, WorkerConfig
from supermask.store import Store

# ----------------------------------------------------------------------------------------------------- reproducibility


@pytest.mark.slow
def test_one_two_and_three_workers_make_the_same_store(folder: Path) -> None:
    plan = small_plan(TWO_CHAINS, {"name": "late", "rewind_to": 5, "criterion": "snip"}, seeds=2, levels=2)
    train_plan(plan, folder / "0")
    for workers in (1, 2, 3):
        recorder = Recorder()
        scheduler = execute(plan, WorkerConfig(folder / str(workers)), workers, recorder)
        assert scheduler.status == dict.fromkeys(plan.runs, "finished")
        assert sorted(recorder.ids()) == sorted(plan.runs)
        assert contents(folder / str(workers)) == contents(folder / "0")
        assert facts(folder / str(workers), plan) == facts(folder / "0", plan)
        assert not leftovers(folder / str(workers))
        assert not children()


def test_nothing_to_do_starts_no_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(levels=1)
    train_plan(plan, folder / "store")
    monkeypatch.setattr("supermask.execution.local.WorkerProcess", None)
    recorder = Recorder()
    execute(plan, WorkerConfig(folder / "store"), 2, recorder, keep="masks")
    assert not recorder.results
    assert not any(Store(folder / "store").has_weights(run_id) for run_id in plan.runs)


@pytest.mark.slow
def test_a_users_own_criterion_works_in_worker_processes(folder: Path) -> None:
    plan = small_plan({"criterion": criterion(folder, "pathlib.Path(f'asked-{os.getpid()}').touch()")}, seeds=2)
    execute(plan, WorkerConfig(folder / "store"), 2, Recorder())
    assert not (folder / f"asked-{os.getpid()}").exists()
    assert list(folder.glob("asked-*"))
    twin = small_plan({"criterion": "large_final"}, seeds=2)
    train_plan(twin, folder / "twin")
    assert sorted(map(str, contents(folder / "store").values())) == sorted(map(str, contents(folder / "twin").values()))


def test_workers_collect_garbage_but_not_what_the_fork_server_imported(folder: Path) -> None:
    """Python's garbage collector would write to each imported object, and so copy the memory that workers share."""
    body = "import gc; pathlib.Path('seen').write_text(f'{gc.isenabled()} {gc.get_freeze_count()}')"
    plan = small_plan({"criterion": criterion(folder, body)}, levels=1)
    execute(plan, WorkerConfig(folder / "store"), 1, Recorder())
    enabled, frozen = (folder / "seen").read_text().split()
    assert enabled == "True" and int(frozen) > 50_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "expected_text"),
    [
        ("return layer.w_final * float('nan')", "is NaN"),
        ("return layer.w_final.sum()", "one score per weight"),
        ("raise KeyError('oops')", r"failed at line 4 of .*own_criterion_\w+\.py: KeyError: 'oops'"),
    ],
)
def test_a_criterion_that_fails_ends_the_study_with_one_message(folder: Path, body: str, expected_text: str) -> None:
    plan = small_plan({"criterion": criterion(folder, body)}, {"criterion": "large_final"}, levels=2)
    with pytest.raises(UserError, match=expected_text) as error:
        execute(plan, WorkerConfig(folder / "store"), 2, Recorder())
    assert "Traceback" not in str(error.value)
    assert not children()
    good_plan = small_plan({"criterion": "large_final"}, levels=2)
    kept = Store(folder / "store").run_ids()
    assert next(iter(plan.runs)) in kept and kept <= good_plan.runs.keys()
    train_plan(good_plan, folder / "good")
    execute(good_plan, WorkerConfig(folder / "store"), 2, Recorder())
    assert contents(folder / "store") == contents(folder / "good")
    assert not leftovers(folder / "store")


# ----------------------------------------------------------------------------------------------------- worker crashes


@pytest.mark.slow
def test_killed_workers_are_replaced_and_their_runs_retried(folder: Path) -> None:
    """After a result all workers are killed: one is in training, the other is idle."""
    plan = small_plan(TWO_CHAINS, seeds=2, levels=2, epochs=10)
    train_plan(plan, folder / "whole")
    worker_pids: set[int | None] = set()

    def kill(number: int, task: Task) -> None:
        worker_pids.update(children())
        if number in (1, 4):
            for process in multiprocessing.active_children():
                process.kill()
            time.sleep(0.3)  # The deaths are noticed before the next task is sent.

    recorder = Recorder(kill)
    scheduler = execute(plan, WorkerConfig(folder / "killed", checkpoint_seconds=0.0), 2, recorder)
    assert sorted(recorder.ids()) == sorted(plan.runs)
    assert {*scheduler.status.values()} == {"finished"}
    assert len(worker_pids) >= 4
    assert contents(folder / "killed") == contents(folder / "whole")
    assert facts(folder / "killed", plan) == facts(folder / "whole", plan)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_run_whose_worker_is_killed_once_is_retried(folder: Path, name: str) -> None:
    """After SIGTERM, from the checkpoint that the worker saved."""
    body = f"""
        killed = pathlib.Path('killed')
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.{name})
    """
    plan = small_plan({"criterion": criterion(folder, body)}, {"criterion": "random"}, levels=2)
    scheduler = execute(plan, WorkerConfig(folder / "killed"), 2, Recorder())
    assert {*scheduler.status.values()} == {"finished"}
    train_plan(plan, folder / "whole")
    assert contents(folder / "killed") == contents(folder / "whole")


@pytest.mark.slow
def test_a_crash_does_not_disturb_other_workers(folder: Path) -> None:
    deadly_body = """
        while not pathlib.Path('busy').exists():
            time.sleep(0.01)
        with open('deaths', 'a') as file:
            file.write('x')
        if len(pathlib.Path('deaths').read_text()) < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        pathlib.Path('survived').touch()
    """
    busy_body = """
        with open('busy', 'a') as file:
            file.write('x')
        while not pathlib.Path('survived').exists():
            time.sleep(0.01)
    """
    busy = criterion(folder, busy_body)
    plan = small_plan({"criterion": busy}, {"criterion": criterion(folder, deadly_body)}, levels=1)
    scheduler = execute(plan, WorkerConfig(folder / "store"), 2, Recorder())
    assert {*scheduler.status.values()} == {"finished"}
    assert (folder / "busy").read_text() == "x" * 2  # Once per layer.


@pytest.mark.slow
def test_a_run_that_always_kills_its_worker_ends_the_study_and_is_named(folder: Path) -> None:
    deadly_body = """
        with open('deaths', 'a') as file:
            file.write('x')
        os.kill(os.getpid(), signal.SIGKILL)
    """
    harmless = {"criterion": "random"}
    plan = small_plan(harmless, {"criterion": criterion(folder, deadly_body)}, levels=1)
    dense, _, deadly = plan.runs
    with pytest.raises(SystemFailure, match=f"died {MAX_WORKER_CRASHES} times while run {deadly} .seed 0, level 1."):
        execute(plan, WorkerConfig(folder / "store"), 2, Recorder())
    assert (folder / "deaths").read_text() == "x" * MAX_WORKER_CRASHES
    assert not children()
    good_plan = small_plan(harmless, levels=1)
    assert {dense} <= Store(folder / "store").run_ids() <= good_plan.runs.keys()
    execute(good_plan, WorkerConfig(folder / "store"), 2, Recorder())
    train_plan(good_plan, folder / "whole")
    assert contents(folder / "store") == contents(folder / "whole")
    assert not leftovers(folder / "store")


@pytest.mark.slow
def test_a_full_disk_stops_the_study_and_loses_nothing(folder: Path) -> None:
    """The disk is full at the second level's commit in a worker process; then there is space again."""
    body = """
        import errno
        import supermask.store.files.disk
        def full(disk, descriptor, data):
            raise OSError(errno.ENOSPC, 'No space left on device')
        if pathlib.Path('full').exists() and not layer.alive.all():
            supermask.store.files.disk.Disk.write = full
    """
    plan = small_plan({"criterion": criterion(folder, body)}, levels=3)
    train_plan(plan, folder / "whole")
    (folder / "full").touch()
    with pytest.raises(SystemFailure, match=r"the disk is full. Free some space"):
        execute(plan, WorkerConfig(folder / "store"), 2, Recorder())
    complete_contents, kept = contents(folder / "whole"), contents(folder / "store")
    assert kept == {run_id: complete_contents[run_id] for run_id in list(plan.runs)[:2]}
    (folder / "full").unlink()
    recorder = Recorder()
    execute(plan, WorkerConfig(folder / "store"), 2, recorder)
    assert recorder.ids() == list(plan.runs)[2:]
    assert contents(folder / "store") == complete_contents
    assert not leftovers(folder / "store")


# --------------------------------------------------------------------------------------------------------------- damage


def flip(store: Path, run_id: str) -> None:
    """Flip one bit of a run's weights."""
    path = store / "runs" / run_id[:2] / run_id / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(data)


@pytest.mark.slow
def test_a_damaged_parent_is_set_aside_reported_and_recomputed(folder: Path) -> None:
    small, plan = (small_plan(TWO_CHAINS, seeds=2, levels=levels) for levels in (2, 3))
    train_plan(plan, folder / "whole")
    train_plan(small, folder / "store")
    damaged = next(run for run in plan.runs.values() if run.level == 2)
    flip(folder / "store", damaged.id)
    recorder = Recorder()
    scheduler = execute(plan, WorkerConfig(folder / "store"), 2, recorder)
    (message,) = scheduler.damaged
    assert damaged.id in message and "set aside" in message
    assert sorted(recorder.ids()) == sorted([damaged.id, *(plan.runs.keys() - small.runs.keys())])
    assert [path.name[:32] for path in (folder / "store" / "quarantine").iterdir()] == [damaged.id]
    assert contents(folder / "store") == contents(folder / "whole")


@pytest.mark.slow
def test_a_disk_that_damages_one_run_repeatedly_ends_the_study(folder: Path) -> None:
    plan = small_plan(levels=1)
    dense = next(iter(plan.runs))
    recorder = Recorder(lambda number, task: flip(folder / "store", dense) if task.run.id == dense else None)
    with pytest.raises(
        SystemFailure, match=f"{dense} in the store is damaged.*{MAX_WORKER_CRASHES} times: is the disk"
    ):
        execute(plan, WorkerConfig(folder / "store"), 1, recorder)
    assert recorder.ids() == [dense] * MAX_WORKER_CRASHES
