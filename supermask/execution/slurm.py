"""Runs as jobs of Slurm, through submitit: arrays of lines of ready runs; a job that is preempted is queued again."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from supermask.core.errors import SystemFailure, UserError, did_you_mean, quote, sanitize
from supermask.execution.coordinator import Assignment, TaskListener, WorkerDied, open_coordinator
from supermask.execution.remote import (
    RemoteError,
    RemoteJob,
    RemoteResult,
    RemoteSession,
    remote_session,
    run_remote_job,
)
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.study.plan import RunGraph

WORKERS = 64
"""Jobs at once, where nothing is said."""

POLL_SECONDS = 1.0
"""Between two looks at the store and at the jobs."""

STOP_SECONDS = 1.2
"""How long jobs have, when they are to stop, to save a checkpoint."""

SAVE_SECONDS = 30.0
"""How long a preempted one has; Slurm gives it 90."""

RESULT_SECONDS = 15.0
"""How long a network file system may take to show the result of a job that is over; then it has died."""

MAX_REQUEUES = 1_000
"""How often a job may run out of its time and be queued again: a line of levels may be longer than any time limit."""

OPTIONS = ("partition", "time", "account", "qos", "constraint", "reservation", "mem", "exclude", "nodelist")
"""Of `sbatch`, in its words."""

SubmitFunction = Callable[[Path, int, bool], Any]
"""From a folder, how many jobs may run at once, and whether each needs a GPU, to a submitit executor."""


def parse_options(text: str) -> dict[str, str]:
    """`partition=gpu,time=4:00:00` as a dict. Raises UserError for what is not so, or not an option."""
    found: dict[str, str] = {}
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        if name in OPTIONS and not value:
            raise UserError(f"--cluster slurm:{name} has no value: it is written slurm:{name}=VALUE.")
        if not equals or not value or name not in OPTIONS or not value.isprintable():
            near = did_you_mean(name, OPTIONS) or "."
            raise UserError(
                f"{quote(part)} is no option of --cluster slurm{near} They are written slurm:NAME=VALUE,NAME=VALUE; "
                f"allowed: {', '.join(OPTIONS)}."
            )
        found[name] = value
    _minutes(found.get("time", "60"))
    return found


def _minutes(time_limit: str) -> int:
    """Of Slurm's `MINUTES`, `H:MM:SS` or `D-HH:MM:SS`, rounded up."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d+):(\d+))|(\d+)", time_limit, re.ASCII)
    if match is None or not (match[5] or int(match[2] + match[3] + match[4] + (match[1] or ""))):
        raise UserError(f"time={quote(time_limit)} is no time limit: give minutes, H:MM:SS or D-HH:MM:SS.")
    if match[5]:
        return int(match[5])
    return int(match[1] or 0) * 1440 + int(match[2]) * 60 + int(match[3]) + (int(match[4]) > 0)


