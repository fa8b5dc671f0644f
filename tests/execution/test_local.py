"""local: worker processes that die, are stopped, are orphaned, find damage; the store is the same in the end."""

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
from helpers.small_studies import carry_out, contents, facts, leftovers, same_table, small_plan

from supermask.core.errors import SystemFailure, UserError
from supermask.execution.local import MAX_WORKER_CRASHES, StudyInterrupted, run_plan
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.store import Store
from supermask.study import load_study
from supermask.study.plan import make_plan

PROC = Path("/proc/self/stat")
needs_proc = pytest.mark.skipif(not PROC.exists(), reason="looks for processes in /proc")

TWO_CHAINS = {"criterion": ["large_final", "random"]}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with a user's modules in it."""
    with quick_folder() as path:
        monkeypatch.setattr(sys, "path", [*sys.path])
        with monkeypatch.context() as patch:
            patch.chdir(path)
            yield path


class Heard:
    """A listener that remembers, and that can do something after the n-th task."""

    def __init__(self, then: Callable[[int, Task], None] = lambda number, task: None) -> None:
        self.then = then
        self.results: list[TaskResult] = []

    def __call__(self, schedule: Scheduler, task: Task, result: TaskResult) -> None:
        self.results.append(result)
        self.then(len(self.results), task)

    def ids(self) -> list[str]:
        """Of the runs that came to an end."""
        return [result.run_id for result in self.results if result.status != "not_started"]


MODULES = itertools.count()


def criterion(folder: Path, body: str) -> str:
    """A user's own criterion: these statements, then the score of `large_final`."""
    name = f"local_criterion_{next(MODULES)}"
    body = textwrap.indent(textwrap.dedent(body), "    ")
    text = f"import os, pathlib, signal, time\n\ndef score(layer, rng):\n{body}\n    return layer.w_final.abs()\n"
    (folder / f"{name}.py").write_text(text)
    return f"{name}:score"


def children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


# --------------------------------------------------------------------------------------------------- the same each time


def test_one_two_and_three_workers_make_the_same_store(folder: Path) -> None:
    plan = small_plan(TWO_CHAINS, {"name": "late", "rewind_to": 5, "criterion": "snip"}, seeds=2, levels=2)
    carry_out(plan, folder / "0")
    for workers in (1, 2, 3):
        heard = Heard()
        schedule = run_plan(plan, WorkerConfig(folder / str(workers)), workers, heard)
        assert schedule.status == dict.fromkeys(plan.runs, "finished")
        assert sorted(heard.ids()) == sorted(plan.runs)
        assert contents(folder / str(workers)) == contents(folder / "0")
        assert facts(folder / str(workers), plan) == facts(folder / "0", plan)
        assert not leftovers(folder / str(workers))
        assert not children()


def test_nothing_to_do_starts_no_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(levels=1)
    carry_out(plan, folder / "store")
    monkeypatch.setattr("supermask.execution.local.ProcessPoolExecutor", None)
    heard = Heard()
    run_plan(plan, WorkerConfig(folder / "store"), 2, heard, keep="masks")
    assert not heard.results
    assert not any(Store(folder / "store").has_weights(run_id) for run_id in plan.runs)


def test_a_users_own_criterion_works_in_worker_processes(folder: Path) -> None:
    plan = small_plan({"criterion": criterion(folder, "pathlib.Path(f'asked-{os.getpid()}').touch()")}, seeds=2)
    run_plan(plan, WorkerConfig(folder / "store"), 2, Heard())
    assert not (folder / f"asked-{os.getpid()}").exists()
    assert list(folder.glob("asked-*"))
    twin = small_plan({"criterion": "large_final"}, seeds=2)
    carry_out(twin, folder / "twin")
    assert sorted(map(str, contents(folder / "store").values())) == sorted(map(str, contents(folder / "twin").values()))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return layer.w_final * float('nan')", "is NaN"),
        ("return layer.w_final.sum()", "one score a weight"),
        ("raise KeyError('oops')", r"failed at line 4 of .*local_criterion_\d+\.py: KeyError: 'oops'"),
    ],
)
def test_a_criterion_that_fails_ends_the_study_with_one_message(folder: Path, body: str, says: str) -> None:
    plan = small_plan({"criterion": criterion(folder, body)}, {"criterion": "large_final"}, levels=2)
    with pytest.raises(UserError, match=says) as error:
        run_plan(plan, WorkerConfig(folder / "store"), 2, Heard())
    assert "Traceback" not in str(error.value)
    assert not children()
    good = small_plan({"criterion": "large_final"}, levels=2)
    kept = Store(folder / "store").run_ids()
    assert next(iter(plan.runs)) in kept and kept <= good.runs.keys()
    carry_out(good, folder / "good")
    run_plan(good, WorkerConfig(folder / "store"), 2, Heard())
    assert contents(folder / "store") == contents(folder / "good")
    assert not leftovers(folder / "store")


