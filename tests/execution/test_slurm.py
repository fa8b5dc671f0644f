"""The Slurm executor, with submitit's local executor in place of Slurm: same bits, preemption, refusals."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit
from helpers import slow_loss
from helpers.command_line import call
from helpers.executors import criterion, wait_for
from helpers.faulty_disk import quick_folder
from helpers.small_studies import contents, facts, leftovers, same_table, small_plan, train_plan

from supermask.core.errors import SystemFailure, UserError
from supermask.execution import slurm
from supermask.execution.coordinator import ExecutionRequest, StudyInterrupted
from supermask.execution.remote import SESSIONS_DIR, RemoteSession, run_remote_job
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import WorkerConfig, WorkerError
from supermask.store import Store
from supermask.study.plan import Plan

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # From submitit's processes.
]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the current directory and can hold a user's modules."""
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(slurm, "RESULT_SECONDS", 1.0)
    with quick_folder() as path:
        monkeypatch.setattr(sys, "path", [*sys.path])
        with monkeypatch.context() as patch:
            patch.chdir(path)
            yield path


@pytest.fixture(scope="module", autouse=True)
def collect_processes() -> Iterator[None]:
    """Collect submitit's processes while ResourceWarnings are ignored, and not at the end of the session."""
    yield
    gc.collect()


class RecordingExecutor(submitit.LocalExecutor):
    """submitit's local executor; records its jobs."""

    jobs: list[Any] = []  # noqa: RUF012 (shared by all executors of a test)

    def submit(self, *arguments: Any, **keywords: Any) -> Any:
        RecordingExecutor.jobs.append(super().submit(*arguments, **keywords))
        return RecordingExecutor.jobs[-1]


def create_submitter(logs: Path, jobs: int, gpu: bool) -> submitit.LocalExecutor:
    RecordingExecutor.jobs = []
    return RecordingExecutor(logs, max_num_timeout=3)


def execute(plan: Plan, config: WorkerConfig, workers: int = 2, listener: Any = lambda *_: None) -> Scheduler:
    return slurm.run_plan(ExecutionRequest(plan, config, workers, listener), create_submitter)


def assert_same_as_local(plan: Plan, store: Path) -> None:
    """Check that the store is bit-identical to one of a worker in this process, without leftovers."""
    complete = store.with_name(f"{store.name}-here")
    train_plan(plan, complete)
    assert contents(store) == contents(complete)
    assert facts(store, plan) == facts(complete, plan)
    assert not leftovers(store)
    assert not [*(store / SESSIONS_DIR).iterdir()]


def test_jobs_hold_whole_chains_and_make_the_same_store(folder: Path) -> None:
    """One job per chain of three levels, with its dense run; every run is reported once."""
    plan = small_plan(seeds=2, levels=3)
    listener: list[str] = []
    scheduler = execute(plan, WorkerConfig(folder / "store"), 4, lambda _, task, __: listener.append(task.run.id))
    assert scheduler.status == dict.fromkeys(plan.runs, "finished")
    assert sorted(listener) == sorted(plan.runs)
    assert len(RecordingExecutor.jobs) == 2
    assert_same_as_local(plan, folder / "store")


def test_a_job_trains_its_chains_as_a_stack(folder: Path) -> None:
    """With the stacked engine: all dense runs in one job, then all chains in another."""
    plan = small_plan({"criterion": ["large_final", "random"]}, seeds=2, levels=2)
    listener: list[str] = []
    config = WorkerConfig(folder / "store", engine="stacked", stack=4)
    execute(plan, config, 1, lambda _, task, __: listener.append(task.run.id))
    assert sorted(listener) == sorted(plan.runs)
    assert len(RecordingExecutor.jobs) == 2
    train_plan(plan, folder / "alone")
    same_table(plan, folder / "store", folder / "alone")


def test_a_preempted_job_resumes_from_its_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preempted in training, the requeued job regenerates the initial state and resumes from the checkpoint."""
    body = """
    with open('scored', 'a') as file:
        file.write('x')
"""
    plan = small_plan(
        {"criterion": criterion(folder, body)}, levels=1, epochs=20, evaluate_every=10, loss=slow_loss.NAME
    )
    _, ticket = plan.runs
    saved = folder / "store" / "checkpoints" / ticket
    checkpoint_seen: list[bool] = []

    def preempt() -> None:
        wait_for((folder / "scored").exists)
        time.sleep(0.1)
        for pid in trainers(RecordingExecutor.jobs[-1]):
            os.kill(pid, signal.SIGUSR2)  # As Slurm does.
        wait_for(lambda: saved.exists() or Store(folder / "store").has(ticket))
        checkpoint_seen.append(saved.exists())

    thread = threading.Thread(target=preempt)
    with slow_loss.slow_folder(folder, monkeypatch):
        thread.start()
        execute(plan, WorkerConfig(folder / "store", checkpoint_seconds=1e9), 1)
        thread.join()
    assert checkpoint_seen == [True]
    assert (folder / "scored").read_text() == "x" * 4  # Two layers, twice.
    assert_same_as_local(plan, folder / "store")


def trainers(job: Any) -> list[int]:
    """Return the ids of processes whose parent is the job's controller."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rpartition(")")[2].split()[1] == job.job_id:
                pids.append(int(path.parent.name))
        except OSError:
            continue
    return pids


