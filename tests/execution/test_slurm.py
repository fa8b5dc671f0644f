"""slurm: the same bits through submitit, whose local executor takes Slurm's place; preempted, a job goes on."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit
from helpers.command_line import call
from helpers.faulty_disk import quick_folder
from helpers.small_studies import carry_out, contents, facts, leftovers, same_table, small_plan

from supermask.core.errors import SystemFailure, UserError
from supermask.execution import slurm
from supermask.execution.coordinator import StudyInterrupted
from supermask.execution.remote import SESSIONS_DIR, RemoteError, RemoteSession, run_remote_job
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import WorkerConfig
from supermask.store import Store
from supermask.study.plan import Plan

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # submitit's processes


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with a user's modules in it."""
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(slurm, "RESULT_SECONDS", 1.0)
    with quick_folder() as path:
        monkeypatch.setattr(sys, "path", [*sys.path])
        with monkeypatch.context() as patch:
            patch.chdir(path)
            yield path
    # Here, where its warnings are not heard, and not at the end of all tests.
    gc.collect()


class Here(submitit.LocalExecutor):
    """submitit's local executor, which remembers its jobs."""

    jobs: list[Any] = []  # noqa: RUF012 (of all that are made in a test)

    def submit(self, *arguments: Any, **keywords: Any) -> Any:
        Here.jobs.append(super().submit(*arguments, **keywords))
        return Here.jobs[-1]


def here(logs: Path, jobs: int, gpu: bool) -> submitit.LocalExecutor:
    Here.jobs = []
    return Here(logs, max_num_timeout=3)


def through_submitit(plan: Plan, site: WorkerConfig, workers: int = 2, heard: Any = lambda *_: None) -> Scheduler:
    return slurm.run_plan(plan, site, workers, heard, submitting=here)


def criterion(folder: Path, body: str) -> str:
    """A user's own criterion: these statements, then the score of `large_final`."""
    name = f"slurm_criterion_{secrets.token_hex(4)}"
    text = f"import os, pathlib, signal, time\n\ndef score(layer, rng):\n{body}\n    return layer.w_final.abs()\n"
    (folder / f"{name}.py").write_text(text)
    return f"{name}:score"


def same_as_here(plan: Plan, store: Path) -> None:
    """Bit for bit what one worker in this process makes; and nothing is left lying about."""
    whole = store.with_name(f"{store.name}-here")
    carry_out(plan, whole)
    assert contents(store) == contents(whole)
    assert facts(store, plan) == facts(whole, plan)
    assert not leftovers(store)
    assert not [*(store / SESSIONS_DIR).iterdir()]


def test_jobs_make_the_same_store_and_are_lines_of_runs(folder: Path) -> None:
    """A dense run for each seed, then a job a chain: three levels each are one job; every run is heard of once."""
    plan = small_plan({"criterion": ["large_final", "random"]}, seeds=2, levels=3)
    heard: list[str] = []
    schedule = through_submitit(plan, WorkerConfig(folder / "store"), 4, lambda _, task, __: heard.append(task.run.id))
    assert schedule.status == dict.fromkeys(plan.runs, "finished")
    assert sorted(heard) == sorted(plan.runs)
    assert len(Here.jobs) == 2 + 4
    same_as_here(plan, folder / "store")


def test_a_job_trains_its_lines_as_a_stack(folder: Path) -> None:
    """Where the stacked engine was chosen: all seeds' dense runs in one job, then all chains."""
    plan = small_plan({"criterion": ["large_final", "random"]}, seeds=2, levels=2)
    heard: list[str] = []
    site = WorkerConfig(folder / "store", engine="stacked", stack=4)
    through_submitit(plan, site, 1, lambda _, task, __: heard.append(task.run.id))
    assert sorted(heard) == sorted(plan.runs)
    assert len(Here.jobs) == 2
    carry_out(plan, folder / "alone")
    same_table(plan, folder / "store", folder / "alone")


