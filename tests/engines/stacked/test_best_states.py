"""States of lowest validation loss of a stack: stacked, copied together, and equal to copies per replica."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.mask_trainings import METHODS, mask_job
from helpers.pretend_gpu import pretend_gpu
from helpers.sparse_jobs import images, job_of
from helpers.stacked_stream import Line, tiny  # noqa: F401
from helpers.trainings import RECIPES, bits, data, job, pruned_start
from torch.utils._python_dispatch import TorchDispatchMode

from supermask.core.types import TrainingResult
from supermask.engines import stacked
from supermask.engines.job import TrainingJob
from supermask.engines.stacked.replica import Replica, ReplicaGroup, ReplicaLoop
from supermask.engines.stacked.stack import Stack
from supermask.engines.training import TrainingLoop

DATA = data()
TENSORS = 6
"""Weights and biases of the small network."""


@contextmanager
def counting() -> Iterator[list[tuple[str, int]]]:
    """Operations that copy numbers in the block: (name, bytes that they write)."""
    seen: list[tuple[str, int]] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            if name in ("clone", "copy_", "index_select", "index_copy_"):
                written = args[3] if name == "index_copy_" else result
                seen.append((name, written.nbytes))
            return result

    with Count():
        yield seen


def make_group(replicas: int, device: str = "cpu") -> tuple[ReplicaGroup, list[Replica]]:
    jobs = [job(RECIPES["adam"], pruned_start(seed=seed)) for seed in range(replicas)]
    group = ReplicaGroup(Stack(jobs, [DATA] * replicas, torch.device(device), "float32", {}))
    return group, [group.add(j, DATA) for j in jobs]


def test_operations_and_bytes_of_the_copies() -> None:
    """One operation per tensor where all replicas improved, two where some did; only their rows are moved."""
    group, replicas = make_group(6)
    bytes_per_replica = sum(t.nbytes for t in {**group.stack.weights, **group.stack.unmasked}.values()) // 6
    pauses = (replicas, ["clone"]), (replicas, ["copy_"]), (replicas[2:5], ["index_select", "index_copy_"])
    for improved, names in pauses:
        with counting() as seen:
            for replica in improved:
                replica.keep_best()
            group.copy_improved()
            group.copy_improved()
        assert sorted(name for name, _ in seen) == sorted(names * TENSORS)
        assert sum(written for _, written in seen) == len(improved) * len(names) * bytes_per_replica
    with counting() as seen:
        for replica in replicas:
            replica.state()
    assert len(seen) == 6 * TENSORS, "copies of one replica's tensors at a time"


def test_the_kept_state_is_that_of_the_evaluation() -> None:
    """Copied before a step, a new run in the slot, and a compaction; rows move with their replicas."""
    group, replicas = make_group(4)
    wanted = {}
    for first in (0, 5):
        for replica in replicas[first // 5 :]:
            wanted[replica] = replica.state()
            replica.keep_best()
        group.train([first] * 4, 5)
    for replica in replicas[2:]:
        wanted[replica] = replica.state()
        replica.keep_best()
    replicas[2].load(pruned_start(seed=9).state)
    group.replace([replicas[0]], [])
    assert [r.slot for r in replicas[1:]] == [0, 1, 2]
    group.replace([], [(job(RECIPES["adam"]), DATA)] * 2)
    for replica in replicas[1:]:
        state = replica.best_state()
        for own, kept in ((wanted[replica].weights, state.weights), (wanted[replica].unmasked, state.unmasked)):
            assert own.keys() == kept.keys()
            assert all(torch.equal(own[n], kept[n]) for n in own)


def train_line(jobs: list[TrainingJob], size: int) -> list[TrainingResult]:
    line = Line([(j, images()) for j in jobs], size)
    stacked.train_stream(line, size)
    return [line.outcomes[id(j)] for j in jobs]


@pytest.mark.parametrize("learned", [False, True])
def test_results_are_those_of_copies_per_replica(monkeypatch: pytest.MonkeyPatch, learned: bool) -> None:
    """Bit by bit, where runs replace finished ones, the stack is compacted, and the last state is not the best."""
    recipe = replace(RECIPES["adam"], iterations=10, evaluate_every=5, lr=3.0 if learned else 0.3)
    first = job_of("fc-24", 0.3, recipe)
    if learned:
        first = mask_job(METHODS["bernoulli"], recipe, first.layers)
    snapshots: frozenset[Any] = frozenset({"lowest_validation_loss"})
    jobs = [
        replace(first, seed=seed, snapshots=snapshots, start=replace(first.start, first_iteration=5 * (seed % 2)))
        for seed in range(4)
    ]
    ours = train_line(jobs, 3)
    monkeypatch.setattr(ReplicaLoop, "_keep_best", TrainingLoop._keep_best)
    monkeypatch.setattr(ReplicaLoop, "_kept_snapshots", TrainingLoop._kept_snapshots)
    theirs = train_line(jobs, 3)
    assert any(r.metrics["early_stop_iteration"] != 10 for r in ours)
    for a, b in zip(ours, theirs, strict=True):
        assert bits(a) == bits(b)
        kept, expected = a.snapshots["lowest_validation_loss"], b.snapshots["lowest_validation_loss"]
        for own, other in ((kept.weights, expected.weights), (kept.unmasked, expected.unmasked)):
            assert all(torch.equal(own[n], other[n]) for n in other)
        assert all(torch.equal(kept.logits[n], t) for n, t in expected.logits.items())


def test_nothing_waits_for_the_gpu() -> None:
    with pretend_gpu() as gpu:
        group, replicas = make_group(3, "cuda")
        for improved in (replicas, replicas, replicas[1:]):
            gpu.waited.clear()
            gpu.sent = 0
            for replica in improved:
                replica.keep_best()
            group.copy_improved()
            state = replicas[1].best_state()
            assert gpu.waited == []
            assert gpu.sent == (len(improved) < 3), "the slots, once"
        assert all(gpu.place(t) == torch.device("cuda", 0) for t in state.weights.values())


def test_a_stack_that_is_not_evaluated_keeps_no_states() -> None:
    """Such as those by which the size of a stack is measured."""
    group, _ = make_group(2)
    group.train([0, 0], 3)
    assert group.stack._best is None
