"""From jobs to training results: which jobs share a stack, and the loop that trains a stack until all have finished."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from supermask.core.types import SplitData, TrainingResult
from supermask.engines.job import TrainingJob, stack_settings
from supermask.engines.precision import matmul_precision
from supermask.engines.reference import flush_denormals
from supermask.engines.selection import MatmulPrecision, validate_precision
from supermask.engines.stacked.bias_relu import make_bias_relu
from supermask.engines.stacked.convolutions import choose_conv_algorithms
from supermask.engines.stacked.masked_pass import make_masked_pass
from supermask.engines.stacked.optimizer import make_optimizer_step
from supermask.engines.stacked.replica import Replica, ReplicaGroup, ReplicaLoop, result_to_cpu
from supermask.engines.stacked.stack import Stack

ConvAlgorithms = Mapping[str, str]
"""Layer name -> algorithm of the convolution, a key of `CONV_ALGORITHMS`."""


class JobSource(Protocol):
    """Source of a stack's jobs, and receiver of their results."""

    def next_jobs(self, free_slots: int) -> Sequence[tuple[TrainingJob, SplitData]]:
        """At most `free_slots` jobs that join now; an empty sequence if there are none now.

        All jobs of a source have the same network and equal `stack_settings`. Called after runs have finished, and,
        while slots are free, after every evaluation.
        """

    def on_finished(self, job: TrainingJob, result: TrainingResult, seconds: float) -> None:
        """Receive a result, before the next call of `next_jobs`.

        `job` is the object that `next_jobs` returned. `seconds`: the run's share of the stack's wall-clock time.
        """


def train_stream(
    source: JobSource,
    size: int,
    device: str = "cpu",
    precision: str = "float32",
    algorithms: ConvAlgorithms | None = None,
) -> None:
    """Train the source's jobs, at most `size` at once, until it returns no more and all have finished.

    Jobs of one seed share their mini-batches if they have the same `SplitData` object and the same iteration.
    `precision`: of products, see `selection.MatmulPrecision`. `algorithms` of convolutions: by default the fastest, as
    measured on this machine. Raises UserError for a precision that the device does not have, and whatever the source
    raises. Source: Zhou et al. 2019, Sec. 1 and Table S1.
    """
    torch_device = torch.device(device)
    runner = _StackRunner(size, torch_device, validate_precision(precision, torch_device.type), algorithms)
    joining = source.next_jobs(size)
    if joining:
        # Compiled here, before a stack needs it: not with the floating-point settings of training.
        make_optimizer_step(joining[0][0].recipe, torch_device)
        make_bias_relu(torch_device)
        if joining[0][0].learning is not None:
            make_masked_pass(joining[0][0].learning, torch_device)
    while joining or runner.loops:
        assert len(joining) <= size - len(runner.loops), "the source returned more jobs than there are free slots"
        for job, result, seconds in runner.run_to_next_stop(joining):
            source.on_finished(job, result, seconds)
        joining = source.next_jobs(runner.free_slots) if runner.free_slots else ()


def train(
    jobs: Sequence[TrainingJob],
    data: Sequence[SplitData],
    device: str = "cpu",
    precision: str = "float32",
    algorithms: ConvAlgorithms | None = None,
) -> list[TrainingResult]:
    """Train all jobs, those with equal `stack_settings` in one stack; `data[i]` is the data of `jobs[i]`.

    Results are in the order of the jobs. Other arguments and errors: as for `train_stream`.
    Source: Zhou et al. 2019, Sec. 1 and Table S1.
    """
    # Copies, because results are assigned by identity and a job may be given twice.
    copies = [replace(job) for job in jobs]
    source = _FixedJobs()
    for indices in _group_by_stack(copies, data):
        source.waiting = [(copies[i], data[i]) for i in indices]
        train_stream(source, len(indices), device, precision, algorithms)
    return [source.results[id(job)] for job in copies]


class _FixedJobs:
    """A source that returns all of its jobs at the first call."""

    def __init__(self) -> None:
        self.waiting: list[tuple[TrainingJob, SplitData]] = []
        self.results: dict[int, TrainingResult] = {}
        """By the id of the job, which the caller keeps alive."""

    def next_jobs(self, free_slots: int) -> list[tuple[TrainingJob, SplitData]]:
        jobs, self.waiting = self.waiting, []
        return jobs

    def on_finished(self, job: TrainingJob, result: TrainingResult, seconds: float) -> None:
        self.results[id(job)] = result


def _group_by_stack(jobs: Sequence[TrainingJob], data: Sequence[SplitData]) -> list[list[int]]:
    """Indices of the jobs of each stack."""
    stacks: dict[Any, list[int]] = {}
    for i, (job, d) in enumerate(zip(jobs, data, strict=True)):
        stacks.setdefault(_stack_key(job, d), []).append(i)
    return list(stacks.values())


def _stack_key(job: TrainingJob, data: SplitData) -> Any:
    """The settings that all replicas of a stack have in common."""
    return job.network.layers or job.network, stack_settings(job.recipe, job.learning), data.max_pixel


