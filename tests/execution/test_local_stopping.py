"""The local executor: Ctrl-C, killed main processes and stacks; no process outlives its command."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import slow_loss
from helpers.executors import Recorder, criterion
from helpers.local_runs import TWO_CHAINS, children, execute
from helpers.processes import command_lines, group_members, start_process, wait_until, wait_until_gone
from helpers.small_studies import contents, facts, leftovers, same_table, small_plan, train_plan

from supermask.execution.coordinator import shutdown_grace_seconds
from supermask.execution.local import StudyInterrupted, _stop_processes
from supermask.execution.tasks import Task, WorkerConfig
from supermask.store import Store
from supermask.study import load_study
from supermask.study.plan import make_plan

PROC = Path("/proc/self/stat")
needs_proc = pytest.mark.skipif(not PROC.exists(), reason="looks for processes in /proc")


@pytest.mark.slow
def test_ctrl_c_stops_and_the_same_call_resumes(folder: Path) -> None:
    """Only the study's own workers are ended."""
    plan = small_plan(TWO_CHAINS, seeds=2, levels=2, epochs=10)
    train_plan(plan, folder / "whole")

    def interrupt(number: int, task: Task) -> None:
        if number == 2:
            raise KeyboardInterrupt

    unrelated = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,))
    unrelated.start()
    try:
        with pytest.raises(StudyInterrupted) as interrupted, through_a_context_manager():
            execute(plan, WorkerConfig(folder / "store"), 2, Recorder(interrupt))
        assert children() == {unrelated.pid}
    finally:
        unrelated.kill()
        unrelated.join()
    kept = contents(folder / "store")
    assert interrupted.value.remaining == len(plan.runs) - len(kept)
    assert len(kept) >= 2
    recorder = Recorder()
    execute(plan, WorkerConfig(folder / "store"), 2, recorder)
    assert sorted(recorder.ids()) == sorted(plan.runs.keys() - kept.keys())
    assert contents(folder / "store") == contents(folder / "whole")
    assert not leftovers(folder / "store")


@contextmanager
def through_a_context_manager() -> Iterator[None]:
    """A context manager like the progress display, which sets attributes of exceptions that pass through."""
    yield


SCRIPT = """
import sys
from pathlib import Path
from supermask.execution.coordinator import ExecutionRequest, shutdown_grace_seconds
from supermask.execution.local import run_plan
from supermask.execution.tasks import WorkerConfig
from supermask.study.plan import make_plan
from supermask.study import load_study
if __name__ == "__main__":
    plan = make_plan(load_study("study.yaml"))
    run_plan(ExecutionRequest(plan, WorkerConfig(Path("store")), 2, lambda *_: None))
"""


@pytest.mark.slow
@needs_proc
def test_no_worker_outlives_a_killed_main_process(folder: Path) -> None:
    """Including workers that are busy for ten minutes."""
    name = criterion(folder, "pathlib.Path(f'busy-{os.getpid()}').touch(); time.sleep(600)")
    (folder / "study.yaml").write_text(
        f"network: fc-20\nseeds: 2\ntrain: {{epochs: 1}}\ntreatments: [{{criterion: {name}}}]"
    )
    (folder / "script.py").write_text(SCRIPT)
    with start_process("script.py") as process:
        wait_until(lambda: len(list(folder.glob("busy-*"))) == 2, process)
        assert len(group_members(process.pid)) >= 3
        process.kill()
        assert wait_until_gone(process.pid, 3.0), group_members(process.pid)


STUDY = f"""
network: fc-20
seeds: 2
train: {{epochs: 20, evaluate_every: 10, loss: {slow_loss.NAME}}}
prune: {{levels: 1}}
treatments: [{{criterion: large_final}}]
"""


@pytest.mark.slow
@needs_proc
def test_ctrl_c_ends_the_command_within_two_seconds_and_it_can_be_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "study.yaml").write_text(STUDY)
    command = ("-m", "supermask", "run", "study.yaml", "--store", "store", "--workers", "2", "--engine", "reference")
    with slow_loss.slow_folder(folder, monkeypatch), start_process(*command) as process:
        # Ctrl-C in a terminal goes to every process of the group. By now at least one run is in training.
        wait_until(lambda: Store(folder / "store").run_ids(), process)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=2.0) == 130
        # The fork server ends by itself when it notices that its parent is gone.
        assert wait_until_gone(process.pid, 3.0), group_members(process.pid)
        out, err = process.communicate()
    assert "the same command resumes" in out + err
    assert "Traceback" not in out + err and "KeyboardInterrupt" not in out + err
    kept = Store(folder / "store").run_ids()
    assert 1 <= len(kept) < 4
    assert list((folder / "store" / "checkpoints").iterdir())
    plan = make_plan(load_study(folder / "study.yaml"))
    recorder = Recorder()
    execute(plan, WorkerConfig(folder / "store"), 2, recorder)
    assert sorted(recorder.ids()) == sorted(plan.runs.keys() - kept)
    train_plan(plan, folder / "whole")
    assert contents(folder / "store") == contents(folder / "whole")
    assert not leftovers(folder / "store")