def test_a_preempted_job_goes_on_from_its_checkpoint(folder: Path) -> None:
    """Preempted in training; queued again, it makes the start again and goes on from what it had saved."""
    body = """
    with open('scored', 'a') as file:
        file.write('x')
"""
    plan = small_plan({"criterion": criterion(folder, body)}, levels=1, epochs=200, evaluate_every=100)
    _, ticket = plan.runs
    saved = folder / "store" / "checkpoints" / ticket
    seen: list[bool] = []

    def preempt() -> None:
        wait_for((folder / "scored").exists)
        time.sleep(0.2)
        for pid in trainers(Here.jobs[-1]):
            os.kill(pid, signal.SIGUSR2)  # as Slurm does
        wait_for(lambda: saved.exists() or Store(folder / "store").has(ticket))
        seen.append(saved.exists())

    thread = threading.Thread(target=preempt)
    thread.start()
    through_submitit(plan, WorkerConfig(folder / "store", checkpoint_seconds=1e9), 1)
    thread.join()
    assert seen == [True]
    assert (folder / "scored").read_text() == "x" * 4  # two layers, twice
    same_as_here(plan, folder / "store")


def wait_for(what: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def trainers(job: Any) -> list[int]:
    """Processes whose parent is the job's controller."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rpartition(")")[2].split()[1] == job.job_id:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_job_preempted_before_it_begins_is_queued_again(folder: Path) -> None:
    delayed = slurm.SlurmTask(RemoteSession(WorkerConfig(folder / "store")).job([])).checkpoint()
    assert isinstance(delayed.function, slurm.SlurmTask)


def test_a_job_that_always_dies_is_given_up_and_its_logs_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supermask.execution.coordinator.MAX_WORKER_CRASHES", 2)
    plan = small_plan({"criterion": criterion(folder, "    os.kill(os.getpid(), signal.SIGKILL)")}, levels=1)
    with pytest.raises(SystemFailure, match=rf"died 2 times while run {[*plan.runs][1]}.*logs are in (.*)\.$"):
        through_submitit(plan, WorkerConfig(folder / "store"))
    (order,) = (folder / "store" / SESSIONS_DIR).iterdir()
    assert [*order.rglob("*.err")]
    broken = small_plan({"criterion": criterion(folder, "    raise KeyError('oops')")}, levels=1)
    with pytest.raises(UserError, match="KeyError: 'oops'"):
        through_submitit(broken, WorkerConfig(folder / "store"))


def test_ctrl_c_ends_the_jobs_and_the_same_call_goes_on(folder: Path) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=2)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(StudyInterrupted) as stopped:
        through_submitit(plan, WorkerConfig(folder / "store"), 2, interrupt)
    assert stopped.value.remaining == len(plan.runs) - 1
    for job in Here.jobs:
        job._process.wait(10)
    kept = Store(folder / "store").run_ids()
    heard: list[str] = []
    through_submitit(plan, WorkerConfig(folder / "store"), 2, lambda _, task, __: heard.append(task.run.id))
    assert sorted(heard) == sorted(plan.runs.keys() - kept)
    same_as_here(plan, folder / "store")


def test_no_job_goes_on_at_what_another_process_has_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line is in the middle of its first level when somebody else commits all of it."""
    monkeypatch.setattr("supermask.execution.coordinator.STORE_POLL_SECONDS", 0.1)
    body = """
    if pathlib.Path('meanwhile').exists():
        pathlib.Path('busy').touch()
        time.sleep(600)
"""
    plan = small_plan({"criterion": criterion(folder, body)}, levels=2)
    carry_out(plan, folder / "whole")
    (folder / "meanwhile").touch()

    def finish() -> None:
        wait_for((folder / "busy").exists)
        for run_id in plan.runs:
            if not Store(folder / "store").has(run_id):
                place = folder / "store" / "runs" / run_id[:2]
                place.mkdir(parents=True, exist_ok=True)
                (folder / "whole" / "runs" / run_id[:2] / run_id).rename(place / run_id)

    thread = threading.Thread(target=finish)
    thread.start()
    schedule = through_submitit(plan, WorkerConfig(folder / "store"), 1)
    thread.join()
    assert schedule.status == dict.fromkeys(plan.runs, "finished")
    assert Here.jobs[-1]._process.wait(10) is not None
    assert not trainers(Here.jobs[-1])
    assert not [*(folder / "store" / SESSIONS_DIR).iterdir()]


# ------------------------------------------------------------------------------------------------- what nodes check


def test_a_node_that_does_not_see_the_store_says_so(folder: Path) -> None:
    order = RemoteSession(WorkerConfig(folder / "store"))
    task = Scheduler(small_plan(levels=1), Store(folder / "store")).take()
    assert task is not None
    errand = order.job([[task]])
    order.cancel()
    answer = run_remote_job(errand)
    assert isinstance(answer, RemoteError) and answer.is_user_error
    assert "does not see the store" in answer.text and str(folder / "store") in answer.text


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        ("slurm:partitoin=gpu", "did you mean 'partition'"),
        ("slurm:partition", "slurm:partition has no value: it is written slurm:partition=VALUE"),
        ("slurm:", "there is no Slurm on this machine"),
        ("slurm:=", "NAME=VALUE"),
        ("slurm:time=soon", "is no time limit"),
        ("slurm:time=0:00:00", "is no time limit"),
        ("slurm:partition=\x1b[31m", "is no option"),
        ("slrum", "did you mean 'slurm'"),
        ("nowhere", "is not a cluster. Allowed: local"),
        ("slurm", "there is no Slurm on this machine"),
    ],
)
def test_what_is_no_cluster_is_one_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, says: str
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    status, out, err = call("run", "mask-criteria", "scale=digits", "--store", "store", "--cluster", cluster)
    assert (status, out) == (2, "")
    assert says in err and err.count("\n") == 1 and "\x1b" not in err
    assert not (folder / "store").exists()


