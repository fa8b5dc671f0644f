"""Runs as jobs of Slurm, through submitit: arrays of lines of ready runs; a job that is preempted is queued again."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from supermask.errors import MachineError, UserError, did_you_mean
from supermask.execute.away import Answer, Errand, Fault, Order, carry, ordered
from supermask.execute.ongoing import Listener, Ongoing, Stopped
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.worker import Result, Site, Task, result_of
from supermask.plan import Graph
from supermask.store import Store
from supermask.study.yaml_tree import shown

WORKERS = 64
"""Jobs at once, where nothing is said."""

POLL_SECONDS = 1.0
"""Between two looks at the store and at the jobs."""

STOP_SECONDS = 1.2
"""How long jobs have, when they are to stop, to save a checkpoint."""

SAVE_SECONDS = 30.0
"""How long a preempted one has; Slurm gives it 90."""

TIMEOUTS = 1_000
"""How often a job may run out of its time and be queued again: a line of levels may be longer than any time limit."""

OPTIONS = ("partition", "time", "account", "qos", "constraint", "reservation", "mem", "exclude", "nodelist")
"""Of `sbatch`, in its words."""

Submitting = Callable[[Path, int, bool], Any]
"""From a folder, how many jobs may run at once, and whether each needs a GPU, to a submitit executor."""


def options(text: str) -> dict[str, str]:
    """`partition=gpu,time=4:00:00` as a dict. Raises UserError for what is not so, or not an option."""
    found: dict[str, str] = {}
    for part in text.split(",") if text else []:
        name, equals, value = part.partition("=")
        if not equals or not value or name not in OPTIONS or not value.isprintable():
            near = did_you_mean(name, OPTIONS) or "."
            raise UserError(
                f"{shown(part)} is no option of --cluster slurm{near} They are written slurm:NAME=VALUE,NAME=VALUE; "
                f"allowed: {', '.join(OPTIONS)}."
            )
        found[name] = value
    _minutes(found.get("time", "60"))
    return found


def _minutes(time_limit: str) -> int:
    """Of Slurm's `MINUTES`, `H:MM:SS` or `D-HH:MM:SS`, rounded up."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d+):(\d+))|(\d+)", time_limit, re.ASCII)
    if match is None or not (match[5] or int(match[2] + match[3] + match[4] + (match[1] or ""))):
        raise UserError(f"time={shown(time_limit)} is no time limit: give minutes, H:MM:SS or D-HH:MM:SS.")
    if match[5]:
        return int(match[5])
    return int(match[1] or 0) * 1440 + int(match[2]) * 60 + int(match[3]) + (int(match[4]) > 0)


def executor(text: str) -> Callable[..., Schedule]:
    """`run_plan` with these options. Raises UserError where there is no submitit, or no Slurm."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(
            "--cluster slurm needs submitit, which is not installed: pip install 'supermask[slurm]'"
        ) from None
    if shutil.which("sbatch") is None:
        raise UserError("there is no Slurm on this machine (no `sbatch`): give the command on a login node.")
    return partial(run_plan, submitting=partial(_submitting, options(text)))


def _submitting(given: Mapping[str, str], folder: Path, jobs: int, gpu: bool) -> Any:
    import submitit

    parameters: dict[str, Any] = {"cpus_per_task": 1, "job_name": "supermask", "array_parallelism": jobs, **given}
    parameters["time"] = _minutes(given.get("time", "60"))
    if "reservation" in given:  # submitit has no name for it
        parameters["additional_parameters"] = {"reservation": parameters.pop("reservation")}
    if gpu:
        parameters["gpus_per_node"] = 1
    made = submitit.SlurmExecutor(folder=folder, max_num_timeout=TIMEOUTS)
    made.update_parameters(**parameters)
    return made


def run_plan(
    plan: Graph,
    site: Site,
    workers: int,
    listener: Listener,
    keep: Keep = "all",
    schedule: Schedule | None = None,
    starting: Callable[[Task], None] = lambda _: None,
    *,
    submitting: Submitting,
) -> Schedule:
    """Like `local.run_plan`, as at most `workers` jobs at once, made by what `submitting` gives."""
    store = Store(site.store)
    store.sweep()
    ongoing = Ongoing(schedule or Schedule(plan, store), listener, keep)
    ongoing.schedule.drop_surplus(keep)
    if ongoing.schedule.tasks_left:
        with ordered(site) as order:
            jobs = _Jobs(ongoing, order, submitting(order.folder / "%j", workers, site.device == "cuda"), starting)
            try:
                jobs.carry_out(workers)
            except KeyboardInterrupt:
                jobs.stop()
                raise Stopped(ongoing.schedule.tasks_left) from None
            except MachineError as error:
                jobs.stop()
                order.kept = True
                raise MachineError(f"{error} The jobs' logs are in {order.folder}.") from error
            except BaseException:
                jobs.stop()
                raise
    return ongoing.schedule


class Lines:
    """A job: lines of runs, one run after another. submitit calls `checkpoint` when it is preempted or out of time."""

    def __init__(self, lines: list[list[Errand]]) -> None:
        self._lines = lines

    def __call__(self) -> list[tuple[str, Answer]]:
        """The answers, by the runs' ids. Training is in a thread, so that this one can wait for a checkpoint."""
        self._stop = threading.Event()
        self._answers: list[tuple[str, Answer]] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._train)
        self._thread.start()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._answers

    def checkpoint(self) -> Any:
        """Lets the run in training save a checkpoint; the same job again then goes on from there."""
        from submitit.helpers import DelayedSubmission

        self._stop.set()
        self._thread.join(SAVE_SECONDS)
        return DelayedSubmission(Lines(self._lines))

    def _train(self) -> None:
        try:
            for line in self._lines:
                for errand in line:
                    answer = carry(errand, self._stop.is_set)
                    self._answers.append((errand.task.run.id, answer))
                    if answer is None or isinstance(answer, Fault):
                        return
                    if answer.status != "finished":
                        break
        except BaseException as error:
            self._error = error