def make_executor(text: str) -> Callable[..., Scheduler]:
    """`run_plan` with these options. Raises UserError where there is no submitit, or no Slurm."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(
            "--cluster slurm needs submitit, which is not installed: pip install 'supermask[slurm]'"
        ) from None
    if shutil.which("sbatch") is None:
        raise UserError("there is no Slurm on this machine (no `sbatch`): give the command on a login node.")
    return partial(run_plan, submitting=partial(_submitting, parse_options(text)))


def _submitting(given: Mapping[str, str], folder: Path, jobs: int, gpu: bool) -> Any:
    import submitit

    parameters: dict[str, Any] = {"cpus_per_task": 1, "job_name": "supermask", "array_parallelism": jobs, **given}
    parameters["time"] = _minutes(given.get("time", "60"))
    if "reservation" in given:  # submitit has no name for it
        parameters["additional_parameters"] = {"reservation": parameters.pop("reservation")}
    if gpu:
        parameters["gpus_per_node"] = 1
    made = submitit.SlurmExecutor(folder=folder, max_num_timeout=MAX_REQUEUES)
    made.update_parameters(**parameters)
    return made


def run_plan(
    plan: RunGraph,
    site: WorkerConfig,
    workers: int,
    listener: TaskListener,
    keep: KeepPolicy = "all",
    schedule: Scheduler | None = None,
    starting: Callable[[Task], None] = lambda _: None,
    *,
    submitting: SubmitFunction,
) -> Scheduler:
    """Like `local.run_plan`, as at most `workers` jobs at once, made by what `submitting` gives."""
    with open_coordinator(plan, site, listener, keep, schedule, starting) as ongoing:
        if ongoing.schedule.tasks_left:
            with remote_session(site) as order:
                jobs = SlurmPool(order, submitting(order.folder / "%j", workers, site.device == "cuda"), workers)
                try:
                    ongoing.run(jobs)
                except SystemFailure as error:
                    order.kept = True
                    raise SystemFailure(f"{error} The jobs' logs are in {order.folder}.") from error
                finally:
                    jobs.stop()
    return ongoing.schedule


class SlurmTask:
    """What submitit runs for us. It calls `checkpoint` when the job is preempted or out of time."""

    _thread: threading.Thread | None = None
    """None until training has begun."""

    def __init__(self, errand: RemoteJob) -> None:
        self._errand = errand

    def __call__(self) -> RemoteResult:
        """Training is in a thread, so that this one can wait for a checkpoint."""
        self._stop = threading.Event()
        self._answer: RemoteResult = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._train)
        self._thread.start()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._answer

    def checkpoint(self) -> Any:
        """Lets what is in training save a checkpoint; the same job again then goes on from there."""
        from submitit.helpers import DelayedSubmission

        if self._thread is not None:
            self._stop.set()
            self._thread.join(SAVE_SECONDS)
        return DelayedSubmission(SlurmTask(self._errand))

    def _train(self) -> None:
        try:
            self._answer = run_remote_job(self._errand, self._stop.is_set)
        except BaseException as error:
            self._error = error


class SlurmPool:
    """A crew of Slurm jobs, whose answers wait for the queue: so each has whole lines to do."""

    prefers_whole_chains = True

    def __init__(self, order: RemoteSession, submitter: Any, workers: int) -> None:
        self._order, self._submitter, self._workers = order, submitter, workers
        self._in_flight: dict[Any, Assignment] = {}
        self._without: dict[Any, float] = {}
        """Since when jobs are seen to be over that have left no result."""

    def capacity(self) -> int:
        """One portion a job."""
        return self._workers

    def submit(self, portions: Sequence[Assignment]) -> None:
        """As one array of jobs. Raises UserError where Slurm refuses it."""
        from submitit.core.utils import FailedJobError

        said = StringIO()
        try:
            # What `sbatch` says goes into our message.
            with redirect_stderr(said), self._submitter.batch():
                jobs = [self._submitter.submit(SlurmTask(self._order.job(portion.chains))) for portion in portions]
        except FailedJobError as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or ["it did not say why"]
            raise UserError(f"Slurm refused the jobs: {sanitize(lines[-1].strip())}") from None
        self._in_flight.update(zip(jobs, portions, strict=True))

    def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
        """Of jobs that are over."""
        time.sleep(POLL_SECONDS)
        over = [job for job in self._in_flight if self._is_over(job)]
        return [(self._in_flight.pop(job), self._answer(job)) for job in over]

    def _is_over(self, job: Any) -> bool:
        """submitit waits for a result, and meanwhile nothing would be heard of the others."""
        if _has_result(job):
            return True
        if not job.done():
            return False
        return time.monotonic() - self._without.setdefault(job, time.monotonic()) >= RESULT_SECONDS

    def _answer(self, job: Any) -> Sequence[TaskResult] | WorkerDied:
        if self._without.pop(job, None) is not None and not _has_result(job):
            return WorkerDied()
        try:
            answer: RemoteResult = job.result()
        except Exception:  # whatever submitit raises for a job that failed
            return WorkerDied()
        if isinstance(answer, RemoteError):
            raise answer.error()
        return answer or ()

    def stop(self) -> None:
        """Lets jobs save a checkpoint, waits a moment, cancels those that are left.

        At the end of a plan too some may be: at what another process has finished meanwhile.
        """
        self._order.cancel()
        patience = time.monotonic() + STOP_SECONDS
        with suppress(Exception):
            while time.monotonic() < patience and not all(job.done() for job in self._in_flight):
                time.sleep(0.05)
            for job in self._in_flight:
                if not job.done():
                    job.cancel(check=False)


def _has_result(job: Any) -> bool:
    path: Path = job.paths.result_pickle
    try:
        # A network file system may go on saying that a file is not there; it looks again for what a folder holds.
        return path in path.parent.iterdir()
    except OSError:
        return False
