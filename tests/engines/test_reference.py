"""The reference engine against NumPy: arithmetic, frozen weights, early stopping, snapshots, divergence."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import numpy_training as by_hand
from helpers.trainings import (
    LAYERS,
    RECIPES,
    REFERENCE_RECIPES,
    batches,
    bits,
    data,
    flat,
    job,
    parameters,
    pruned_start,
)
from torch import Tensor, nn

from supermask.core.recipe import Recipe
from supermask.core.types import InitialState, SplitData
from supermask.engines.job import TrainingJob
from supermask.engines.reference import train, train_module
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, build_module, initial_state

DATA = data()
ALL_RECIPES = RECIPES | REFERENCE_RECIPES
NOISY = Recipe("sgd", 0.7, 5, 60, 7, momentum=0.8)
"""Large steps: the validation loss rises and falls."""


def masks_of(start: InitialState) -> dict[str, np.ndarray]:
    return {n: m.numpy() for n, m in start.masks.items()}


# --- arithmetic ---


@pytest.mark.parametrize("frozen", [0.0, None], ids=["frozen at zero", "frozen at initial values"])
@pytest.mark.parametrize("recipe", ALL_RECIPES.values(), ids=ALL_RECIPES)
def test_one_step_agrees_with_plain_numpy(recipe: Recipe, frozen: float | None) -> None:
    small_job = job(replace(recipe, iterations=1), pruned_start(frozen))
    expected, _ = by_hand.train(
        parameters(small_job.start.state), masks_of(small_job.start), recipe, batches(small_job, DATA, 1)
    )
    actual = parameters(train([small_job], [DATA])[0].end)
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=1e-5, atol=1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0.0, None], ids=["frozen at zero", "frozen at initial values"])
@pytest.mark.parametrize("recipe", ALL_RECIPES.values(), ids=ALL_RECIPES)
def test_fifty_steps_agree_with_plain_numpy(recipe: Recipe, frozen: float | None) -> None:
    small_job = job(replace(recipe, evaluate_every=1), pruned_start(frozen))
    expected, losses = by_hand.train(
        parameters(small_job.start.state),
        masks_of(small_job.start),
        recipe,
        batches(small_job, DATA, recipe.iterations),
    )
    outcome = train([small_job], [DATA])[0]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    np.testing.assert_allclose(outcome.curve.training_loss[1:], losses, rtol=1e-3)
    loss, accuracy = by_hand.loss_and_accuracy(expected, flat(DATA.test_images, DATA), DATA.test_labels)
    assert outcome.metrics["final_test_loss"] == pytest.approx(loss, rel=1e-3)
    assert outcome.metrics["final_test_accuracy"] == pytest.approx(accuracy)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0.0, -0.0, 0.5, None], ids=["0", "-0", "0.5", "initial values"])
@pytest.mark.parametrize("recipe", ALL_RECIPES.values(), ids=ALL_RECIPES)
def test_pruned_weights_stay_bit_identical_and_biases_train(recipe: Recipe, frozen: float | None) -> None:
    start = pruned_start(frozen)
    outcome = train([job(recipe, start)], [DATA])[0]
    for name, mask in start.masks.items():
        before, after = start.weights[name].view(torch.int32), outcome.end.weights[name].view(torch.int32)
        assert torch.equal(before[~mask], after[~mask])
        assert (before[mask] != after[mask]).float().mean() > 0.5
        bias = name.replace("weight", "bias")
        assert not torch.equal(outcome.end.unmasked[bias], start.unmasked[bias])
        kept_state = outcome.optimizer_state[name]
        assert set(kept_state) == ({"exp_avg", "exp_avg_sq"} if recipe.optimizer != "sgd" else set(kept_state))
        assert bool(kept_state) == (recipe.optimizer != "sgd" or recipe.momentum > 0)
        for values in kept_state.values():
            assert values[mask].any()
            assert not values[~mask].view(torch.int32).any()


def test_pruned_weights_stay_bit_identical_when_training_diverges() -> None:
    start = pruned_start(0.25)
    outcome = train([job(Recipe("sgd", 1e30, 5, 40, 20), start)], [DATA])[0]
    assert outcome.status == "diverged"
    for name, mask in start.masks.items():
        assert torch.equal(outcome.end.weights[name][~mask], start.weights[name][~mask])
        assert outcome.end.weights[name][mask].isnan().any()


# --- evaluation and early stopping ---


def test_evaluations_are_at_the_start_at_multiples_and_at_the_end() -> None:
    for iterations, expected in ((20, [0, 7, 14, 20]), (21, [0, 7, 14, 21]), (3, [0, 3])):
        outcome = train([job(Recipe("adam", 0.01, 5, iterations, 7))], [DATA])[0]
        assert outcome.curve.iterations == expected
        assert all(len(column) == len(expected) for column in vars(outcome.curve).values())
        assert np.isnan(outcome.curve.training_loss[0])
        assert outcome.metrics["final_validation_loss"] == outcome.curve.validation_loss[-1]


def test_early_stopping_equals_a_loop_over_the_trajectory() -> None:
    every = frozenset(range(7, 61, 7))
    small_job = job(NOISY, pruned_start(0.0), snapshots=every | {60, "lowest_validation_loss"})
    outcome = train([small_job], [DATA])[0]
    at = {0: small_job.start.state, **{p: s for p, s in outcome.snapshots.items() if isinstance(p, int)}}
    validation = flat(DATA.validation_images, DATA), DATA.validation_labels
    test = flat(DATA.test_images, DATA), DATA.test_labels

    best, lowest = -1, np.inf
    for i, iteration in enumerate(outcome.curve.iterations):
        loss, accuracy = by_hand.loss_and_accuracy(parameters(at[iteration]), *validation)
        assert outcome.curve.validation_loss[i] == pytest.approx(loss, rel=1e-5)
        assert outcome.curve.validation_accuracy[i] == pytest.approx(accuracy)
        if loss < lowest:
            best, lowest = iteration, loss
    rising = np.diff(outcome.curve.validation_loss) > 0
    assert rising.any()
    assert best != 60

    metrics = outcome.metrics
    assert metrics["early_stop_iteration"] == best
    assert metrics["early_stop_validation_loss"] == pytest.approx(lowest, rel=1e-5)
    for name, iteration in (("early_stop", best), ("final", 60)):
        loss, accuracy = by_hand.loss_and_accuracy(parameters(at[iteration]), *test)
        assert metrics[f"{name}_test_loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics[f"{name}_test_accuracy"] == pytest.approx(accuracy)
    assert metrics["initial_validation_loss"] == outcome.curve.validation_loss[0]
    assert bits(replace(outcome, end=outcome.snapshots["lowest_validation_loss"])) == bits(
        replace(outcome, end=at[best])
    )


def test_of_equal_validation_losses_the_first_counts() -> None:
    outcome = train([job(Recipe("sgd", 0.0, 5, 20, 5))], [DATA])[0]
    assert len(set(outcome.curve.validation_loss)) == 1
    assert outcome.metrics["early_stop_iteration"] == 0


def test_evaluations_use_all_validation_images_and_test_images_only_after_training() -> None:
    """Test images are used once for each of the two evaluated states, if they differ."""
    module, seen = build_module(LAYERS), []

    def record(part: nn.Module, given: tuple[Tensor]) -> None:
        seen.append((part.training, given[0].clone()))

    module.register_forward_pre_hook(record)
    outcome = train_module(module, job(Recipe("adam", 0.01, 5, 20, 7)), DATA)
    steps = [i for i, (training, _) in enumerate(seen) if training]
    assert len(steps) == 20
    assert all(len(seen[i][1]) == 5 for i in steps)
    evaluated = torch.cat([images for training, images in seen if not training]).flatten(1).numpy()
    validation, test = (flat(x, DATA) for x in (DATA.validation_images, DATA.test_images))
    at_the_end = outcome.metrics["early_stop_iteration"] == outcome.curve.iterations[-1]
    tested = [test] if at_the_end else [test, test]
    expected = np.concatenate([validation] * len(outcome.curve.iterations) + tested)
    np.testing.assert_allclose(evaluated, expected, rtol=1e-6)
    assert steps[-1] < len(seen) - 2


# --- snapshots, late starts ---


@pytest.mark.parametrize("recipe", [RECIPES["adam"], RECIPES["schedule"]], ids=["adam", "schedule"])
def test_a_snapshot_equals_the_end_of_a_shorter_run(recipe: Recipe) -> None:
    outcome = train([job(recipe, pruned_start(), snapshots=frozenset({1, 10, 23, 50}))], [DATA])[0]
    assert outcome.snapshots.keys() == {1, 10, 23, 50}
    for k, state in outcome.snapshots.items():
        assert isinstance(k, int)
        shorter = train([job(replace(recipe, iterations=k), pruned_start())], [DATA])[0]
        assert bits(replace(shorter, end=state)) == bits(shorter)


def test_snapshots_change_nothing_else() -> None:
    plain = train([job(NOISY)], [DATA])[0]
    asked = train([job(NOISY, snapshots=frozenset({3, 7, 33, 60, "gradient", "lowest_validation_loss"}))], [DATA])[0]
    assert asked.snapshots.keys() == {3, 7, 33, 60, "gradient", "lowest_validation_loss"}
    assert bits(replace(asked, snapshots={})) == bits(plain)
    assert plain.snapshots == {}


def test_the_gradient_is_that_of_the_first_batch_and_includes_pruned_weights() -> None:
    small_job = job(RECIPES["sgd"], pruned_start(), snapshots=frozenset({"gradient"}))
    actual = train([small_job], [DATA])[0].snapshots["gradient"].weights
    expected = by_hand.gradients(parameters(small_job.start.state), *batches(small_job, DATA, 1)[0])
    assert actual.keys() == small_job.start.masks.keys()
    for name, values in actual.items():
        np.testing.assert_allclose(values.numpy(), expected[name], rtol=1e-4, atol=1e-7)
        assert values[~small_job.start.masks[name]].any()


@pytest.mark.parametrize("k", [10, 23])
def test_a_late_start_continues_data_order_and_learning_rate(k: int) -> None:
    recipe = Recipe(
        "sgd", 0.2, 5, 50, 10, weight_decay=0.01, lr_milestones=(20, 40), drop_factor=0.5, warmup_iterations=15
    )
    first = train([job(recipe, pruned_start(), snapshots=frozenset({k, 41}))], [DATA])[0]
    at_k = first.snapshots[k]
    late = InitialState(at_k.weights, pruned_start().masks, at_k.unmasked, first_iteration=k)
    again = train([job(recipe, late, snapshots=frozenset({k, 41}))], [DATA])[0]
    assert bits(replace(first, curve=again.curve, metrics={})) == bits(replace(again, metrics={}))
    assert again.curve.iterations == [k, *range(k - k % 10 + 10, 51, 10)]
    assert again.curve.validation_loss[1:] == first.curve.validation_loss[-len(again.curve.iterations) + 1 :]


def test_a_late_start_at_the_end_only_evaluates() -> None:
    start = pruned_start()
    outcome = train([job(RECIPES["sgd"], replace(start, first_iteration=50))], [DATA])[0]
    assert outcome.curve.iterations == [50]
    assert all(torch.equal(outcome.end.weights[n], w) for n, w in start.weights.items())


# --- divergence ---


def first_broken_loss(small_job: TrainingJob, limit: int) -> int:
    """The first step, counted from 1, whose loss is not finite: an eager loop with plain SGD."""
    module = build_module(small_job.layers)
    module.load_state_dict({**small_job.start.weights, **small_job.start.unmasked})
    for i, (x, y) in enumerate(batches(small_job, DATA, limit)):
        loss = nn.functional.cross_entropy(module(torch.from_numpy(x).float()), torch.from_numpy(y))
        if not bool(loss.isfinite()):
            return i + 1
        for parameter, slope in zip(
            module.parameters(), torch.autograd.grad(loss, [*module.parameters()]), strict=True
        ):
            parameter.data.sub_(small_job.recipe.learning_rate(i) * slope)
    return 0


@pytest.mark.parametrize(
    ("recipe", "evaluated"),
    [
        (Recipe("sgd", 1e9, 5, 60, 60), [0]),
        (Recipe("sgd", 1e20, 5, 60, 60), [0]),
        (Recipe("sgd", 0.1, 5, 60, 5, lr_milestones=(11,), drop_factor=1e20), [0, 5, 10]),
        (Recipe("sgd", 0.1, 5, 60, 5, lr_milestones=(58,), drop_factor=1e20), list(range(0, 60, 5))),
    ],
)
def test_a_run_ends_at_the_first_loss_that_is_not_finite(recipe: Recipe, evaluated: list[int]) -> None:
    small_job = job(recipe, snapshots=frozenset({1, 7, 60, "lowest_validation_loss", "gradient"}))
    outcome = train([small_job], [DATA])[0]
    step = first_broken_loss(small_job, 60)
    assert step > 1
    assert (outcome.status, outcome.metrics["diverged_at"]) == ("diverged", step)
    assert outcome.curve.iterations == evaluated
    assert outcome.snapshots == {}
    known = {name for name, value in outcome.metrics.items() if value is not None}
    assert known == {"diverged_at", "initial_validation_loss", "initial_validation_accuracy"}
    json.dumps(outcome.metrics, allow_nan=False)


def test_a_validation_loss_that_is_not_finite_is_divergence() -> None:
    outcome = train([job(Recipe("sgd", 1e38, 5, 60, 1))], [DATA])[0]
    assert (outcome.status, outcome.metrics["diverged_at"]) == ("diverged", 1)
    assert outcome.curve.iterations == [0]


def test_an_initial_state_that_is_not_finite_is_not_trained() -> None:
    start = initial_state(LAYERS, 0)
    start.weights["fc2.weight"][0, 0] = float("inf")
    outcome = train([job(RECIPES["adam"], start)], [DATA])[0]
    assert (outcome.status, outcome.metrics["diverged_at"]) == ("diverged", 0)
    assert {value for name, value in outcome.metrics.items() if name != "diverged_at"} == {None}
    assert torch.equal(outcome.end.weights["fc1.weight"], start.weights["fc1.weight"])


# --- reproducibility, other networks, other devices ---


@pytest.mark.slow
def test_a_job_is_bit_identical_alone_and_beside_others() -> None:
    jobs = [job(RECIPES["adam"], pruned_start(0.0)), job(NOISY, snapshots=frozenset({11}))]
    others = [DATA, data(seed=1)]
    alone = [bits(train([j], [d])[0]) for j, d in zip(jobs, others, strict=True)]
    assert [bits(outcome) for outcome in train(jobs, others)] == alone
    assert [bits(outcome) for outcome in train(jobs, others)] == alone


def test_read_only_data_is_accepted() -> None:
    arrays = {name: a.copy() for name, a in vars(DATA).items() if isinstance(a, np.ndarray)}
    for array in arrays.values():
        array.flags.writeable = False
    assert bits(train([job(NOISY)], [SplitData(**arrays, max_pixel=16)])[0]) == bits(train([job(NOISY)], [DATA])[0])


@pytest.mark.slow
def test_conv2_learns_images_of_eight_by_eight() -> None:
    images = data((1, 8, 8), 10, train=300)
    layers = architecture("conv2", (1, 8, 8), 10)
    small_job = TrainingJob(
        sequential_network(layers), initial_state(layers, 0), Recipe("adam", 1e-3, 30, 30, 15), seed=0
    )
    outcome = train([small_job], [images])[0]
    assert outcome.status == "finished"
    before, after = outcome.metrics["initial_validation_accuracy"], outcome.metrics["early_stop_test_accuracy"]
    assert before is not None
    assert before < 0.5
    assert after is not None
    assert after > 0.9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")
def test_a_gpu_agrees_with_the_cpu_and_keeps_pruned_weights() -> None:
    small_job = job(replace(RECIPES["adam"], evaluate_every=1), pruned_start(), snapshots=frozenset({"gradient", 25}))
    here, there = train([small_job], [DATA])[0], train([small_job], [DATA], "cuda")[0]
    np.testing.assert_allclose(there.curve.training_loss, here.curve.training_loss, rtol=1e-3)
    assert there.snapshots.keys() == here.snapshots.keys()
    for name, mask in small_job.start.masks.items():
        assert there.end.weights[name].device.type == "cpu"
        assert torch.equal(there.end.weights[name][~mask], small_job.start.weights[name][~mask])
        assert not there.optimizer_state[name]["exp_avg"][~mask].any()
