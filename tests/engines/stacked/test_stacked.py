"""The stacked engine against the reference engine: losses, weights, frozen weights, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from helpers import numpy_training as by_hand
from helpers.killed_training import Killed, Memory
from helpers.sparse_jobs import RECIPES, distance, images, job_of, start_of
from helpers.stacked_jobs import check_same_numbers, count_stacks, other_images, theirs
from helpers.trainings import RECIPES as SMALL
from helpers.trainings import batches, bits, data, parameters, pruned_start
from helpers.trainings import job as small_job
from torch.nn.functional import conv2d

from supermask.core.actions import MASK0_ACTIONS
from supermask.core.certificate import certify
from supermask.core.errors import UserError
from supermask.core.recipe import Recipe
from supermask.core.types import Snapshot, TrainingResult
from supermask.engines import stacked
from supermask.engines.job import TrainingJob
from supermask.engines.stacked import stack
from supermask.engines.stacked.convolutions import CONV_ALGORITHMS, conv3x3
from supermask.engines.stacked.device import autocast_factory
from supermask.engines.stacked.forward import BatchGroup, forward, group_batches
from supermask.engines.stacked.stack import Stack
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state, prunable_tensors

DATA = data()


def ours(*jobs: TrainingJob) -> list[TrainingResult]:
    return stacked.train(jobs, [images()] * len(jobs))


# --- agreement with the reference ---


@pytest.mark.parametrize("frozen", [0.0, None], ids=["frozen at zero", "frozen at initial values"])
@pytest.mark.parametrize("recipe", SMALL.values(), ids=SMALL)
def test_one_step_agrees_with_plain_numpy(recipe: Recipe, frozen: float | None) -> None:
    starts = [pruned_start(frozen), pruned_start(frozen, seed=1)]
    jobs = [small_job(replace(recipe, iterations=1), start) for start in starts]
    for job, outcome in zip(jobs, stacked.train(jobs, [DATA, DATA]), strict=True):
        masks = {n: m.numpy() for n, m in job.start.masks.items()}
        expected, _ = by_hand.train(parameters(job.start.state), masks, recipe, batches(job, DATA, 1))
        found = parameters(outcome.end)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "recipe"),
    # The optimizer does not know the layer of a tensor: every recipe once, and two on the other depths.
    [*(("fc-70-30", name) for name in RECIPES), *product(["fc-24", "fc-40-20-12"], ["adam", "schedule"])],
)
def test_every_recipe_at_many_densities(network: str, recipe: str) -> None:
    """Four replicas of four densities in one stack: 1e-5 after 1 step, 1e-3 in every loss after `STEPS`."""
    jobs = [job_of(network, density, RECIPES[recipe]) for density in (1, 0.3, 0.05, 0.005)]
    ones = [replace(job, recipe=replace(job.recipe, iterations=1)) for job in jobs]
    for job, found in zip(ones, ours(*ones), strict=True):
        assert distance(found.end, theirs(job).end) < 1e-5
    for job, found in zip(jobs, ours(*jobs), strict=True):
        check_same_numbers(found, theirs(job))


@pytest.mark.slow
def test_every_mask0_action_passes_its_certificate() -> None:
    jobs = [job_of(density=0.1, mask0=mask0) for mask0 in MASK0_ACTIONS]
    for job, found in zip(jobs, ours(*jobs), strict=True):
        check_same_numbers(found, theirs(job))
        certificate = certify(prunable_tensors(job.layers), job.start, found, None, None, job.recipe.weight_decay)
        held = {name: layers for name, layers in certificate.checks.items() if layers}
        assert not {name for name in held if "frozen" in name or "optimizer" in name}, held
        for name, mask in job.start.masks.items():
            before, after = job.start.weights[name].view(torch.int32), found.end.weights[name].view(torch.int32)
            assert torch.equal(before[~mask], after[~mask])
            for values in found.optimizer_state[name].values():
                assert values[mask].any()
                assert not values[~mask].view(torch.int32).any()


@pytest.mark.slow
def test_different_seeds_data_late_starts_and_snapshots() -> None:
    """Replicas that stop at different iterations and use different data."""
    recipe = replace(RECIPES["momentum with weight decay"], iterations=80, evaluate_every=20)
    late = start_of("fc-24", 0.5)
    first = job_of("fc-24", 0.3, recipe)
    jobs = [
        replace(first, snapshots=frozenset({"gradient", 33, "lowest_validation_loss"})),
        replace(first, seed=3),
        replace(first, start=replace(late, first_iteration=30), snapshots=frozenset({30, 31})),
        first,
        replace(first, seed=3, start=late, snapshots=frozenset({80})),
        replace(first, start=replace(late, first_iteration=80)),
    ]
    of = [images(), images(), other_images(), images(), images(), images()]
    found = stacked.train(jobs, of)
    for job, d, outcome in zip(jobs, of, found, strict=True):
        wanted = theirs(job, d)
        check_same_numbers(outcome, wanted)
        assert all(
            distance(outcome.snapshots[p], wanted.snapshots[p]) < 1e-4 for p in wanted.snapshots if p != "gradient"
        )
    gradient, wanted_gradient = found[0].snapshots["gradient"], theirs(jobs[0]).snapshots["gradient"]
    assert all(torch.equal(gradient.weights[n], g) for n, g in wanted_gradient.weights.items())


@pytest.mark.slow
def test_jobs_of_different_networks_and_optimizers_are_trained_in_several_stacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, sizes = replace(RECIPES["adam"], iterations=20, evaluate_every=10), count_stacks(monkeypatch)
    others = [replace(recipe, optimizer="sgd"), replace(recipe, batch_size=30), replace(recipe, evaluate_every=20)]
    jobs = [job_of("fc-24", 0.3, recipe), job_of("fc-70-30", 0.3, recipe), *(job_of("fc-24", 1, r) for r in others)]
    for job, found in zip(jobs, ours(*jobs), strict=True):
        check_same_numbers(found, theirs(job))
    assert sizes == [1] * 5
    assert stacked.train([], []) == []


@pytest.mark.slow
def test_rates_schedules_and_lengths_may_differ_within_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning rates are data of a step, so runs of one study that differ in them train together."""
    recipe, sizes = replace(RECIPES["adam"], iterations=60, evaluate_every=20), count_stacks(monkeypatch)
    recipes = [
        recipe,
        replace(recipe, lr=recipe.lr / 3),
        replace(recipe, lr_milestones=(20, 40), drop_factor=0.2),
        replace(recipe, warmup_iterations=30, iterations=40),
        replace(recipe, iterations=90),
    ]
    jobs = [job_of("fc-24", 0.3, r) for r in recipes]
    together = ours(*jobs)
    assert sizes == [len(jobs)]
    for job, found in zip(jobs, together, strict=True):
        check_same_numbers(found, theirs(job))
        alone = ours(job)[0]
        np.testing.assert_allclose(found.curve.training_loss, alone.curve.training_loss, rtol=1e-5)
    assert len({tuple(found.curve.training_loss) for found in together[:4]}) == 4


