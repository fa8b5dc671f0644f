"""Modules in the stacked engine against the reference engine, and the check that refuses modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.killed_training import Killed, Memory
from helpers.pretend_gpu import pretend_gpu
from helpers.small_studies import small_plan, train_plan
from helpers.stacked_jobs import check_same_numbers
from helpers.trainings import bits, data, job
from torch import Tensor, nn

from supermask.core.certificate import certify
from supermask.core.learned_masks import MaskLearning, initial_mask_state
from supermask.core.recipe import UNTRAINED, Augmentation, ChannelStatistics, Recipe
from supermask.core.rng import child_streams
from supermask.core.types import InitialState, SplitData, TrainingResult
from supermask.engines import reference, reference_masks, stacked
from supermask.engines.augmentation import InputPipeline
from supermask.engines.job import BatchSampler, TrainingJob
from supermask.engines.selection import EngineChoice, select_engine
from supermask.engines.stacked.modules import module_obstacle
from supermask.engines.stacked.stack import Stack
from supermask.networks.examination import examine_module
from supermask.networks.network import Network
from supermask.networks.registry import named_network
from supermask.store import Store

SHAPE, CLASSES = (1, 4, 4), 4
DATA, OTHER = data(SHAPE, CLASSES), data(SHAPE, CLASSES, seed=1)
RECIPES = {
    "momentum": Recipe("sgd", 0.05, 8, 12, 4, momentum=0.9, weight_decay=1e-3),
    "adam": Recipe("adam", 3e-3, 8, 12, 4),
}


class Residual(nn.Module):
    """A residual block, a scale of one number, a parameter that is held fixed, and a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again = self.conv2
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.shift = nn.Parameter(torch.full((4, 1, 1), 0.1), requires_grad=False)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = (x + self.scale * self.bn2(self.again(self.conv2(x)))).relu() + self.shift
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def module_network(make: Callable[[], nn.Module], name: str = "mine:Net") -> Network:
    return Network(name, examine_module(make, SHAPE, CLASSES, name), None, "own", make)


@cache
def residual() -> Network:
    return module_network(Residual, "mine:Residual")


def half_pruned(network: Network, seed: int = 0, frozen: float | None = None) -> InitialState:
    start, rng = network.initial_state(seed), np.random.default_rng(seed)
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < 0.5) for n, w in start.weights.items()}
    if frozen is None:
        return replace(start, masks=masks)
    return replace(start, masks=masks, weights={n: w * masks[n] for n, w in start.weights.items()})


def jobs_of(network: Network, recipe: Recipe) -> tuple[list[TrainingJob], list[SplitData]]:
    """Shared and own batches, two data sets, dense and pruned, a late start, snapshots."""
    jobs = [
        TrainingJob(network, network.initial_state(0), recipe, 0),
        TrainingJob(network, half_pruned(network, 0, 0.0), recipe, 0, frozenset({"gradient", 7})),
        TrainingJob(network, half_pruned(network, 1), recipe, 1),
        TrainingJob(network, replace(half_pruned(network, 2), first_iteration=5), recipe, 0),
    ]
    return jobs, [DATA, DATA, OTHER, DATA]