def test_without_the_extra_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    _, _, err = call("run", "mask-criteria", "scale=digits", "--store", "store", "--cluster", "slurm")
    assert "pip install 'supermask[slurm]'" in err


def test_what_slurm_refuses_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "sbatch: error: invalid partition specified: nowhere"
    text = f"echo 'sbatch: error: see above' >&2\necho '{refusal}' >&2\nexit 1"
    for name, body in (("sbatch", text), ("srun", "")):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    words = ("run", "mask-criteria", "scale=digits", "--store", "store", "--cluster", "slurm:partition=nowhere")
    status, _, err = call(*words)
    assert (status, err) == (2, f"supermask: Slurm refused the jobs: {refusal}\n")
    assert not [*(folder / "store" / SESSIONS_DIR).iterdir()]


def test_what_is_submitted_says_what_was_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `sbatch` that only writes down what it is given."""
    for name, text in (("sbatch", 'cat "$1" > given\necho Submitted batch job 12'), ("srun", "")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    given = slurm.parse_options("partition=gpu,time=1-02:00:01,mem=8G,qos=low,reservation=ours")
    submitter = slurm._submitting(given, folder / "%j", 2, True)
    errand = RemoteSession(WorkerConfig(folder / "store")).job([])
    with submitter.batch():
        for _ in range(2):
            submitter.submit(slurm.SlurmTask(errand))
    script = (folder / "given").read_text().splitlines()
    for line in (
        "--partition=gpu",
        "--time=1561",
        "--mem=8G",
        "--qos=low",
        "--reservation=ours",
        "--gpus-per-node=1",
        "--cpus-per-task=1",
        "--array=0-1%2",
    ):
        assert f"#SBATCH {line}" in script
    assert any(line.startswith("#SBATCH --signal=USR2") for line in script)