def test_an_interval_beyond_the_end_needs_no_memory() -> None:
    """The buffers of a stack hold the steps of the training, not those of an interval that never ends."""
    recipe = replace(SMALL["adam"], iterations=5, evaluate_every=5)
    jobs = [small_job(r, pruned_start(0.0)) for r in (recipe, replace(recipe, evaluate_every=10**12))]
    usual, endless = (stacked.train([job], [DATA])[0] for job in jobs)
    assert bits(endless) == bits(usual)


def test_a_long_interval_is_trained_in_parts_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(SMALL["adam"], iterations=20, evaluate_every=10)
    jobs = [small_job(recipe, pruned_start(0.0, seed=seed)) for seed in (0, 1)]
    whole = stacked.train(jobs, [DATA, DATA])
    monkeypatch.setattr(stack, "MAX_BUFFERED_STEPS", 3)
    for found, wanted in zip(stacked.train(jobs, [DATA, DATA]), whole, strict=True):
        assert bits(found) == bits(wanted)


@pytest.mark.parametrize("batch", [1, 63, 150])
def test_any_batch_size(batch: int) -> None:
    job = job_of(recipe=replace(RECIPES["adam"], batch_size=batch, iterations=5, evaluate_every=1))
    check_same_numbers(ours(job, job)[1], theirs(job))


