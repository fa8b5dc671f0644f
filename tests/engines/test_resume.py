"""Killed runs that resume bit-identically, and modules that have more state than weights."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers.killed_training import Killed, Memory
from helpers.trainings import (
    CLASSES,
    KERNELS,
    RECIPES,
    REFERENCE_RECIPES,
    SkippingNetwork,
    batches,
    bits,
    data,
    job,
    normed_module,
    normed_start,
    pruned_start,
)
from torch import Tensor, nn

from supermask.core.recipe import Augmentation, Recipe
from supermask.core.types import InitialState, NetworkState, Snapshot, TrainingResult
from supermask.engines.job import NullCheckpointer, TrainingJob
from supermask.engines.reference import train, train_module
from supermask.store.checkpoint_tensors import check_checkpoint

DATA = data()
POINTS: frozenset[Snapshot] = frozenset({3, 20, 33, 47, 50, "gradient", "lowest_validation_loss"})


def network(small_job: TrainingJob) -> TrainingResult:
    return train([small_job], [DATA])[0]


def normed(small_job: TrainingJob) -> TrainingResult:
    return train_module(normed_module(), small_job, DATA)


AUGMENTED = replace(
    RECIPES["momentum"], augment=Augmentation(crop=1, flip=True, cutout=2), normalize="per_channel", schedule="cosine"
)

CASES: dict[str, tuple[Callable[[TrainingJob], TrainingResult], Recipe, InitialState]] = {
    **{name: (network, recipe, pruned_start()) for name, recipe in (RECIPES | REFERENCE_RECIPES).items()},
    "augmentation": (network, AUGMENTED, pruned_start()),
    "batch normalization, dropout and augmentation": (normed, AUGMENTED, normed_start()),
    "bfloat16": (network, replace(RECIPES["adam"], precision="bfloat16"), pruned_start()),
    "batch normalization and dropout, adam": (normed, RECIPES["adam"], normed_start()),
    "batch normalization and dropout, momentum": (normed, RECIPES["momentum with weight decay"], normed_start()),
}


@cache
def whole_run(case: str) -> TrainingResult:
    """Return the run without a kill. Tests only read it."""
    training, recipe, start = CASES[case]
    whole = training(job(recipe, start, snapshots=POINTS))
    assert whole.snapshots.keys() == POINTS
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kill_after", [1, 3, 5])
def test_a_run_killed_after_a_checkpoint_resumes_bit_identically(case: str, kill_after: int) -> None:
    training, recipe, start = CASES[case]
    memory = Memory(kill_after)
    killed = job(recipe, start, snapshots=POINTS, checkpointer=memory)
    with pytest.raises(Killed):
        training(killed)
    assert bits(training(killed)) == bits(whole_run(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_repeatedly_resumes_bit_identically(case: str) -> None:
    training, recipe, start = CASES[case]
    memory, kills = Memory(1), 0
    chased = job(recipe, start, snapshots=POINTS, checkpointer=memory)
    while True:
        memory.count = 0
        try:
            outcome = training(chased)
            break
        except Killed:
            kills += 1
    assert kills == 5
    assert bits(outcome) == bits(whole_run(case))


def assert_resumes(module: nn.Module, kernels: tuple[str, ...], recipe: Recipe) -> None:
    """Assert that a killed run of a dense module resumes bit-identically, from a checkpoint that passes its check."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights = {name: state.pop(name) for name in kernels}
    start = InitialState(weights, {n: torch.ones_like(w, dtype=torch.bool) for n, w in weights.items()}, state)
    memory = Memory(2)
    killed = job(recipe, start, snapshots=frozenset({1, 3}), checkpointer=memory)
    with pytest.raises(Killed):
        train_module(copy.deepcopy(module), killed, DATA)
    saved = memory.load()
    assert saved is not None
    check_checkpoint(*saved, start, recipe)
    whole = train_module(copy.deepcopy(module), replace(killed, checkpointer=NullCheckpointer()), DATA)
    assert bits(train_module(module, killed, DATA)) == bits(whole)
    assert memory.asked == 2 + 3