def check_against_reference(
    found: Sequence[TrainingResult], jobs: Sequence[TrainingJob], of: Sequence[SplitData]
) -> None:
    """Losses to 1e-3, every tensor of every state to 1e-4 of its largest value, frozen weights bit by bit."""
    for made, d, ours in zip(jobs, of, found, strict=True):
        engine = reference if made.learning is None else reference_masks
        theirs = engine.train([made], [d])[0]
        check_same_numbers(ours, theirs)
        for a, b in [(ours.end, theirs.end), *((ours.snapshots[p], theirs.snapshots[p]) for p in theirs.snapshots)]:
            for name, wanted in {**b.weights, **b.unmasked, **b.logits}.items():
                value = {**a.weights, **a.unmasked, **a.logits}[name]
                assert (value.dtype, value.shape) == (wanted.dtype, wanted.shape)
                scale = float(wanted.abs().max())
                torch.testing.assert_close(value, wanted, rtol=0, atol=1e-4 * scale + 1e-6, msg=name)
        for name, mask in made.start.masks.items():
            before, after = (s[name][~mask].view(torch.int32) for s in (made.start.weights, ours.end.weights))
            assert torch.equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_residual_network_agrees_with_the_reference_engine(recipe: Recipe) -> None:
    jobs, of = jobs_of(residual(), recipe)
    assert module_obstacle(residual(), "cpu") == ""
    found = stacked.train(jobs, of)
    check_against_reference(found, jobs, of)
    for made, outcome in zip(jobs, found, strict=True):
        steps = recipe.iterations - made.start.first_iteration
        assert int(outcome.end.unmasked["bn1.num_batches_tracked"]) == steps
        assert torch.equal(outcome.end.unmasked["shift"], made.start.unmasked["shift"])
        assert not torch.equal(outcome.end.unmasked["scale"], made.start.unmasked["scale"])
        network = made.network
        checks = certify(
            network.tensors,
            made.start,
            outcome,
            None,
            None,
            recipe.weight_decay,
            network.trained_others,
            network.aliases,
        ).checks
        assert not [name for name, failed in checks.items() if failed and name != "dense"], checks
        assert outcome.optimizer_state.keys() == network.tensors.keys() | network.trained_names


@pytest.mark.slow
def test_resnet20_agrees_with_the_reference_engine() -> None:
    """The recipe of the shipped study: augmented and normalized by the statistics of each seed's own split."""
    recipe = replace(
        RECIPES["momentum"], iterations=3, augment=Augmentation(crop=1, flip=True), normalize="per_channel"
    )
    network = named_network("resnet20-2", SHAPE, CLASSES)
    jobs = [TrainingJob(network, half_pruned(network, seed), recipe, seed) for seed in (0, 0, 1)]
    of = [DATA, DATA, OTHER]
    check_against_reference(stacked.train(jobs, of), jobs, of)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bernoulli", "edge_popup"])
def test_learned_masks_of_a_residual_network(method: str) -> None:
    """Running statistics move, affine parameters do not."""
    learning, network = MaskLearning(method, samples=2, density=0.5, rescaled=method == "bernoulli"), residual()  # type: ignore[arg-type]
    jobs = []
    for seed in (0, 1):
        start = initial_mask_state(
            learning, network.tensors, network.initial_state(seed), seed, None, None, child_streams(seed)
        )
        snapshots = frozenset({"lowest_validation_loss"})
        jobs.append(TrainingJob(network, start, RECIPES["momentum"], seed, snapshots, learning=learning))  # type: ignore[arg-type]
    found = stacked.train(jobs, [DATA, DATA])
    check_against_reference(found, jobs, [DATA, DATA])
    for made, outcome in zip(jobs, found, strict=True):
        assert torch.equal(outcome.end.unmasked["bn1.weight"], made.start.unmasked["bn1.weight"])
        assert not torch.equal(outcome.end.unmasked["bn1.running_mean"], made.start.unmasked["bn1.running_mean"])


def test_a_module_resumes_bit_identically() -> None:
    made = TrainingJob(residual(), half_pruned(residual()), RECIPES["adam"], 0)
    whole = stacked.train([made], [DATA])[0]
    killed = replace(made, checkpointer=Memory(2))
    with pytest.raises(Killed):
        stacked.train([killed], [DATA])
    assert bits(stacked.train([killed], [DATA])[0]) == bits(whole)