# --- neighbors ---


@pytest.mark.slow
def test_a_replica_does_not_depend_on_its_neighbours() -> None:
    jobs = [job_of("fc-24", density) for density in (1, 0.3, 0.05)] + [replace(job_of("fc-24", 0.5), seed=1)]
    together = ours(*jobs)
    for job, found in zip(jobs, together, strict=True):
        alone = ours(job)[0]
        np.testing.assert_allclose(found.curve.training_loss, alone.curve.training_loss, rtol=1e-5)
        assert distance(found.end, alone.end) < 1e-4
    assert [bits(outcome) for outcome in ours(*jobs)] == [bits(outcome) for outcome in together]
    turned = ours(*jobs[::-1])[::-1]
    assert all(distance(a.end, b.end) < 1e-4 for a, b in zip(turned, together, strict=True))


@pytest.mark.slow
def test_a_diverging_replica_leaves_the_others_alone() -> None:
    fine = job_of("fc-24", 0.3, replace(RECIPES["sgd"], iterations=60, evaluate_every=20))
    start = start_of("fc-24", 0.3)
    # Outputs of 1e20 at first; a step later of 1e40.
    huge = {n: w * 1e20 if n == "fc1.weight" else w for n, w in start.weights.items()}
    wild = replace(fine, start=replace(start, weights=huge))
    broken = replace(fine, start=replace(start, unmasked={n: b * float("nan") for n, b in start.unmasked.items()}))
    found = ours(fine, wild, replace(fine, seed=2), broken)
    for job, outcome in zip((fine, wild, replace(fine, seed=2), broken), found, strict=True):
        wanted = theirs(job)
        assert (outcome.status, outcome.metrics["diverged_at"]) == (wanted.status, wanted.metrics["diverged_at"])
    assert [outcome.status for outcome in found] == ["finished", "diverged", "finished", "diverged"]
    assert found[1].metrics["diverged_at"] == 2
    assert found[3].metrics["diverged_at"] == 0
    for job, outcome in ((fine, found[0]), (replace(fine, seed=2), found[2])):
        check_same_numbers(outcome, theirs(job))


@pytest.mark.parametrize("frozen", [-0.0, 0.25, 1e-30])
def test_frozen_values_keep_their_bits_under_any_gradient(frozen: float) -> None:
    dense = start_of("fc-24", 0.3)
    start = replace(dense, weights={n: w.where(dense.masks[n], torch.tensor(frozen)) for n, w in dense.weights.items()})
    for recipe in (Recipe("sgd", 1e30, 60, 30, 10, momentum=0.9), Recipe("adam", 1e-2, 60, 30, 10, weight_decay=0.1)):
        jobs = [replace(job_of("fc-24", recipe=recipe), start=start), job_of("fc-24", 1, recipe)]
        outcome = ours(*jobs)[0]
        assert outcome.status == ("diverged" if recipe.lr > 1 else "finished")
        for name, mask in start.masks.items():
            before, after = start.weights[name].view(torch.int32), outcome.end.weights[name].view(torch.int32)
            assert torch.equal(before[~mask], after[~mask])


