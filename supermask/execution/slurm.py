"""The Slurm executor: chains of ready runs as job arrays, through submitit. A preempted job is queued again."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from supermask.core.environment import needs_current_folder
from supermask.core.errors import SystemFailure, UserError, did_you_mean, quote, sanitize
from supermask.execution.coordinator import (
    Assignment,
    ExecutionRequest,
    WorkerAnswer,
    WorkerDied,
    open_coordinator,
    shutdown_grace_seconds,
)
from supermask.execution.remote import (
    RemoteJob,
    RemoteResult,
    RemoteSession,
    remote_session,
    run_remote_job,
)
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import WorkerError

DEFAULT_WORKERS = 64
"""Jobs at once, without --workers."""

POLL_SECONDS = 1.0
"""Seconds between two checks of the store and of the jobs."""

PREEMPTION_GRACE_SECONDS = 30.0
"""Time that a preempted job has to save a checkpoint. Slurm ends it after 90."""

RESULT_SECONDS = 15.0
"""Time that a network file system has to show the result of a job that is over. Without one the job counts as dead."""

MAX_REQUEUES = 1_000
"""Requeues of a job that runs out of time. A chain of levels may take longer than any time limit."""

OPTIONS = ("partition", "time", "account", "qos", "constraint", "reservation", "mem", "exclude", "nodelist")
"""Options of --cluster slurm, named as in `sbatch`."""

SubmitterFactory = Callable[[Path, int, bool], Any]
"""Creates a submitit executor from a log folder, the maximum number of jobs at once, and whether a job needs a GPU."""


def parse_options(text: str) -> dict[str, str]:
    """Return `partition=gpu,time=4:00:00` as a dict. Raises UserError for other text or unknown options."""
    options: dict[str, str] = {}
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        if name in OPTIONS and not value:
            raise UserError(f"--cluster slurm:{name} has no value: write slurm:{name}=VALUE.")
        if not equals or not value or name not in OPTIONS or not value.isprintable():
            hint = did_you_mean(name, OPTIONS) or "."
            raise UserError(
                f"{quote(part)} is not an option of --cluster slurm{hint} Write slurm:NAME=VALUE,NAME=VALUE; "
                f"allowed: {', '.join(OPTIONS)}."
            )
        if name in options:
            raise UserError(f"--cluster slurm has {name} twice: {quote(options[name])} and {quote(value)}. Give one.")
        options[name] = value
    _to_minutes(options.get("time", "60"))  # Raises UserError for an invalid limit.
    return options


def _to_minutes(time_limit: str) -> int:
    """Return a time limit of the form `MINUTES`, `H:MM:SS` or `D-HH:MM:SS` in minutes, rounded up."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d+):(\d+))|(\d+)", time_limit, re.ASCII)
    if match is None or not any(int(number or 0) for number in match.groups()):
        raise UserError(f"time={quote(time_limit)} is not a time limit: give minutes, H:MM:SS or D-HH:MM:SS.")
    if match[5]:
        return int(match[5])
    return int(match[1] or 0) * 1440 + int(match[2]) * 60 + int(match[3]) + (int(match[4]) > 0)