# ----------------------------------------------------------------------------------------------------- workers that die


def test_workers_killed_in_the_middle_are_replaced_and_their_runs_tried_again(folder: Path) -> None:
    """After a task every worker is killed, whatever it is doing: one is in training, the other has just ended."""
    plan = small_plan(TWO_CHAINS, seeds=2, levels=2, epochs=10)
    carry_out(plan, folder / "whole")
    seen: set[int | None] = set()

    def kill(number: int, task: Task) -> None:
        seen.update(children())
        if number in (1, 4):
            for process in multiprocessing.active_children():
                process.kill()
            time.sleep(0.3)  # so that it is known before the next task is given to one of them

    heard = Heard(kill)
    schedule = run_plan(plan, WorkerConfig(folder / "killed", checkpoint_seconds=0.0), 2, heard)
    assert sorted(heard.ids()) == sorted(plan.runs)
    assert {*schedule.status.values()} == {"finished"}
    assert len(seen) >= 4
    assert contents(folder / "killed") == contents(folder / "whole")
    assert facts(folder / "killed", plan) == facts(folder / "whole", plan)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_run_whose_worker_is_killed_once_is_tried_again(folder: Path, name: str) -> None:
    """After SIGTERM, from the checkpoint that the worker has saved before it ended."""
    body = f"""
        killed = pathlib.Path('killed')
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.{name})
    """
    plan = small_plan({"criterion": criterion(folder, body)}, {"criterion": "random"}, levels=2)
    schedule = run_plan(plan, WorkerConfig(folder / "killed"), 2, Heard())
    assert {*schedule.status.values()} == {"finished"}
    carry_out(plan, folder / "whole")
    assert contents(folder / "killed") == contents(folder / "whole")


def test_a_death_does_not_disturb_the_other_workers(folder: Path) -> None:
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
    schedule = run_plan(plan, WorkerConfig(folder / "store"), 2, Heard())
    assert {*schedule.status.values()} == {"finished"}
    assert (folder / "busy").read_text() == "x" * 2  # once for each layer


def test_a_run_that_always_kills_its_worker_is_given_up_and_named(folder: Path) -> None:
    deadly_body = """
        with open('deaths', 'a') as file:
            file.write('x')
        os.kill(os.getpid(), signal.SIGKILL)
    """
    beside = {"criterion": "random"}
    plan = small_plan(beside, {"criterion": criterion(folder, deadly_body)}, levels=1)
    dense, _, deadly = plan.runs
    with pytest.raises(SystemFailure, match=f"died {MAX_WORKER_CRASHES} times while run {deadly} .seed 0, level 1."):
        run_plan(plan, WorkerConfig(folder / "store"), 2, Heard())
    assert (folder / "deaths").read_text() == "x" * MAX_WORKER_CRASHES
    assert not children()
    good = small_plan(beside, levels=1)
    assert {dense} <= Store(folder / "store").run_ids() <= good.runs.keys()
    run_plan(good, WorkerConfig(folder / "store"), 2, Heard())
    carry_out(good, folder / "whole")
    assert contents(folder / "store") == contents(folder / "whole")
    assert not leftovers(folder / "store")


def test_a_full_disk_stops_the_study_and_loses_nothing(folder: Path) -> None:
    """The second level's commit, in a worker process, finds no room; then there is room again."""
    body = """
        import errno
        import supermask.store.files.disk
        def full(disk, descriptor, data):
            raise OSError(errno.ENOSPC, 'No space left on device')
        if pathlib.Path('full').exists() and not layer.alive.all():
            supermask.store.disk.Disk.write = full
    """
    plan = small_plan({"criterion": criterion(folder, body)}, levels=3)
    carry_out(plan, folder / "whole")
    (folder / "full").touch()
    with pytest.raises(SystemFailure, match=r"the disk is full. Free some space"):
        run_plan(plan, WorkerConfig(folder / "store"), 2, Heard())
    whole, kept = contents(folder / "whole"), contents(folder / "store")
    assert kept == {run_id: whole[run_id] for run_id in list(plan.runs)[:2]}
    (folder / "full").unlink()
    heard = Heard()
    run_plan(plan, WorkerConfig(folder / "store"), 2, heard)
    assert heard.ids() == list(plan.runs)[2:]
    assert contents(folder / "store") == whole
    assert not leftovers(folder / "store")