@pytest.mark.parametrize("name", ["logits", "state", "a/b", "point/1"])
def test_a_layer_may_have_a_name_of_the_checkpoint(name: str) -> None:
    module = nn.Sequential(OrderedDict({"flatten": nn.Flatten(), name: nn.Linear(12, CLASSES)}))
    assert_resumes(module, (f"{name}.weight",), RECIPES["adam"])


@pytest.mark.parametrize("name", ["adam", "adamw", "momentum"])
def test_a_layer_may_have_no_gradient_at_some_steps(name: str) -> None:
    """Adam counts the steps of each tensor, of which the skipped layer takes fewer."""
    torch.manual_seed(0)
    kernels = ("fc1.weight", "fc2.weight", "fc3.weight")
    assert_resumes(SkippingNetwork(12), kernels, (RECIPES | REFERENCE_RECIPES)[name])


def test_checkpoints_do_not_change_the_result() -> None:
    memory = Memory(None, every=2)
    outcome = network(job(RECIPES["adam"], checkpointer=memory))
    assert (memory.asked, memory.count) == (5, 2)
    assert bits(outcome) == bits(network(job(RECIPES["adam"], checkpointer=NullCheckpointer())))


def test_a_late_start_resumes() -> None:
    start = replace(pruned_start(), first_iteration=23)
    late = job(RECIPES["schedule"], start, snapshots=frozenset({23, 29, 47}), checkpointer=Memory(2))
    with pytest.raises(Killed):
        network(late)
    assert bits(network(late)) == bits(network(replace(late, checkpointer=NullCheckpointer())))


@pytest.mark.slow
@pytest.mark.parametrize(("point", "resumes"), [(13, False), ("gradient", False), (20, False), (21, True), (50, True)])
def test_a_checkpoint_that_lacks_a_due_snapshot_is_not_resumed_from(point: Snapshot, resumes: bool) -> None:
    memory = Memory(2)
    with pytest.raises(Killed):
        network(job(RECIPES["adam"], checkpointer=memory))
    asked_later = job(RECIPES["adam"], snapshots=frozenset({point}), checkpointer=memory)
    outcome = network(asked_later)
    assert memory.asked == 2 + (3 if resumes else 5)
    assert outcome.snapshots.keys() == {point}
    assert bits(outcome) == bits(network(replace(asked_later, checkpointer=NullCheckpointer())))


def test_a_diverged_run_saves_no_checkpoint() -> None:
    memory = Memory(None)
    outcome = network(job(Recipe("sgd", 1e38, 5, 50, 1), checkpointer=memory))
    assert (outcome.status, outcome.metrics["diverged_at"]) == ("diverged", 1)
    assert memory.saved is None


# --- any module ---


def test_batch_normalization_equals_a_plain_loop() -> None:
    start, recipe = normed_start(), Recipe("sgd", 0.1, 5, 20, 5)
    outcome = train_module(without_dropout(), job(recipe, start, snapshots=frozenset({"gradient"})), DATA)
    module, masks = without_dropout(), start.masks
    module.load_state_dict({**start.weights, **start.unmasked})
    for x, y in batches(job(recipe), DATA, 20):
        loss = nn.functional.cross_entropy(module(torch.from_numpy(x).float()), torch.from_numpy(y))
        slopes = torch.autograd.grad(loss, [*module.parameters()])
        for (name, parameter), slope in zip(module.named_parameters(), slopes, strict=True):
            parameter.data.sub_(0.1 * slope * masks.get(name, torch.tensor(1.0)))
    actual = {**outcome.end.weights, **outcome.end.unmasked}
    expected = module.state_dict()
    assert actual.keys() == expected.keys()
    assert int(actual["norm.num_batches_tracked"]) == 20
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], values, rtol=1e-4, atol=1e-6)
    assert outcome.metrics["final_validation_loss"] == pytest.approx(loss_in(module.eval()), rel=1e-4)
    for name in KERNELS:
        assert torch.equal(actual[name][~masks[name]], start.weights[name][~masks[name]])