def test_replicas_are_evaluated_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One evaluation for all replicas that pause; at the end one per replica, with its best weights."""
    looks: list[int] = []
    measure = Stack.evaluate

    def counted(self, places, *given):  # type: ignore[no-untyped-def]
        looks.append(len(places))
        return measure(self, places, *given)

    monkeypatch.setattr(Stack, "evaluate", counted)
    recipe = replace(RECIPES["adam"], iterations=30, evaluate_every=10)
    ours(*[job_of("fc-24", density, recipe) for density in (1, 0.3, 0.1)])
    assert looks[:5] == [3] * 5
    assert looks[5:] == [1] * len(looks[5:])


# --- resumed from a checkpoint ---


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_is_bit_identical(recipe: str) -> None:
    snapshots: frozenset[Snapshot] = frozenset({3, 20, 47, "gradient", "lowest_validation_loss"})
    job = replace(
        job_of("fc-24", recipe=replace(RECIPES[recipe], iterations=50, evaluate_every=10)), snapshots=snapshots
    )
    whole = ours(job)[0]
    for kill_after in (1, 4):
        killed = replace(job, checkpointer=Memory(kill_after))
        with pytest.raises(Killed):
            ours(killed)
        assert bits(ours(killed)[0]) == bits(whole)


def test_all_replicas_save_before_one_ends_the_training() -> None:
    job = job_of("fc-24", recipe=replace(RECIPES["adam"], iterations=50, evaluate_every=10))
    memories = [Memory(2), Memory(2), Memory(None)]
    jobs = [replace(job, seed=seed, checkpointer=memory) for seed, memory in enumerate(memories)]
    wholes = ours(*[replace(job, seed=seed) for seed in range(3)])
    with pytest.raises(Killed):
        ours(*jobs)
    assert [memory.count for memory in memories] == [2, 2, 2]
    for outcome, whole in zip(ours(*jobs), wholes, strict=True):
        assert bits(outcome) == bits(whole)


# --- convolutions ---


@pytest.mark.parametrize("way", CONV_ALGORITHMS)
@pytest.mark.parametrize("shape", [(3, 4, 2, 5, 6, 7), (1, 2, 1, 8, 4, 3)])
def test_every_algorithm_is_one_convolution_per_replica(way: str, shape: tuple[int, ...]) -> None:
    replicas, count, channels, outputs, height, width = shape
    torch.manual_seed(0)
    x = torch.randn(replicas, count, channels, height, width, dtype=torch.float64, requires_grad=True)
    w = torch.randn(replicas, outputs, channels, 3, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(replicas, outputs, dtype=torch.float64, requires_grad=True)
    found = conv3x3(x, w, b, way)
    wanted = torch.stack([conv2d(x[r], w[r], b[r], padding=1) for r in range(replicas)])
    torch.testing.assert_close(found, wanted)
    toward = torch.randn_like(wanted)
    for ours_, theirs_ in zip(
        torch.autograd.grad(found, (x, w, b), toward), torch.autograd.grad(wanted, (x, w, b), toward), strict=True
    ):
        torch.testing.assert_close(ours_, theirs_)


@pytest.mark.slow
@pytest.mark.parametrize("way", CONV_ALGORITHMS)
def test_conv2_agrees_with_the_reference(way: str) -> None:
    of = data((2, 8, 8), 10, train=60)
    layers = architecture("conv2", (2, 8, 8), 10)
    recipe = Recipe("sgd", 0.02, 10, 8, 4, momentum=0.9)
    jobs = [
        TrainingJob(sequential_network(layers), initial_state(layers, seed), recipe, seed=min(seed, 1))
        for seed in range(3)
    ]
    found = stacked.train(jobs, [of] * 3, algorithms=dict.fromkeys(("conv1", "conv2"), way))
    for job, outcome in zip(jobs, found, strict=True):
        wanted = theirs(job, of)
        check_same_numbers(outcome, wanted)
        assert distance(outcome.end, wanted.end) < 1e-5


# --- precision ---


@pytest.mark.parametrize(("network", "algorithm"), [("fc-24", ""), *(("conv2", name) for name in CONV_ALGORITHMS)])
def test_gradients_are_results_of_products_at_every_precision(network: str, algorithm: str) -> None:
    """As the docstring of `device` says: float32 tensors, at bfloat16 with values that bfloat16 has."""
    layers, of = architecture(network, (1, 8, 8), 10), data((1, 8, 8), 10, train=20)
    start = initial_state(layers, 0)
    tensors = {n: torch.stack([t, t]).requires_grad_() for n, t in {**start.weights, **start.unmasked}.items()}
    pixels = torch.from_numpy(of.train_images).float()[None] / 255
    algorithms = dict.fromkeys(("conv1", "conv2"), algorithm)
    for precision, is_rounded in (("float32", False), ("bfloat16", True)):
        with autocast_factory(precision, torch.device("cpu"))():  # type: ignore[arg-type]
            logits = forward(layers, tensors, pixels, group_batches("aa"), algorithms)
        loss = logits.float().logsumexp(2).sum()
        for name, gradient in zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True):
            assert gradient.dtype == torch.float32
            assert gradient.any()
            assert torch.equal(gradient, gradient.bfloat16().float()) is is_rounded, name


# --- shared mini-batches ---


@pytest.mark.parametrize(
    ("batch_keys", "groups"),
    [
        ("a", [BatchGroup(0, 1, 0, 1)]),
        ("aaa", [BatchGroup(0, 1, 0, 3)]),
        ("abc", [BatchGroup(0, 3, 0, 1)]),
        ("aabbccd", [BatchGroup(0, 3, 0, 2), BatchGroup(3, 1, 6, 1)]),
        ("abbcca", [BatchGroup(0, 1, 0, 1), BatchGroup(1, 2, 1, 2), BatchGroup(3, 1, 5, 1)]),
    ],
)
def test_groups_of_replicas_that_share_their_batch(batch_keys: str, groups: list[BatchGroup]) -> None:
    assert group_batches(batch_keys) == groups
    assert sum(group.num_batches * group.replicas_per_batch for group in groups) == len(batch_keys)


def test_jobs_of_one_seed_share_their_batch_and_others_do_not() -> None:
    """Two seeds and two data sets of unequal counts: every replica agrees with the reference."""
    recipe = replace(RECIPES["adam"], iterations=10, evaluate_every=5)
    jobs = [replace(job_of("fc-24", density, recipe), seed=seed) for seed in (0, 4, 0) for density in (1, 0.2)][:5]
    of = [images(), images(), other_images(), images(), images()]
    for job, d, outcome in zip(jobs, of, stacked.train(jobs, of), strict=True):
        check_same_numbers(outcome, theirs(job, d))


# --- precision, devices ---


@pytest.mark.slow
def test_bfloat16_is_near_and_keeps_float32_weights() -> None:
    jobs = [
        job_of("fc-70-30", density, replace(RECIPES["adam"], iterations=60, evaluate_every=20)) for density in (1, 0.3)
    ]
    for job, found in zip(jobs, stacked.train(jobs, [images()] * 2, precision="bfloat16"), strict=True):
        wanted = theirs(job)
        assert all(w.dtype == torch.float32 for w in found.end.weights.values())
        np.testing.assert_allclose(found.curve.validation_loss, wanted.curve.validation_loss, rtol=0.03)
        assert distance(found.end, wanted.end) > 1e-4, "float32 after all"
        for name, mask in job.start.masks.items():
            assert torch.equal(found.end.weights[name][~mask], job.start.weights[name][~mask])


def test_a_precision_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="tf32 is a number format of GPUs: on cpu allowed are float32 and bfloat16"):
        stacked.train([job_of()], [images()], precision="tf32")
    with pytest.raises(UserError, match=r"half'? is not a precision\. Allowed: float32, tf32, bfloat16"):
        stacked.train([job_of()], [images()], precision="half")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
@pytest.mark.parametrize("network", ["fc-24", "conv2"])
def test_a_gpu_gives_nearly_the_same_numbers_and_holds_what_is_pruned(network: str) -> None:
    of = data((1, 8, 8), 10, train=200)
    layers = architecture(network, (1, 8, 8), 10)
    recipe = Recipe("sgd", 0.02, 20, 40, 10, momentum=0.9)
    jobs = [
        TrainingJob(
            sequential_network(layers),
            initial_state(layers, s),
            recipe,
            seed=s // 2,
            snapshots=frozenset({"gradient", 23}),
        )
        for s in range(5)
    ]
    rng = np.random.default_rng(0)
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < 0.5) for n, w in jobs[0].start.weights.items()}
    jobs = [replace(job, start=replace(job.start, masks=masks)) for job in jobs]
    for job, found in zip(jobs, stacked.train(jobs, [of] * 5, "cuda"), strict=True):
        check_same_numbers(found, theirs(job, of))
        for name, mask in masks.items():
            assert found.end.weights[name].device.type == "cpu"
            assert torch.equal(found.end.weights[name][~mask], job.start.weights[name][~mask])