# --------------------------------------------------------------------------------------------------------------- damage


def flip(store: Path, run_id: str) -> None:
    """Damages one bit of a run's weights."""
    path = store / "runs" / run_id[:2] / run_id / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(data)


def test_a_damaged_finished_parent_is_set_aside_said_and_computed_again(folder: Path) -> None:
    small, plan = (small_plan(TWO_CHAINS, seeds=2, levels=levels) for levels in (2, 3))
    carry_out(plan, folder / "whole")
    carry_out(small, folder / "store")
    damaged = next(run for run in plan.runs.values() if run.level == 2)
    flip(folder / "store", damaged.id)
    heard = Heard()
    schedule = run_plan(plan, WorkerConfig(folder / "store"), 2, heard)
    (said,) = {result.message for result in heard.results if result.status == "not_started"}
    assert damaged.id in said and "set aside" in said and said in schedule.damaged
    assert sorted(heard.ids()) == sorted([damaged.id, *(plan.runs.keys() - small.runs.keys())])
    assert [path.name[:32] for path in (folder / "store" / "quarantine").iterdir()] == [damaged.id]
    assert contents(folder / "store") == contents(folder / "whole")


def test_a_disk_that_damages_the_same_run_again_and_again_ends_the_study(folder: Path) -> None:
    plan = small_plan(levels=1)
    dense = next(iter(plan.runs))
    heard = Heard(lambda number, task: flip(folder / "store", dense) if task.run.id == dense else None)
    with pytest.raises(
        SystemFailure, match=f"{dense} in the store is damaged.*{MAX_WORKER_CRASHES} times: is the disk"
    ):
        run_plan(plan, WorkerConfig(folder / "store"), 1, heard)
    assert heard.ids() == [dense] * MAX_WORKER_CRASHES


# ------------------------------------------------------------------------------------------------------------- stopping


def test_ctrl_c_stops_and_the_same_call_goes_on(folder: Path) -> None:
    """And only the study's own workers are ended."""
    plan = small_plan(TWO_CHAINS, seeds=2, levels=2, epochs=10)
    carry_out(plan, folder / "whole")

    def interrupt(number: int, task: Task) -> None:
        if number == 2:
            raise KeyboardInterrupt

    somebody = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(600,))
    somebody.start()
    try:
        with pytest.raises(StudyInterrupted) as stopped, through_a_context_manager():
            run_plan(plan, WorkerConfig(folder / "store"), 2, Heard(interrupt))
        assert children() == {somebody.pid}
    finally:
        somebody.kill()
        somebody.join()
    kept = contents(folder / "store")
    assert stopped.value.remaining == len(plan.runs) - len(kept)
    assert len(kept) >= 2
    heard = Heard()
    run_plan(plan, WorkerConfig(folder / "store"), 2, heard)
    assert sorted(heard.ids()) == sorted(plan.runs.keys() - kept.keys())
    assert contents(folder / "store") == contents(folder / "whole")
    assert not leftovers(folder / "store")


@contextmanager
def through_a_context_manager() -> Iterator[None]:
    """As a progress display is one: it sets attributes of the exceptions that pass."""
    yield


def in_group(group: int) -> list[str]:
    """Names of the living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(name)
    return found


def gone_within(seconds: float, group: int) -> bool:
    """Waits until no process of the group is left."""
    end = time.monotonic() + seconds
    while in_group(group) and time.monotonic() < end:
        time.sleep(0.02)
    return not in_group(group)


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Until something is there; a minute allows for a busy machine's imports."""
    end = time.monotonic() + 60
    while not what():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, of which nothing is left at the end of the test."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, *arguments], text=True, start_new_session=True, stdout=pipe, stderr=pipe
    )
    try:
        yield process
    finally:
        if in_group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


SCRIPT = """
import sys
from pathlib import Path
from supermask.execution.local import run_plan
from supermask.execution.tasks import Site
from supermask.study.plan import make_plan
from supermask.study import load_study
if __name__ == "__main__":
    run_plan(make_plan(load_study("study.yaml")), Site(Path("store")), 2, lambda *_: None)
"""