def make_executor(text: str) -> Callable[[ExecutionRequest], Scheduler]:
    """Return `run_plan` with these options bound. Raises UserError without submitit or without Slurm."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(
            "--cluster slurm needs submitit, which is not installed: pip install 'supermask[slurm]'"
        ) from None
    if shutil.which("sbatch") is None:
        raise UserError("there is no Slurm on this machine (no `sbatch`): run the command on a login node.")
    return partial(run_plan, create_submitter=partial(_create_submitter, parse_options(text)))


def _create_submitter(options: Mapping[str, str], folder: Path, jobs: int, gpu: bool) -> Any:
    import submitit

    parameters: dict[str, Any] = {"cpus_per_task": 1, "job_name": "supermask", "array_parallelism": jobs, **options}
    parameters["time"] = _to_minutes(options.get("time", "60"))
    if "reservation" in options:  # submitit has no parameter for it.
        parameters["additional_parameters"] = {"reservation": parameters.pop("reservation")}
    if gpu:
        parameters["gpus_per_node"] = 1
    # -P: jobs start in the current folder, whose files must not replace modules of Python.
    option = "" if needs_current_folder() else " -P"
    python = f"{shlex.quote(sys.executable)}{option}"
    submitter = submitit.SlurmExecutor(folder=folder, max_num_timeout=MAX_REQUEUES, python=python)
    submitter.update_parameters(**parameters)
    return submitter


def run_plan(request: ExecutionRequest, create_submitter: SubmitterFactory) -> Scheduler:
    """Execute a plan with at most `request.workers` Slurm jobs at once; like `local.run_plan`."""
    with open_coordinator(request) as coordinator:
        if coordinator.scheduler.tasks_left:
            with remote_session(request.config) as session:
                needs_gpu = request.config.device == "cuda"
                submitter = create_submitter(session.folder / "%j", request.workers, needs_gpu)
                pool = SlurmPool(session, submitter, request.workers, shutdown_grace_seconds(request.config))
                try:
                    coordinator.run(pool)
                except SystemFailure as error:
                    session.keep_folder = True
                    raise SystemFailure(f"{error} The jobs' logs are in {session.folder}.") from error
                finally:
                    pool.stop()
    return coordinator.scheduler


class SlurmTask:
    """The function that submitit runs in a job. It calls `checkpoint` when the job is preempted or out of time."""

    _thread: threading.Thread | None = None
    """None until training has started."""

    def __init__(self, job: RemoteJob) -> None:
        self._job = job

    def __call__(self) -> RemoteResult:
        """Train the job's chains.

        The training runs in a thread: signals arrive in the main thread, which in `checkpoint` waits for the save.
        """
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
        """Save checkpoints and return the same job for requeueing; it resumes from them."""
        from submitit.helpers import DelayedSubmission

        if self._thread is not None:
            self._stop.set()
            self._thread.join(PREEMPTION_GRACE_SECONDS)
        return DelayedSubmission(SlurmTask(self._job))

    def _train(self) -> None:
        try:
            self._answer = run_remote_job(self._job, self._stop.is_set)
        except BaseException as error:
            self._error = error


class SlurmPool:
    """A worker pool of Slurm jobs. A job waits in the queue, so each gets whole chains."""

    prefers_whole_chains = True

    def __init__(self, session: RemoteSession, submitter: Any, workers: int, grace_seconds: float) -> None:
        self._session, self._submitter, self._workers = session, submitter, workers
        self._grace_seconds = grace_seconds
        self._in_flight: dict[Any, Assignment] = {}
        self._over_since: dict[Any, float] = {}
        """Jobs that are over but show no result yet -> monotonic time at which that was first seen."""

    def capacity(self) -> int:
        """Return the number of jobs at once: one assignment each."""
        return self._workers

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Submit the assignments as one job array. Raises UserError if Slurm refuses it."""
        from submitit.core.utils import FailedJobError

        stderr = StringIO()
        try:
            # The output of `sbatch` becomes part of our message.
            with redirect_stderr(stderr), self._submitter.batch():
                jobs = [self._submitter.submit(SlurmTask(self._session.job(a.chains))) for a in assignments]
        except FailedJobError as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or ["it did not say why"]
            raise UserError(f"Slurm refused the jobs: {sanitize(lines[-1].strip())}") from None
        self._in_flight.update(zip(jobs, assignments, strict=True))

    def poll(self) -> list[tuple[Assignment, WorkerAnswer]]:
        """Wait POLL_SECONDS and return the answers of jobs that are over."""
        time.sleep(POLL_SECONDS)
        over = [job for job in self._in_flight if self._is_over(job)]
        return [(self._in_flight.pop(job), self._answer(job)) for job in over]

    def _is_over(self, job: Any) -> bool:
        """Return True if the job's answer can be read without waiting.

        `job.result()` would wait for a late result and meanwhile block the answers of all other jobs.
        """
        if _has_result(job):
            return True
        if not job.done():
            return False
        return time.monotonic() - self._over_since.setdefault(job, time.monotonic()) >= RESULT_SECONDS

    def _answer(self, job: Any) -> WorkerAnswer:
        if self._over_since.pop(job, None) is not None and not _has_result(job):
            return WorkerDied()
        try:
            answer: RemoteResult = job.result()
        except Exception:  # submitit raises several types for a failed job.
            return WorkerDied()
        if isinstance(answer, WorkerError):
            raise answer.error()
        return answer or ()

    def stop(self) -> None:
        """Let jobs save checkpoints; cancel those that are left after `shutdown_grace_seconds`.

        At the end of a plan there may be some too: jobs whose runs another process has finished meanwhile.
        """
        self._session.cancel()
        deadline = time.monotonic() + self._grace_seconds
        # Slurm's commands may fail; then the removed marker still ends the jobs.
        with suppress(Exception):
            while time.monotonic() < deadline and not all(job.done() for job in self._in_flight):
                time.sleep(0.05)
            for job in self._in_flight:
                if not job.done():
                    job.cancel(check=False)


def _has_result(job: Any) -> bool:
    path: Path = job.paths.result_pickle
    try:
        # A network file system caches that a file does not exist, but lists a folder afresh.
        return path in path.parent.iterdir()
    except OSError:
        return False
