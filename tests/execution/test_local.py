"""The local executor: workers that die, are stopped, are orphaned or find damage; the store ends up the same."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.faulty_disk import quick_folder
from helpers.small_studies import contents, facts, leftovers, same_table, small_plan, train_plan

from supermask.core.errors import SystemFailure, UserError
from supermask.execution.coordinator import ExecutionRequest, shutdown_grace_seconds
from supermask.execution.local import MAX_WORKER_CRASHES, StudyInterrupted, _stop_processes, run_plan
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.store import Store
from supermask.study import load_study
from supermask.study.plan import Plan, make_plan

PROC = Path("/proc/self/stat")
needs_proc = pytest.mark.skipif(not PROC.exists(), reason="looks for processes in /proc")

TWO_CHAINS = {"criterion": ["large_final", "random"]}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the current directory and can hold a user's modules."""
    with quick_folder() as path:
        monkeypatch.setattr(sys, "path", [*sys.path])
        with monkeypatch.context() as patch:
            patch.chdir(path)
            yield path


class Recorder:
    """A listener that records results and calls `then` after each."""

    def __init__(self, then: Callable[[int, Task], None] = lambda number, task: None) -> None:
        self.then = then
        self.results: list[TaskResult] = []

    def __call__(self, scheduler: Scheduler, task: Task, result: TaskResult) -> None:
        self.results.append(result)
        self.then(len(self.results), task)

    def ids(self) -> list[str]:
        """Return the ids of runs that ended."""
        return [result.run_id for result in self.results if result.status != "not_started"]


def execute(
    plan: Plan, config: WorkerConfig, workers: int, recorder: Recorder, start_method: str = "forkserver", **options: Any
) -> Scheduler:
    """Run a plan with the local executor."""
    return run_plan(ExecutionRequest(plan, config, workers, recorder, **options), start_method)


MODULES = itertools.count()


def criterion(folder: Path, body: str) -> str:
    """Write a user's criterion: these statements, then the score of `large_final`. Return its import path."""
    name = f"local_criterion_{next(MODULES)}"
    body = textwrap.indent(textwrap.dedent(body), "    ")
    text = f"import os, pathlib, signal, time\n\ndef score(layer, rng):\n{body}\n    return layer.w_final.abs()\n"
    (folder / f"{name}.py").write_text(text)
    return f"{name}:score"


def children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


# ----------------------------------------------------------------------------------------------------- reproducibility


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


def test_a_users_own_criterion_works_in_worker_processes(folder: Path) -> None:
    plan = small_plan({"criterion": criterion(folder, "pathlib.Path(f'asked-{os.getpid()}').touch()")}, seeds=2)
    execute(plan, WorkerConfig(folder / "store"), 2, Recorder())
    assert not (folder / f"asked-{os.getpid()}").exists()
    assert list(folder.glob("asked-*"))
    twin = small_plan({"criterion": "large_final"}, seeds=2)
    train_plan(twin, folder / "twin")
    assert sorted(map(str, contents(folder / "store").values())) == sorted(map(str, contents(folder / "twin").values()))


@pytest.mark.parametrize(
    ("body", "expected_text"),
    [
        ("return layer.w_final * float('nan')", "is NaN"),
        ("return layer.w_final.sum()", "one score per weight"),
        ("raise KeyError('oops')", r"failed at line 4 of .*local_criterion_\d+\.py: KeyError: 'oops'"),
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


def test_a_disk_that_damages_one_run_repeatedly_ends_the_study(folder: Path) -> None:
    plan = small_plan(levels=1)
    dense = next(iter(plan.runs))
    recorder = Recorder(lambda number, task: flip(folder / "store", dense) if task.run.id == dense else None)
    with pytest.raises(
        SystemFailure, match=f"{dense} in the store is damaged.*{MAX_WORKER_CRASHES} times: is the disk"
    ):
        execute(plan, WorkerConfig(folder / "store"), 1, recorder)
    assert recorder.ids() == [dense] * MAX_WORKER_CRASHES


# ------------------------------------------------------------------------------------------------------------- stopping


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


def processes_in_group(group: int) -> list[str]:
    """Return the names of the living processes of a process group."""
    names = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, _, process_group = rest.split()[:3]
        if int(process_group) == group and state not in "ZX":
            names.append(name)
    return names


def is_group_gone_within(seconds: float, group: int) -> bool:
    """Wait until no process of the group is left; return False after `seconds`."""
    end = time.monotonic() + seconds
    while processes_in_group(group) and time.monotonic() < end:
        time.sleep(0.02)
    return not processes_in_group(group)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait up to a minute for a condition: imports take long on a busy machine."""
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def start_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start Python in a process group of its own; kill the whole group at the end."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, *arguments], text=True, start_new_session=True, stdout=pipe, stderr=pipe
    )
    try:
        yield process
    finally:
        if processes_in_group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


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
        wait_for(lambda: len(list(folder.glob("busy-*"))) == 2, process)
        assert len(processes_in_group(process.pid)) >= 3
        process.kill()
        assert is_group_gone_within(3.0, process.pid), processes_in_group(process.pid)


STUDY = """
network: fc-20
seeds: 2
train: {epochs: 40, evaluate_every: 10}
prune: {levels: 1}
treatments: [{criterion: large_final}]
"""


@pytest.mark.slow
@needs_proc
def test_ctrl_c_ends_the_command_within_two_seconds_and_it_can_be_resumed(folder: Path) -> None:
    (folder / "study.yaml").write_text(STUDY)
    command = (
        "-m",
        "supermask",
        "run",
        "study.yaml",
        "--store",
        "store",
        "--workers",
        "2",
        "--engine",
        "reference",
    )
    with start_process(*command) as process:
        # Ctrl-C in a terminal goes to every process of the group. By now at least one run is in training.
        wait_for(lambda: Store(folder / "store").run_ids(), process)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=2.0) == 130
        # The fork server ends by itself when it notices that its parent is gone.
        assert is_group_gone_within(3.0, process.pid), processes_in_group(process.pid)
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
def test_ctrl_c_during_the_start_of_workers_raises_study_interrupted(folder: Path) -> None:
    (folder / "study.yaml").write_text(STUDY)
    (folder / "script.py").write_text(SCRIPT)
    with start_process("script.py") as process:
        wait_for(lambda: any("multiprocessing.forkserver" in line for line in command_lines(process.pid)), process)
        time.sleep(0.3)  # It is importing torch.
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 1
    assert (
        err.count("Traceback") == 1 and "StudyInterrupted: 4" in err
    )  # The script's own; no other process prints anything.


def command_lines(group: int) -> list[str]:
    """Return the command lines of the living processes of a group."""
    names = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == group:
                names.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return names


@pytest.mark.slow
def test_stacks_in_worker_processes_give_the_reference_results(folder: Path) -> None:
    """Two workers with stacks of up to three chains; every result is reported once."""
    plan = small_plan(TWO_CHAINS, seeds=[0, 1, 2], levels=2)
    recorder, start_process = Recorder(), Counter[str]()
    config = WorkerConfig(folder / "store", engine="stacked", stack=3)
    scheduler = execute(
        plan, config, 2, recorder, start_method="fork", on_start=lambda task: start_process.update([task.run.id])
    )
    assert scheduler.status == dict.fromkeys(plan.runs, "finished")
    assert sorted(recorder.ids()) == sorted(plan.runs)
    assert set(start_process.values()) == {1}
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
    scheduler = execute(plan, config, 1, recorder, start_method="fork", measuring_workers=1)
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
