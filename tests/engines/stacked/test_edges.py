"""Edge cases of the stacked engine: ties, all weights pruned, divergence, large batches, late starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.trainings import CLASSES, LAYERS, RECIPES, SHAPE, data, job, pruned_start

from supermask.core.types import InitialState, SplitData
from supermask.engines import reference, stacked
from supermask.engines.job import TrainingJob
from supermask.engines.reference import flush_denormals
from supermask.engines.stacked import stack
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state

DATA, OTHER = data(), data(seed=1)


@pytest.fixture(autouse=True)
def tiny() -> Iterator[None]:
    with flush_denormals():
        yield


def check(jobs: list[TrainingJob], of: list[SplitData]) -> None:
    """Every replica agrees with the reference engine and keeps its frozen weights bit-identical."""
    for made, d, found in zip(jobs, of, stacked.train(jobs, of), strict=True):
        wanted = reference.train([made], [d])[0]
        assert (found.status, found.metrics["diverged_at"]) == (wanted.status, wanted.metrics["diverged_at"])
        assert found.curve.iterations == wanted.curve.iterations
        assert found.curve.validation_accuracy == wanted.curve.validation_accuracy
        np.testing.assert_allclose(found.curve.training_loss, wanted.curve.training_loss, rtol=1e-5)
        np.testing.assert_allclose(found.curve.validation_loss, wanted.curve.validation_loss, rtol=1e-5)
        for name, mask in made.start.masks.items():
            before, after = made.start.weights[name].view(torch.int32), found.end.weights[name].view(torch.int32)
            assert torch.equal(after[~mask], before[~mask])
        if found.status == "finished":
            for name, moments in wanted.optimizer_state.items():
                for key, moment in moments.items():
                    torch.testing.assert_close(found.optimizer_state[name][key], moment, rtol=1e-3, atol=1e-6)


def all_zero(start: InitialState) -> InitialState:
    weights, others = ({n: torch.zeros_like(t) for n, t in part.items()} for part in (start.weights, start.unmasked))
    return replace(start, weights=weights, unmasked=others)


def test_the_first_of_equal_logits_counts() -> None:
    jobs = [job(RECIPES["sgd"], all_zero(initial_state(LAYERS, 0))), job(RECIPES["sgd"])]
    check(jobs, [DATA] * 2)
    first = float((DATA.validation_labels == 0).mean())
    assert stacked.train(jobs, [DATA] * 2)[0].curve.validation_accuracy[0] == first


def test_everything_pruned_beside_nothing_pruned() -> None:
    dense = initial_state(LAYERS, 0)
    none = {n: torch.zeros_like(w, dtype=torch.bool) for n, w in dense.weights.items()}
    recipe = RECIPES["adam with weight decay"]
    check([job(recipe, replace(dense, masks=none)), job(recipe), job(recipe, all_zero(dense))], [DATA] * 3)


@pytest.mark.parametrize("batch", [63, 64, 200])
def test_a_batch_as_large_as_the_data_or_larger(batch: int) -> None:
    recipe = replace(RECIPES["adam"], batch_size=batch, iterations=12, evaluate_every=5)
    check([job(recipe), job(recipe, pruned_start(0.25))], [DATA] * 2)


def test_a_hundred_classes() -> None:
    layers, of = architecture("fc-8-6", SHAPE, 100), data(SHAPE, 100)
    check(
        [TrainingJob(sequential_network(layers), initial_state(layers, s), RECIPES["adam"], seed=s) for s in range(3)],
        [of] * 3,
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["adam", "momentum with weight decay", "schedule"])
def test_late_starts_some_with_shared_batches(recipe: str) -> None:
    """Starts between and at evaluations, one before the end and at the end; two seeds, two data sets."""
    start = pruned_start()
    firsts, of = (0, 10, 10, 10, 23, 49, 50), [DATA, DATA, OTHER, DATA, OTHER, DATA, OTHER]
    late = [job(RECIPES[recipe], replace(start, first_iteration=first)) for first in firsts]
    check(late, of)
    check([replace(one, seed=r % 2) for r, one in enumerate(late)], of)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e10, 1e19, 1e38, float("nan")])
def test_a_replica_that_diverges_within_an_interval(scale: float) -> None:
    start = pruned_start(0.25)
    broken = replace(start, weights={n: w * scale for n, w in start.weights.items()})
    recipe = RECIPES["momentum with weight decay"]
    jobs = [job(recipe), job(recipe, broken), job(recipe, start), job(recipe, replace(broken, first_iteration=13))]
    check(jobs, [DATA] * 4)
    assert "diverged" in [outcome.status for outcome in stacked.train(jobs, [DATA] * 4)]


@pytest.mark.slow
@pytest.mark.parametrize("images_at_once", [1, 4, 20, 21])
def test_evaluation_in_small_batches(images_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(DATA.validation_labels) == 21
    monkeypatch.setattr(stack, "EVALUATION_BYTES", {"cpu": images_at_once * 4 * 2 * max(8, 6, CLASSES)})
    check([job(RECIPES["sgd"]), job(RECIPES["sgd"], pruned_start())], [DATA] * 2)