class _StackRunner:
    """A stack in training: its replicas, their training loops, and each run's share of the time."""

    def __init__(
        self, size: int, device: torch.device, precision: MatmulPrecision, algorithms: ConvAlgorithms | None
    ) -> None:
        self._size, self._device, self._precision, self._algorithms = size, device, precision, algorithms
        self._key: Any = None
        self._group: ReplicaGroup | None = None
        self.loops: dict[Replica, ReplicaLoop] = {}
        self._finished: list[Replica] = []
        """Replicas whose slots are free, as of the last stop."""
        self._seconds: dict[Replica, float] = {}

    @property
    def free_slots(self) -> int:
        """Jobs that may join now: none at a stop that only records a snapshot.

        A run that joined between two evaluations would be evaluated at other stops than the others for good, and every
        stop interrupts the whole stack.
        """
        may_join = self._finished or any(t.iteration % t.job.recipe.evaluate_every == 0 for t in self.loops.values())
        return self._size - len(self.loops) if may_join else 0

    def run_to_next_stop(
        self, joining: Sequence[tuple[TrainingJob, SplitData]]
    ) -> list[tuple[TrainingJob, TrainingResult, float]]:
        """Let these jobs join, train all to the next stop of any of them, and return those that finished there.

        The floating-point settings hold in here only: the source computes with the caller's own.
        """
        with flush_denormals(), matmul_precision(self._precision, self._device):
            self._join(joining)
            # A run may be at its end when it joins: it diverged at its start, or was resumed at its last iteration.
            if all(loop.steps_to_next_stop for loop in self.loops.values()):
                self._train()
            return self._finish([r for r, loop in self.loops.items() if not loop.steps_to_next_stop])

    def _join(self, joining: Sequence[tuple[TrainingJob, SplitData]]) -> None:
        keys = [_stack_key(job, d) for job, d in joining]
        self._key = self._key or keys[0]
        assert all(key == self._key for key in keys), "the source returned jobs that cannot share a stack"
        # Neighbors share a mini-batch if it is the same, so jobs with the same batches are made neighbors.
        joining = sorted(joining, key=lambda pair: (pair[0].seed, id(pair[1]), pair[0].start.first_iteration))
        if self._group is None:
            self._group = ReplicaGroup(self._make_stack(joining))
            replicas = [self._group.add(job, d) for job, d in joining]
        elif joining or self._finished:
            replicas = self._group.replace(self._finished, joining)
        else:
            return
        self._finished = []
        self._seconds |= dict.fromkeys(replicas, 0.0)
        with self._share_time(replicas):
            loops = {r: ReplicaLoop(r, job, d) for r, (job, d) in zip(replicas, joining, strict=True)}
            self.loops |= loops
            self._group.pausing = replicas
            for loop in loops.values():
                loop.evaluate_initial()

    def _make_stack(self, joining: Sequence[tuple[TrainingJob, SplitData]]) -> Stack:
        jobs, data = [job for job, _ in joining], [d for _, d in joining]
        layers, batch_size, algorithms = jobs[0].network.layers or (), jobs[0].recipe.batch_size, self._algorithms
        if algorithms is None:
            algorithms = choose_conv_algorithms(layers, batch_size, self._size, str(self._device), self._precision)
        return Stack(jobs, data, self._device, self._precision, algorithms)

    def _train(self) -> None:
        """Train all replicas to the next stop of any of them."""
        group = self._group
        assert group is not None
        loops = [self.loops[replica] for replica in group.replicas]
        steps = min(loop.steps_to_next_stop for loop in loops)
        group.pausing = [r for r, loop in zip(group.replicas, loops, strict=True) if loop.steps_to_next_stop == steps]
        with self._share_time(group.replicas):
            losses = group.train([loop.iteration for loop in loops], steps)
        first_error: BaseException | None = None
        with self._share_time(group.pausing):
            for loop, replica_losses in zip(loops, losses, strict=True):
                # A checkpointer raises to end the training after it has saved. The other replicas save theirs first,
                # so that all can be resumed.
                try:
                    loop.advance(replica_losses)
                except BaseException as error:
                    first_error = first_error or error
        if first_error is not None:
            raise first_error

    def _finish(self, finished: list[Replica]) -> list[tuple[TrainingJob, TrainingResult, float]]:
        assert self._group is not None
        self._group.pausing = self._finished = finished
        with self._share_time(finished):
            results = [_training_result(self.loops[replica], replica) for replica in finished]
        jobs = [self.loops.pop(replica).job for replica in finished]
        return list(zip(jobs, results, [self._seconds.pop(replica) for replica in finished], strict=True))

    @contextmanager
    def _share_time(self, replicas: Sequence[Replica]) -> Iterator[None]:
        """Charge the time of this block to these replicas in equal shares."""
        start_time = time.perf_counter()
        yield
        for replica in replicas:
            self._seconds[replica] += (time.perf_counter() - start_time) / len(replicas)


def _training_result(loop: ReplicaLoop, replica: Replica) -> TrainingResult:
    # Before result(), which loads the weights of the lowest validation loss.
    sampled_weights = replica.last_sampled_weights() if loop.job.learning is not None else {}
    return replace(result_to_cpu(loop.result()), last_sampled_weights=sampled_weights)