def without_dropout() -> nn.Sequential:
    module = normed_module()
    module.dropout = nn.Identity()
    return module


def loss_in(module: nn.Module) -> float:
    with torch.no_grad():
        images = torch.from_numpy(DATA.validation_images).float() / DATA.max_pixel
        return float(nn.functional.cross_entropy(module(images), torch.from_numpy(DATA.validation_labels)))


def test_snapshots_change_neither_buffers_nor_draws() -> None:
    asked = normed(job(RECIPES["adam"], normed_start(), snapshots=POINTS))
    plain = normed(job(RECIPES["adam"], normed_start()))
    assert bits(replace(asked, snapshots={})) == bits(plain)


def test_a_module_in_eval_mode_is_trained_in_train_mode() -> None:
    small_job = job(RECIPES["adam"], normed_start(), snapshots=POINTS)
    assert bits(train_module(normed_module().eval(), small_job, DATA)) == bits(normed(small_job))


def test_dropout_depends_on_seed_and_iteration_and_restores_the_generator() -> None:
    first, at_20 = dropped(0)
    torch.manual_seed(1)
    assert dropped(0)[0] == first
    assert dropped(1)[0] != first
    assert len(set(first)) == len(first)
    late, _ = dropped(0, replace(normed_start(), weights=at_20.weights, unmasked=at_20.unmasked, first_iteration=20))
    assert late == first[20:]


class RecordingDropout(nn.Dropout):
    """Records the draw of each training step."""

    def __init__(self) -> None:
        super().__init__(0.3)
        self.seen: list[bytes] = []

    def forward(self, x: Tensor) -> Tensor:
        kept = super().forward(torch.ones_like(x))
        if self.training:
            self.seen.append(kept.numpy().tobytes())
        return x * kept


def dropped(seed: int, start: InitialState | None = None) -> tuple[list[bytes], NetworkState]:
    """Dropout draws of each training step, and the network after iteration 20."""
    module, dropout = normed_module(), RecordingDropout()
    module.dropout = dropout
    recipe = Recipe("sgd", 0.1, 5, 30, 10)
    small_job = replace(job(recipe, start or normed_start(), snapshots=frozenset({20})), seed=seed)
    generator_before = torch.get_rng_state()
    outcome = train_module(module, small_job, DATA)
    assert torch.equal(torch.get_rng_state(), generator_before)
    return dropout.seen, outcome.snapshots[20]


# --- denormal numbers ---


@pytest.mark.parametrize("flushed_before", [False, True])
def test_denormals_are_zero_during_training_and_as_before_afterwards(flushed_before: bool) -> None:
    module, seen = without_dropout(), []
    module.register_forward_hook(lambda *_: seen.append(tiny_is_zero()))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.set_flush_denormal(flushed_before)
        train_module(module, job(RECIPES["adam"], normed_start()), DATA)
        after = tiny_is_zero()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    assert set(seen) == {True}
    assert after == flushed_before


def tiny_is_zero() -> bool:
    return float(torch.full((1,), 1e-40).mul(1.0).item()) == 0.0


def test_a_checkpoint_of_another_format_is_not_resumed_from() -> None:
    memory = Memory(1)
    killed = job(RECIPES["adam"], checkpointer=memory)
    with pytest.raises(Killed):
        network(killed)
    assert memory.saved is not None
    facts = {k: v for k, v in json.loads(memory.saved[0]).items() if k != "layout"}
    memory.saved = json.dumps(facts), {"module/fc1.weight": np.zeros(3)}
    assert bits(network(killed)) == bits(network(replace(killed, checkpointer=NullCheckpointer())))