def test_a_job_preempted_before_training_is_requeued(folder: Path) -> None:
    delayed = slurm.SlurmTask(RemoteSession(WorkerConfig(folder / "store")).job([])).checkpoint()
    assert isinstance(delayed.function, slurm.SlurmTask)


def test_a_job_that_always_dies_ends_the_study_and_its_logs_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supermask.execution.coordinator.MAX_WORKER_CRASHES", 2)
    plan = small_plan({"criterion": criterion(folder, "    os.kill(os.getpid(), signal.SIGKILL)")}, levels=1)
    with pytest.raises(SystemFailure, match=rf"died 2 times while run {[*plan.runs][1]}.*logs are in (.*)\.$"):
        execute(plan, WorkerConfig(folder / "store"))
    (session_dir,) = (folder / "store" / SESSIONS_DIR).iterdir()
    assert [*session_dir.rglob("*.err")]
    broken = small_plan({"criterion": criterion(folder, "    raise KeyError('oops')")}, levels=1)
    with pytest.raises(UserError, match="KeyError: 'oops'"):
        execute(broken, WorkerConfig(folder / "store"))


def test_ctrl_c_ends_the_jobs_and_the_same_call_resumes(folder: Path) -> None:
    """A dense run of two chains is a job of its own; then one job per chain."""
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=2)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(StudyInterrupted) as interrupted:
        execute(plan, WorkerConfig(folder / "store"), 2, interrupt)
    assert interrupted.value.remaining == len(plan.runs) - 1
    assert len(RecordingExecutor.jobs) == 1
    for job in RecordingExecutor.jobs:
        job._process.wait(10)
    kept = Store(folder / "store").run_ids()
    listener: list[str] = []
    execute(plan, WorkerConfig(folder / "store"), 2, lambda _, task, __: listener.append(task.run.id))
    assert sorted(listener) == sorted(plan.runs.keys() - kept)
    assert len(RecordingExecutor.jobs) == 2
    assert_same_as_local(plan, folder / "store")


def test_no_job_outlives_a_study_that_another_process_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its chain is at the first level when another process commits all of it."""
    monkeypatch.setattr("supermask.execution.coordinator.STORE_POLL_SECONDS", 0.1)
    body = """
    if pathlib.Path('meanwhile').exists():
        pathlib.Path('busy').touch()
        time.sleep(600)
"""
    plan = small_plan({"criterion": criterion(folder, body)}, levels=2)
    train_plan(plan, folder / "whole")
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
    scheduler = execute(plan, WorkerConfig(folder / "store"), 1)
    thread.join()
    assert scheduler.status == dict.fromkeys(plan.runs, "finished")
    assert RecordingExecutor.jobs[-1]._process.wait(10) is not None
    assert not trainers(RecordingExecutor.jobs[-1])
    assert not [*(folder / "store" / SESSIONS_DIR).iterdir()]


# ------------------------------------------------------------------------------------------------------ node checks


def test_a_node_that_does_not_see_the_store_reports_it(folder: Path) -> None:
    session_dir = RemoteSession(WorkerConfig(folder / "store"))
    task = Scheduler(small_plan(levels=1), Store(folder / "store")).take()
    assert task is not None
    job = session_dir.job([[task]])
    session_dir.cancel()
    answer = run_remote_job(job)
    assert isinstance(answer, WorkerError) and answer.is_user_error
    assert "does not see the store" in answer.text and str(folder / "store") in answer.text


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("cluster", "expected_text"),
    [
        ("slurm:partitoin=gpu", "did you mean 'partition'"),
        ("slurm:partition", "slurm:partition has no value: write slurm:partition=VALUE"),
        ("slurm:", "there is no Slurm on this machine"),
        ("slurm:=", "NAME=VALUE"),
        ("slurm:time=soon", "is not a time limit"),
        ("slurm:time=0:00:00", "is not a time limit"),
        ("slurm:time=0", "is not a time limit"),
        ("slurm:time=60,time=90", "--cluster slurm has time twice: '60' and '90'"),
        ("slurm:partition=\x1b[31m", "is not an option"),
        ("slrum", "did you mean 'slurm'"),
        ("nowhere", "is not a cluster. Allowed: local"),
        ("slurm", "there is no Slurm on this machine"),
    ],
)
def test_an_invalid_cluster_is_refused_with_one_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, expected_text: str
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    status, out, err = call("run", "mask-criteria", "scale=digits", "--store", "store", "--cluster", cluster)
    assert (status, out) == (2, "")
    assert expected_text in err and err.count("\n") == 1 and "\x1b" not in err
    assert not (folder / "store").exists()


def test_a_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    _, _, err = call("run", "mask-criteria", "scale=digits", "--store", "store", "--cluster", "slurm")
    assert "pip install 'supermask[slurm]'" in err


def test_a_refusal_by_slurm_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_submitted_scripts_have_the_given_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an `sbatch` that only copies its script."""
    for name, text in (("sbatch", 'cat "$1" > given\necho Submitted batch job 12'), ("srun", "")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    options = slurm.parse_options("partition=gpu,time=1-02:00:01,mem=8G,qos=low,reservation=ours")
    submitter = slurm._create_submitter(options, folder / "%j", 2, True)
    job = RemoteSession(WorkerConfig(folder / "store")).job([])
    with submitter.batch():
        for _ in range(2):
            submitter.submit(slurm.SlurmTask(job))
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
    assert any(f"{sys.executable} -P -u -m submitit" in line for line in script)