class _Jobs:
    """Jobs in flight, and the tasks of each.

    A line's later runs become ready while its job is at them: they are `held` back from other jobs. What has ended is
    seen in the store; what a job returns tells only what the store does not: faults, and points traced again.
    """

    def __init__(self, ongoing: Ongoing, order: Order, submitter: Any, starting: Callable[[Task], None]) -> None:
        self._ongoing, self._order, self._submitter, self._starting = ongoing, order, submitter, starting
        self._in_flight: dict[Any, list[Task]] = {}
        self._promised: set[str] = set()
        self._held: dict[str, Task] = {}
        self._ready: list[Task] = []

    def carry_out(self, workers: int) -> None:
        """Keeps so many jobs in flight until nothing is left to do."""
        ongoing = self._ongoing
        while ongoing.schedule.tasks_left:
            self._take_ready()
            if self._ready and len(self._in_flight) < workers:
                self._submit(workers)
            assert self._in_flight or ongoing.outdated, "tasks that never become ready"
            time.sleep(POLL_SECONDS)
            for job, tasks in [*self._in_flight.items()]:
                over = job.done()
                self._look_at_store(tasks)
                if over:
                    del self._in_flight[job]
                    self._over(job, tasks)
            if ongoing.outdated:
                self._ready.clear()
                if not self._in_flight:
                    ongoing.renewed()

    def stop(self) -> None:
        """Lets jobs save a checkpoint, waits a moment, cancels those that are left."""
        self._order.withdraw()
        patience = time.monotonic() + STOP_SECONDS
        with suppress(Exception):
            while time.monotonic() < patience and not all(job.done() for job in self._in_flight):
                time.sleep(0.05)
            for job in self._in_flight:
                if not job.done():
                    job.cancel(check=False)

    def _take_ready(self) -> None:
        while (task := self._ongoing.next()) is not None:
            if task.run.id in self._promised:
                self._held[task.run.id] = task
            else:
                self._ready.append(task)

    def _submit(self, workers: int) -> None:
        """An array of jobs; where more lines are ready than jobs may be, several to a job."""
        schedule, room = self._ongoing.schedule, workers - len(self._in_flight)
        each = -(-len(self._ready) // workers)
        taken, self._ready = self._ready[: each * room], self._ready[each * room :]
        lines = [schedule.line(task) for task in taken]
        groups = [lines[at : at + each] for at in range(0, len(lines), each)]
        with self._submitter.batch():
            errands = [[[self._order.errand(task) for task in line] for line in group] for group in groups]
            jobs = [self._submitter.submit(Lines(lines)) for lines in errands]
        for job, group in zip(jobs, groups, strict=True):
            self._in_flight[job] = [task for line in group for task in line]
            self._promised |= {task.run.id for task in self._in_flight[job]}
            self._held |= {line[0].run.id: line[0] for line in group}
            self._starting(group[0][0])

    def _look_at_store(self, tasks: Iterable[Task]) -> None:
        schedule, store = self._ongoing.schedule, self._ongoing.schedule.store
        for task in tasks:
            if schedule.awaits(task) and not task.retrace and store.has(task.run.id):
                self._ended(task, result_of(store.facts(task.run.id)))

    def _ended(self, task: Task, result: Result) -> None:
        self._held.pop(task.run.id, None)
        self._ongoing.ended(task, result)

    def _over(self, job: Any, tasks: list[Task]) -> None:
        """What the job says, unless it died; what it did not get to is for others."""
        by_id = {task.run.id: task for task in tasks}
        answers: list[tuple[str, Answer]] | None = None
        with suppress(Exception):  # whatever submitit raises for a job that left no result
            answers = job.result()
        for run_id, answer in answers or []:
            if isinstance(answer, Fault):
                raise answer.error()
            if answer is not None and self._ongoing.schedule.awaits(by_id[run_id]):
                self._ended(by_id[run_id], answer)
        self._take_ready()
        self._promised -= by_id.keys()
        released = [self._held.pop(run_id) for run_id in by_id if run_id in self._held]
        if answers is None and released:
            self._ongoing.died(released.pop(0))
        for task in released:
            self._ongoing.schedule.again(task)