@needs_proc
def test_no_worker_outlives_a_main_process_that_is_killed(folder: Path) -> None:
    """Not even workers that are busy for ten minutes."""
    name = criterion(folder, "pathlib.Path(f'busy-{os.getpid()}').touch(); time.sleep(600)")
    (folder / "study.yaml").write_text(
        f"network: fc-20\nseeds: 2\ntrain: {{epochs: 1}}\ntreatments: [{{criterion: {name}}}]"
    )
    (folder / "script.py").write_text(SCRIPT)
    with started("script.py") as process:
        wait_for(lambda: len(list(folder.glob("busy-*"))) == 2, process)
        assert len(in_group(process.pid)) >= 3
        process.kill()
        assert gone_within(3.0, process.pid), in_group(process.pid)


STUDY = """
network: fc-20
seeds: 2
train: {epochs: 40, evaluate_every: 10}
prune: {levels: 1}
treatments: [{criterion: large_final}]
"""


@needs_proc
def test_ctrl_c_ends_the_command_within_two_seconds_and_it_goes_on_later(folder: Path) -> None:
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
    with started(*command) as process:
        # Ctrl-C at a terminal goes to every process of the group. By then at least one run is half done.
        wait_for(lambda: Store(folder / "store").run_ids(), process)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=2.0) == 130
        # The server that workers are forked from ends by itself, when it has seen that nobody is left.
        assert gone_within(3.0, process.pid), in_group(process.pid)
        out, err = process.communicate()
    assert "the same command resumes" in out + err
    assert "Traceback" not in out + err and "KeyboardInterrupt" not in out + err
    kept = Store(folder / "store").run_ids()
    assert 1 <= len(kept) < 4
    assert list((folder / "store" / "checkpoints").iterdir())
    plan = make_plan(load_study(folder / "study.yaml"))
    heard = Heard()
    run_plan(plan, WorkerConfig(folder / "store"), 2, heard)
    assert sorted(heard.ids()) == sorted(plan.runs.keys() - kept)
    carry_out(plan, folder / "whole")
    assert contents(folder / "store") == contents(folder / "whole")
    assert not leftovers(folder / "store")


@needs_proc
def test_ctrl_c_while_workers_are_still_being_started_says_the_same(folder: Path) -> None:
    (folder / "study.yaml").write_text(STUDY)
    (folder / "script.py").write_text(SCRIPT)
    with started("script.py") as process:
        wait_for(lambda: any("multiprocessing.forkserver" in line for line in command_lines(process.pid)), process)
        time.sleep(0.3)  # it imports torch, at the very least
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.count("Traceback") == 1 and "Stopped: 4" in err  # the script's own; no other process says anything


def command_lines(group: int) -> list[str]:
    """Of the living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == group:
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_stacks_through_worker_processes(folder: Path) -> None:
    """Two workers, stacks of up to three lines, each to its end: the results are the reference's, each told of once."""
    plan = small_plan(TWO_CHAINS, seeds=[0, 1, 2], levels=2)
    heard, started = Heard(), Counter[str]()
    site = WorkerConfig(folder / "store", engine="stacked", stack=3)
    schedule = run_plan(plan, site, 2, heard, start_method="fork", starting=lambda task: started.update([task.run.id]))
    assert schedule.status == dict.fromkeys(plan.runs, "finished")
    assert sorted(heard.ids()) == sorted(plan.runs)
    assert set(started.values()) == {1}
    assert {one["engine"] for one in facts(folder / "store", plan).values()} == {"stacked"}
    carry_out(plan, folder / "alone", engine="reference")
    same_table(plan, folder / "store", folder / "alone")
    carry_out(plan, folder / "sparse", engine="sparse")
    same_table(plan, folder / "sparse", folder / "alone")
    assert not leftovers(folder / "store")


def test_of_a_stack_whose_worker_dies_nothing_that_ended_is_trained_again(folder: Path) -> None:
    """Killed at its second level, once."""
    body = """
        if not layer.alive.all() and not pathlib.Path('killed').exists():
            pathlib.Path('killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    plan = small_plan({"criterion": [criterion(folder, body), "random"]}, seeds=[0, 1], levels=2)
    heard = Heard()
    run_plan(plan, WorkerConfig(folder / "store", engine="stacked", stack=4), 1, heard)
    assert (folder / "killed").exists()
    assert sorted(heard.ids()) == sorted(plan.runs)
    assert not leftovers(folder / "store")