@pytest.mark.slow
@needs_proc
def test_ctrl_c_during_the_start_of_workers_raises_study_interrupted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "study.yaml").write_text(STUDY)
    (folder / "script.py").write_text(SCRIPT)
    with slow_loss.slow_folder(folder, monkeypatch), start_process("script.py") as process:
        wait_until(
            lambda: any("multiprocessing.forkserver" in line for line in command_lines(process.pid).values()), process
        )
        time.sleep(0.3)  # It is importing torch.
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 1
    assert (
        err.count("Traceback") == 1 and "StudyInterrupted: 4" in err
    )  # The script's own; no other process prints anything.


@pytest.mark.slow
def test_stacks_in_worker_processes_give_the_reference_results(folder: Path) -> None:
    """Two workers with stacks of up to three chains; every result is reported once."""
    plan = small_plan(TWO_CHAINS, seeds=[0, 1, 2], levels=2)
    recorder, starts = Recorder(), Counter[str]()
    config = WorkerConfig(folder / "store", engine="stacked", stack=3)
    scheduler = execute(
        plan, config, 2, recorder, start_method="fork", on_start=lambda task: starts.update([task.run.id])
    )
    assert scheduler.status == dict.fromkeys(plan.runs, "finished")
    assert sorted(recorder.ids()) == sorted(plan.runs)
    assert set(starts.values()) == {1}
    assert {facts_of_run["engine"] for facts_of_run in facts(folder / "store", plan).values()} == {"stacked"}
    train_plan(plan, folder / "alone", engine="reference")
    same_table(plan, folder / "store", folder / "alone")
    train_plan(plan, folder / "sparse", engine="sparse")
    same_table(plan, folder / "sparse", folder / "alone")
    assert not leftovers(folder / "store")


@pytest.mark.slow
def test_one_pool_has_workers_that_train_and_workers_that_measure(folder: Path) -> None:
    """As beside a GPU: stacks train in one process; another, of the reference engine, measures untrained runs."""
    untrained = {"criterion": "large_final", "schedule": "one_shot", "trained": False}
    plan = small_plan(TWO_CHAINS, untrained, seeds=[0, 1], levels=2)
    recorder = Recorder()
    config = WorkerConfig(folder / "store", engine="stacked", stack=2)
    scheduler = execute(plan, config, 1, recorder, start_method="fork", evaluation_workers=1)
    assert scheduler.status == dict.fromkeys(plan.runs, "finished")
    assert sorted(recorder.ids()) == sorted(plan.runs)
    engines = {run_id: found["engine"] for run_id, found in facts(folder / "store", plan).items()}
    expected = {run_id: "stacked" if run.is_trained else "reference" for run_id, run in plan.runs.items()}
    assert engines == expected and set(expected.values()) == {"stacked", "reference"}
    train_plan(plan, folder / "alone", engine="reference")
    same_table(plan, folder / "store", folder / "alone")
    assert not leftovers(folder / "store")


def test_finished_runs_of_a_stack_whose_worker_dies_are_not_repeated(folder: Path) -> None:
    """The worker is killed once, at the second level."""
    body = """
        if not layer.alive.all() and not pathlib.Path('killed').exists():
            pathlib.Path('killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    plan = small_plan({"criterion": [criterion(folder, body), "random"]}, seeds=[0, 1], levels=2)
    recorder = Recorder()
    execute(plan, WorkerConfig(folder / "store", engine="stacked", stack=4), 1, recorder)
    assert (folder / "killed").exists()
    assert sorted(recorder.ids()) == sorted(plan.runs)
    assert not leftovers(folder / "store")


def _save_for_two_seconds(is_ready: Any) -> None:
    """A worker whose checkpoints take longer than the time of a single run."""

    def save(*_: object) -> None:
        time.sleep(2.0)
        os._exit(0)

    signal.signal(signal.SIGTERM, save)
    is_ready.set()
    time.sleep(60.0)


@pytest.mark.parametrize(("stack", "exit_code"), [(1, -signal.SIGKILL), (64, 0)])
def test_workers_with_a_stack_have_more_time_to_save(stack: int, exit_code: int) -> None:
    context = multiprocessing.get_context("fork")
    is_ready = context.Event()
    process = context.Process(target=_save_for_two_seconds, args=(is_ready,))
    process.start()
    assert is_ready.wait(30.0)
    _stop_processes([process], shutdown_grace_seconds(WorkerConfig(Path("store"), stack=stack)))
    assert process.exitcode == exit_code


def test_the_time_to_save_grows_with_the_stack() -> None:
    """A worker that chooses the size of its stack may choose the largest."""
    seconds = [shutdown_grace_seconds(WorkerConfig(Path("store"), stack=stack)) for stack in (1, 8, 512, None)]
    assert seconds == sorted(seconds)
    assert seconds[0] == 1.2 and seconds[2] == seconds[3] > 50