@pytest.mark.slow
def test_modules_on_the_pretended_gpu() -> None:
    """The recorded step trains as the CPU does, running statistics and augmentation included."""
    recipe = replace(RECIPES["momentum"], augment=Augmentation(1, True, 2), normalize="per_channel")
    jobs, of = jobs_of(residual(), recipe)
    here = stacked.train(jobs, of)
    with pretend_gpu() as gpu:
        there = stacked.train(jobs, of, "cuda")
    assert sum(graph.replayed for graph in gpu.graphs) > 0
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a.curve.validation_loss, b.curve.validation_loss, rtol=1e-5)
        for name, wanted in {**a.end.weights, **a.end.unmasked}.items():
            torch.testing.assert_close({**b.end.weights, **b.end.unmasked}[name], wanted, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_for_the_products_of_a_module() -> None:
    """Weights, moments and running statistics stay float32; losses are near those of float32."""
    made = TrainingJob(residual(), half_pruned(residual()), RECIPES["adam"], 0)
    exact, rounded = (stacked.train([made], [DATA], precision=p)[0] for p in ("float32", "bfloat16"))
    np.testing.assert_allclose(exact.curve.validation_loss, rounded.curve.validation_loss, rtol=2e-2)
    assert exact.curve.training_loss[1:] != rounded.curve.training_loss[1:]
    assert all(
        t.dtype in (torch.float32, torch.int64) for t in {**rounded.end.weights, **rounded.end.unmasked}.values()
    )


# --- inputs ---


@pytest.mark.parametrize("normalize", ["none", "per_channel", ChannelStatistics((0.4,), (0.3,))], ids=str)
@pytest.mark.parametrize("augment", [Augmentation(), Augmentation(1, True, 3), Augmentation(flip=True)], ids=str)
def test_inputs_are_those_of_the_reference_engine(augment: Augmentation, normalize: Any) -> None:
    recipe = replace(RECIPES["adam"], augment=augment, normalize=normalize)
    network, cpu = residual(), torch.device("cpu")
    jobs = [TrainingJob(network, network.initial_state(0), recipe, seed) for seed in (0, 0, 1)]
    of = [DATA, DATA, OTHER]
    stack, seen = Stack(jobs, of, cpu, "float32", {}), []
    training_inputs = stack._training_inputs

    def note(images: Tensor, step: Tensor) -> Tensor:
        seen.append(training_inputs(images, step))
        return seen[-1]

    stack._training_inputs = note  # type: ignore[method-assign]
    stack.train([2, 2, 5], 3)
    for i, inputs in enumerate(seen):
        for batch, (seed, d, first) in zip(inputs, [(0, DATA, 2), (1, OTHER, 5)], strict=True):
            images = BatchSampler(seed, d.train_indices, recipe.batch_size).batch(first + i)
            pixels = torch.from_numpy(d.train_images[images])
            assert torch.equal(batch, InputPipeline(recipe, d, seed, cpu).training_batch(pixels, first + i))


def test_settings_of_inputs_and_loss_in_fully_connected_stacks() -> None:
    """Two seeds on one test set, which each normalizes by its own statistics."""
    settings = {"augment": Augmentation(crop=1), "normalize": "per_channel", "label_smoothing": 0.1}
    recipe = replace(RECIPES["adam"], **settings)  # type: ignore[arg-type]
    first = data()
    second = replace(first, train_indices=first.train_indices[::2])
    jobs = [job(recipe), replace(job(recipe), seed=1)]
    check_against_reference(stacked.train(jobs, [first, second]), jobs, [first, second])


# --- modules that are refused ---


class PlainTensor(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.offsets = [torch.ones(4)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.offsets[0]


class Lying(Residual):
    """Computes something else for several replicas at once."""

    def forward(self, x: Tensor) -> Tensor:
        many = torch._C._functorch.is_batchedtensor(self.fc.weight)  # type: ignore[attr-defined]
        return super().forward(x) * (1.01 if many else 1.0)


class Leaking(Residual):
    """Its running mean misses an update for several replicas at once."""

    def forward(self, x: Tensor) -> Tensor:
        if torch._C._functorch.is_batchedtensor(self.fc.weight):  # type: ignore[attr-defined]
            self.bn1.running_mean = self.bn1.running_mean.clone()  # type: ignore[union-attr, assignment]
        return super().forward(x)


class Branching(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if float(self.scale.detach()) > 0 else 1.0)


def sequence(*modules: nn.Module) -> Callable[[], nn.Module]:
    parts = [("flatten", nn.Flatten()), ("fc1", nn.Linear(16, 8)), *((f"part{i}", m) for i, m in enumerate(modules))]
    return lambda: nn.Sequential(OrderedDict([*parts, ("fc2", nn.Linear(8, CLASSES))]))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x.flatten(1, 2))[0].mean(1))
        return logits


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "tensor in a list": (PlainTensor, "has tensors outside of its state_dict ('offsets'): register them"),
    "dropout": (sequence(nn.Dropout(0.2)), "draws random numbers in training (dropout)"),
    "momentum=None": (
        sequence(nn.BatchNorm1d(8, momentum=None)),
        "has batch normalization with momentum=None ('part0')",
    ),
    "recurrent": (Recurrent, "uses aten::lstm.input, which PyTorch cannot compute for several replicas at once"),
    "branch on a value": (Branching, "fails under torch.func.vmap: RuntimeError: vmap: It looks like"),
    "other logits": (Lying, "has other logits under torch.func.vmap than one replica at a time"),
    "other buffers": (
        Leaking,
        "has other buffers under torch.func.vmap than one replica at a time ('bn1.running_mean')",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_reference_engine_takes_modules_that_fail_the_check(name: str) -> None:
    make, reason = REFUSED[name]
    network = Network(f"mine:{make.__name__}-{name}", examine_once(name), None, "own", make)
    for requested, device in (("stacked", "cpu"), ("auto", "cuda")):
        choice = select_engine(
            requested, network, device, None, RECIPES["adam"], lambda of, _: module_obstacle(of, "cpu")
        )
        assert choice.engine == "reference"
        assert choice.reason.startswith(f"the stacked engine cannot train {network.name}: it {reason}")


@cache
def examine_once(name: str) -> Any:
    return module_network(lambda: build_with(name), f"mine:{name}").facts


def build_with(name: str) -> nn.Module:
    return REFUSED[name][0]()


def test_modules_that_pass_are_selected() -> None:
    recipe = RECIPES["adam"]
    asked_for = EngineChoice("stacked", "it was asked for")
    assert select_engine("stacked", residual(), "cpu", None, recipe, module_obstacle) == asked_for
    assert select_engine("auto", residual(), "cuda", None, recipe, lambda *_: "").engine == "stacked"
    assert select_engine("auto", residual(), "cpu", None, recipe, module_obstacle).engine == "reference"
    measured = select_engine("stacked", residual(), "cpu", None, UNTRAINED, module_obstacle)
    assert measured == EngineChoice("reference", "nothing is trained: the reference engine measures modules")


# --- whole runs ---


@pytest.mark.slow
def test_a_study_of_a_residual_network(tmp_path: Path) -> None:
    """Two levels and an untrained network: engines and reasons in the records, certificates, buffers in the store."""
    plan = small_plan(
        {"criterion": "large_final", "rewind_to": 2},
        {"criterion": "large_final", "trained": False, "schedule": "one_shot"},
        network="resnet20-2",
        optimizer="sgd",
        lr=0.05,
        epochs=0.2,
        evaluate_every=2,
        levels=1,
    )
    assert all(
        result.status == "finished" for _, result in train_plan(plan, tmp_path, engine="stacked", stack=None).ended
    )
    store = Store(tmp_path)
    for run in plan.runs.values():
        facts = store.facts(run.id)
        assert facts["engine"] == ("stacked" if run.is_trained else "reference")
        assert facts["certificate"]["held"]
        if run.is_trained:
            assert facts["environment"]["convolutions"] == {}
