"""A stack with a job source: runs that join later, in the slots of finished ones, agree with runs that were alone."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from weakref import ref

import numpy as np
import pytest
import torch
from helpers.harness import IS_FULL
from helpers.killed_training import Killed, Memory
from helpers.mask_trainings import FAST, mask_job
from helpers.sparse_jobs import CLASSES, RECIPES, SHAPE, distance, images, job_of, start_of
from helpers.stacked_jobs import check_same_numbers, other_images, theirs
from helpers.stacked_jobs import tiny as tiny
from helpers.stacked_stream import Line
from helpers.trainings import bits

from supermask.core.certificate import certify
from supermask.core.recipe import Recipe
from supermask.core.types import SplitData, TrainingResult
from supermask.engines import stacked
from supermask.engines.job import TrainingJob
from supermask.engines.stacked import training
from supermask.engines.stacked.stack import Stack
from supermask.networks.sequential import architecture, prunable_tensors


def fed(
    jobs: Sequence[TrainingJob], of: Sequence[SplitData], size: int, give: int = 99
) -> tuple[list[TrainingResult], Line]:
    line = Line(zip(jobs, of, strict=True), size, give)
    stacked.train_stream(line, size)
    assert not line.within
    return [line.outcomes[id(job)] for job in jobs], line


def check_as_alone(job: TrainingJob, of: SplitData, found: TrainingResult) -> None:
    alone = stacked.train([job], [of])[0]
    assert (found.status, found.curve.iterations) == (alone.status, alone.curve.iterations)
    assert found.metrics["diverged_at"] == alone.metrics["diverged_at"]
    assert found.snapshots.keys() == alone.snapshots.keys()
    if alone.status == "finished":
        np.testing.assert_allclose(found.curve.training_loss, alone.curve.training_loss, rtol=1e-5)
        np.testing.assert_allclose(found.curve.validation_loss, alone.curve.validation_loss, rtol=1e-5)
        assert distance(found.end, alone.end) < 1e-4
        assert all(distance(found.snapshots[p], alone.snapshots[p]) < 1e-4 for p in found.snapshots if p != "gradient")


def seven(recipe: Recipe) -> tuple[list[TrainingJob], list[SplitData]]:
    """Seven jobs: dense and pruned, late starts, snapshots, one that diverges, one with other data."""
    dense, first = job_of("fc-24", 1, recipe), job_of("fc-24", 0.3, recipe)
    start = first.start
    # Adam's steps do not grow with the gradient: weights large enough to diverge before the first step.
    huge = {n: w * (1e20 if recipe.optimizer == "sgd" else 1e40) for n, w in start.weights.items()}
    jobs = [
        dense,
        replace(dense, seed=3, start=replace(dense.start, first_iteration=20)),
        replace(first, snapshots=frozenset({"gradient", 33, "lowest_validation_loss"})),
        replace(first, start=replace(start, weights=huge)),
        replace(first, start=replace(start_of("fc-24", 0.5), first_iteration=30), snapshots=frozenset({30, 31})),
        replace(first, seed=3, start=start_of("fc-24", 0.05, mask0="freeze_init")),
        replace(first, start=replace(start, first_iteration=60)),
    ]
    return jobs, [images(), images(), images(), images(), other_images(), images(), images()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "size"),
    [("adam", 1), ("adam", 3), ("momentum with weight decay", 2), ("momentum with weight decay", 9)]
    + (
        [("adam", 2), ("adam", 9), ("momentum with weight decay", 1), ("momentum with weight decay", 3)]
        if IS_FULL
        else []
    ),
)
def test_runs_that_join_later_agree_with_runs_that_were_alone(recipe: str, size: int) -> None:
    jobs, of = seven(replace(RECIPES[recipe], iterations=60, evaluate_every=10))
    found, line = fed(jobs, of, size)
    for job, d, outcome in zip(jobs, of, found, strict=True):
        check_as_alone(job, d, outcome)
        if outcome.status == "finished":
            held = certify(prunable_tensors(job.layers), job.start, outcome, None, None, job.recipe.weight_decay).checks
            assert not [n for n, layers in held.items() if layers and ("frozen" in n or "optimizer" in n)]
        for name, mask in job.start.masks.items():
            before, after = job.start.weights[name].view(torch.int32), outcome.end.weights[name].view(torch.int32)
            assert torch.equal(before[~mask], after[~mask])
    assert [outcome.status for outcome in found].count("diverged") == 1
    assert all(seconds > 0 for seconds in line.seconds)


@pytest.mark.slow
def test_a_stream_through_a_stack_of_one_is_bit_identical() -> None:
    jobs, of = seven(replace(RECIPES["adam"], iterations=60, evaluate_every=10))
    found, _ = fed(jobs, of, 1)
    for job, d, outcome in zip(jobs, of, found, strict=True):
        assert bits(outcome) == bits(stacked.train([job], [d])[0])


def test_results_are_delivered_before_more_jobs_are_requested() -> None:
    recipe = replace(RECIPES["adam"], iterations=20, evaluate_every=10)
    jobs = [replace(job_of("fc-24", 0.3, recipe), seed=seed) for seed in range(5)]
    _, line = fed(jobs, [images()] * 5, 2)
    pause = ["ended", "ended"]
    assert line.calls == ["more 2", *pause, "more 2", *pause, "more 1", "more 0", "ended", "more 0"]
    # With free slots jobs are requested at every evaluation: here in the middle of the first run.
    _, line = fed(jobs[:3], [images()] * 3, 2, give=1)
    assert line.calls == ["more 1", "more 1", "ended", "more 1", "ended", "more 0", "ended", "more 0"]
    _, line = fed([replace(jobs[0], snapshots=frozenset({5, 13}))], [images()], 2)
    assert line.calls == ["more 1", "more 0", "ended", "more 0"], "requested at a stop that only records a snapshot"


def test_shares_of_time_add_up_without_the_time_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances by 1 while a stack trains and by 100 in the source."""
    now = [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])
    train = Stack.train

    def counted(self, firsts, steps):  # type: ignore[no-untyped-def]
        now[0] += 1
        return train(self, firsts, steps)

    class Slow(Line):
        def next_jobs(self, room: int) -> list[tuple[TrainingJob, SplitData]]:
            now[0] += 100
            return super().next_jobs(room)

    monkeypatch.setattr(Stack, "train", counted)
    recipe = replace(RECIPES["adam"], iterations=20, evaluate_every=10)
    jobs = [replace(job_of("fc-24", 0.3, recipe), seed=seed) for seed in range(3)]
    line = Slow([(job, images()) for job in jobs], 2)
    stacked.train_stream(line, 2)
    assert line.seconds == [1.0, 1.0, 2.0]


def test_new_runs_replace_finished_ones_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded step stays valid: every tensor that it reads or writes keeps its address."""
    seen: list[tuple[object, set[int]]] = []
    step = Stack.train

    def noted(self, firsts, steps):  # type: ignore[no-untyped-def]
        found = step(self, firsts, steps)
        tensors = [*self.weights.values(), *self.unmasked.values(), *self._gradient_masks.values(), self.images.pixels]
        tensors += [moment for moments in self.optimizer_state.values() for moment in moments]
        seen.append((self._step, {t.data_ptr() for t in tensors}))
        return found

    monkeypatch.setattr(Stack, "train", noted)
    recipe = replace(RECIPES["adam"], iterations=20, evaluate_every=10)
    jobs = [replace(job_of("fc-24", d, recipe), seed=s) for s, d in enumerate((0.3, 0.2, 0.5, 1, 0.1, 0.4))]
    found, _ = fed(jobs, [images()] * 6, 2)
    assert len(seen) == 6
    assert all(one[0] is seen[0][0] and one[1] == seen[0][1] for one in seen)
    for job, outcome in zip(jobs, found, strict=True):
        check_as_alone(job, images(), outcome)


def test_evaluation_data_of_replaced_runs_is_forgotten() -> None:
    recipe = replace(RECIPES["sgd"], iterations=2, evaluate_every=1)
    jobs = [replace(job_of("fc-24", 0.3, recipe), seed=seed) for seed in range(2)]
    stack = Stack(jobs, [images(), other_images()], torch.device("cpu"), "float32", {})
    for d in (images(), other_images()):
        stack.evaluate([0, 1], d.validation_images, d.validation_labels)
    assert len(stack.images._evaluation_tensors) == 4
    stack.replace([1], jobs[1:], [images()])
    assert len(stack.images._evaluation_tensors) == 2
    stack.replace([0], jobs[:1], [images()])
    assert stack.train([0, 0], 2).shape == (2, 2)


def test_a_chain_whose_next_level_joins_after_the_previous_one() -> None:
    """Magnitude pruning by half, three levels, two seeds."""
    recipe = replace(RECIPES["adam"], iterations=20, evaluate_every=10)
    firsts = [replace(job_of("fc-24", 1, recipe), seed=seed) for seed in range(2)]

    def pruned(job: TrainingJob, outcome: TrainingResult) -> TrainingJob:
        start, masks = job.start, {}
        for name, mask in start.masks.items():
            size = outcome.end.weights[name].abs()
            masks[name] = mask & (size > size[mask].median())
        return replace(
            job, start=replace(start, masks=masks, weights={n: w * masks[n] for n, w in start.weights.items()})
        )

    class Chain(Line):
        def on_finished(self, job: TrainingJob, outcome: TrainingResult, seconds: float) -> None:
            super().on_finished(job, outcome, seconds)
            done.append((job, outcome))
            if sum(1 for other, _ in done if other.seed == job.seed) < 3:
                self.waiting.append((pruned(job, outcome), images()))

    done: list[tuple[TrainingJob, TrainingResult]] = []
    stacked.train_stream(Chain([(job, images()) for job in firsts], 2), 2)
    assert len(done) == 6
    for job, outcome in done:
        check_same_numbers(outcome, theirs(job))
        for name, mask in job.start.masks.items():
            assert not outcome.end.weights[name][~mask].any()
    assert sum(int(m.sum()) for m in done[-1][0].start.masks.values()) < 0.3 * sum(
        m.numel() for m in done[-1][0].start.masks.values()
    )


@pytest.mark.slow
def test_learned_masks_that_join_later() -> None:
    """One of them joins at its last iteration: it has no pass of its own, and must not report that of its slot."""
    recipe = Recipe("adam", 0.05, 20, 50, 10)
    layers = architecture("fc-24", SHAPE, CLASSES)
    jobs = [mask_job(FAST["bernoulli, rescaled"], recipe, layers, seed) for seed in range(5)]
    jobs[3] = replace(jobs[3], start=replace(jobs[3].start, first_iteration=20))
    found, _ = fed(jobs, [images()] * 5, 2)
    for job, outcome in zip(jobs, found, strict=True):
        alone = stacked.train([job], [images()])[0]
        np.testing.assert_allclose(outcome.curve.training_loss, alone.curve.training_loss, atol=1e-4)
        assert all(torch.equal(outcome.end.weights[n], w) for n, w in job.start.weights.items())
        for name, passed in alone.last_sampled_weights.items():
            assert ((outcome.last_sampled_weights[name] != 0) == (passed != 0)).float().mean() > 0.99


@pytest.mark.slow
def test_a_killed_stream_resumes() -> None:
    recipe = replace(RECIPES["adam"], iterations=50, evaluate_every=10)
    memories = [Memory(None), Memory(None), Memory(7), Memory(None)]
    starts = [0, 20, 0, 0]
    plain = [
        replace(job_of("fc-24", 0.3, recipe), seed=s, start=replace(start_of("fc-24", 0.3), first_iteration=first))
        for s, first in enumerate(starts)
    ]
    jobs = [replace(job, checkpointer=memory) for job, memory in zip(plain, memories, strict=True)]
    memories[2].kill_after = 2
    with pytest.raises(Killed):
        fed(jobs, [images()] * 4, 2)
    # The second run finished after 30 of the 50 iterations of the first, and the third took its slot; the first and the
    # third saved at the same stop.
    assert [memory.count for memory in memories] == [5, 3, 2, 0]
    found, line = fed([jobs[0], *jobs[2:]], [images()] * 3, 2)
    for job, outcome in zip([plain[0], *plain[2:]], found, strict=True):
        check_as_alone(job, images(), outcome)
    assert line.calls[:3] == ["more 2", "ended", "more 1"], "the first run was at its last iteration"


@pytest.mark.parametrize("when", ["more", "ended"])
def test_errors_of_the_source_end_the_training(when: str) -> None:
    class Broken(Line):
        def next_jobs(self, room: int) -> list[tuple[TrainingJob, SplitData]]:
            if when == "more" and self.calls:
                raise KeyError("more")
            return super().next_jobs(room)

        def on_finished(self, job: TrainingJob, outcome: TrainingResult, seconds: float) -> None:
            super().on_finished(job, outcome, seconds)
            if when == "ended":
                raise KeyError("ended")

    job = job_of("fc-24", recipe=replace(RECIPES["adam"], iterations=20, evaluate_every=10))
    line = Broken([(replace(job, seed=seed), images()) for seed in range(3)], 2)
    with pytest.raises(KeyError, match=when):
        stacked.train_stream(line, 2)
    assert len(line.outcomes) == (1 if when == "ended" else 2)


def test_denormals_are_not_flushed_in_the_source() -> None:
    """The floating-point settings of training do not hold in the source."""
    tiny_numbers = []

    class Asked(Line):
        def next_jobs(self, room: int) -> list[tuple[TrainingJob, SplitData]]:
            tiny_numbers.append(torch.full((1,), 1e-40).mul(1.0).item() != 0.0)
            return super().next_jobs(room)

    torch.set_flush_denormal(False)
    stacked.train_stream(
        Asked([(job_of(recipe=replace(RECIPES["adam"], iterations=2, evaluate_every=1)), images())], 1), 1
    )
    assert tiny_numbers == [True, True]


def test_memory_is_free_after_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a run of Python's cycle collector, which a full GPU does not trigger."""
    made: list[ref[Stack]] = []
    train = Stack.train

    def noted(self, firsts, steps):  # type: ignore[no-untyped-def]
        made.append(ref(self))
        return train(self, firsts, steps)

    monkeypatch.setattr(Stack, "train", noted)
    recipe = replace(RECIPES["adam"], iterations=20, evaluate_every=10)
    jobs = [replace(job_of("fc-24", 0.3, recipe), seed=seed) for seed in range(3)]
    gc.disable()
    try:
        found, _ = fed(jobs, [images()] * 3, 2)
    finally:
        gc.enable()
    assert len(found) == 3
    assert made
    assert not any(stack() for stack in made)
