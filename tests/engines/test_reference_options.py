"""The reference engine's losses, number formats, layouts and compilation, and AdamW against PyTorch's own."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.killed_training import Killed, Memory
from helpers.trainings import CLASSES, RECIPES, REFERENCE_RECIPES, bits, data, job, pruned_start
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supermask.core.certificate import certify
from supermask.core.errors import UserError
from supermask.core.recipe import Augmentation, Recipe
from supermask.core.types import InitialState, PrunableTensor, SplitData, TrainingResult
from supermask.engines.job import TrainingJob
from supermask.engines.reference import decay_weights, train, train_module
from supermask.engines.reference_optimizer import FusedOptimizer
from supermask.networks.sequential import prunable_tensors

DATA = data()
COLOR = data((3, 6, 6), CLASSES)


class SmallConvNet(nn.Module):
    """Two convolutions with batch normalization: tensors of four dimensions, of which memory layouts differ."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        return self.fc(self.conv2(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


KERNELS = ("conv1.weight", "conv2.weight", "fc.weight")


def conv_job(recipe: Recipe, **others: object) -> TrainingJob:
    rng = np.random.default_rng(0)
    state = {
        n: torch.zeros_like(t) if n.endswith("bias") else t.clone() for n, t in SmallConvNet().state_dict().items()
    }
    for n in KERNELS:
        state[n] = torch.from_numpy(rng.normal(0, 0.4, tuple(state[n].shape)).astype(np.float32))
    masks = {n: torch.from_numpy(rng.random(tuple(state[n].shape)) < 0.5) for n in KERNELS}
    start = InitialState({n: state[n] for n in KERNELS}, masks, {n: t for n, t in state.items() if n not in KERNELS})
    return job(recipe, start, **others)


def train_conv(recipe: Recipe, **others: object) -> TrainingResult:
    return train_module(SmallConvNet(), conv_job(recipe, **others), COLOR)


# --- optimizers ---


def test_adamw_equals_that_of_pytorch() -> None:
    recipe = REFERENCE_RECIPES["adamw"]
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(5))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    own = FusedOptimizer(recipe)
    pytorch = torch.optim.AdamW(theirs, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    for _ in range(20):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        decay_weights([(p, None) for p in ours], recipe.lr * recipe.weight_decay)
        own.step(ours, recipe.lr)
        pytorch.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=3e-7, atol=0)


@pytest.mark.parametrize("frozen", [-0.0, 1.5, None])
def test_decoupled_decay_moves_kept_weights_alone(frozen: float | None) -> None:
    start = pruned_start(frozen)
    recipe = replace(REFERENCE_RECIPES["adamw"], lr=0.01, weight_decay=10.0)
    outcome = train([job(recipe, start)], [DATA])[0]
    plain = train([job(replace(recipe, weight_decay=0.0), start)], [DATA])[0]
    for name, mask in start.masks.items():
        end = outcome.end.weights[name]
        assert torch.equal(end[~mask].view(torch.int32), start.weights[name][~mask].view(torch.int32))
        assert end[mask].abs().mean() < 0.5 * plain.end.weights[name][mask].abs().mean()


class SkipsLayer(nn.Module):
    """A frozen layer, one that is never called, and one that every second step skips."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.unused = nn.Linear(12, 12).requires_grad_(False), nn.Linear(3, 3)
        self.sometimes, self.head = nn.Linear(12, 12), nn.Linear(12, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(x)
        self.calls += 1
        if self.calls % 2:
            x = x + self.sometimes(x)
        logits: Tensor = self.head(x)
        return logits


def test_decoupled_decay_leaves_parameters_without_a_gradient() -> None:
    recipe = REFERENCE_RECIPES["adamw"]
    torch.manual_seed(0)
    ours = SkipsLayer()
    theirs = deepcopy(ours)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    own = FusedOptimizer(recipe)
    pytorch = torch.optim.AdamW(theirs.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    for _ in range(6):
        images = torch.randn(5, 12)
        for module in (ours, theirs):
            module.zero_grad(set_to_none=True)
            module(images).square().mean().backward()
        decay_weights([(p, None) for p in ours.parameters()], recipe.lr * recipe.weight_decay)
        own.step(ours.parameters(), recipe.lr)
        pytorch.step()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=1e-5, atol=1e-6)
        assert torch.equal(parameter, before[name]) == name.startswith(("frozen", "unused"))


def sizes(tensors: dict[str, Tensor]) -> dict[str, PrunableTensor]:
    return {n: PrunableTensor(n, tuple(t.shape), "hidden") for n, t in tensors.items()}


@pytest.mark.parametrize("name", [*REFERENCE_RECIPES, "augmented", "bfloat16"])
def test_the_certificate_holds_and_sees_optimizer_state_of_pruned_weights(name: str) -> None:
    others = {
        "augmented": replace(RECIPES["momentum"], augment=Augmentation(crop=1, flip=True)),
        "bfloat16": replace(RECIPES["adam"], precision="bfloat16"),
    }
    recipe = (REFERENCE_RECIPES | others)[name]
    small_job = job(recipe, pruned_start(0.0))
    outcome = train([small_job], [DATA])[0]
    prunable = prunable_tensors(small_job.layers)
    first = next(iter(prunable))
    # The start has masks but no parent: only the check of a dense run has to fail.
    checks = certify(prunable, small_job.start, outcome, None, None, recipe.weight_decay).checks
    assert {check for check, failed in checks.items() if failed} == {"dense"}
    for values in outcome.optimizer_state[first].values():
        values[~small_job.start.masks[first]] = 1e-9
    if outcome.optimizer_state[first]:
        checks = certify(prunable, small_job.start, outcome, None, None, recipe.weight_decay).checks
        assert checks["optimizer_holds_nothing_frozen"]


# --- losses ---


def test_evaluations_are_plain_cross_entropy() -> None:
    """Whatever is trained on: with a learning rate of 0 only the training loss differs."""
    plain = Recipe("sgd", 0.0, 5, 10, 5)
    smoothed = replace(plain, label_smoothing=0.3)
    results = [train([job(r)], [DATA])[0] for r in (plain, smoothed)]
    own = train([job(replace(plain, loss="mine:loss"), loss=lambda logits, labels: logits.pow(2).mean())], [DATA])[0]
    for other in (results[1], own):
        assert other.curve.validation_loss == results[0].curve.validation_loss
        assert other.metrics == results[0].metrics
        assert other.curve.training_loss[1:] != results[0].curve.training_loss[1:]


def test_an_own_loss_is_trained_on() -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels)

    recipe = RECIPES["momentum"]
    plain = train([job(recipe)], [DATA])[0]
    assert bits(train([job(recipe, loss=loss)], [DATA])[0]) == bits(plain)
    doubled = train([job(replace(recipe, lr=recipe.lr / 2), loss=lambda x, y: 2 * loss(x, y))], [DATA])[0]
    assert bits(doubled)["tensors"][("end", "fc1.weight")] == bits(plain)["tensors"][("end", "fc1.weight")]


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda x, y: cross_entropy(x, y, reduction="none"), "returned a tensor of shape (5,)"),
        (lambda x, y: x.mean().item(), "returned a float"),
        (lambda x, y: x.mean().detach(), "does not depend on the logits"),
        (lambda x, y: x.mean().to(torch.complex64), "returned a complex number: return the loss of the mini-batch"),
        (lambda x, y: x.mean().to("meta"), "returned a tensor of torch.strided on device meta"),
        (lambda x, y: x.mean().to_sparse(), "returned a tensor of torch.sparse_coo on device cpu"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_refused(loss: object, said: str) -> None:
    small_job = job(replace(RECIPES["sgd"], loss="mine:loss"), loss=loss)
    with pytest.raises(UserError) as caught:
        train([small_job], [DATA])
    assert str(caught.value).startswith("loss 'mine:loss' ")
    assert said in str(caught.value)


# --- number format, layout, compilation ---


def test_bfloat16_trains_in_it_and_evaluates_in_float32() -> None:
    recipe = Recipe("sgd", 0.0, 5, 10, 5)
    full, half = (train_conv(r) for r in (recipe, replace(recipe, precision="bfloat16")))
    # Batch normalization's running means are those of the training passes: only these differ.
    for a, b in pairwise((full.curve.training_loss[1:], half.curve.training_loss[1:])):
        assert a != b
        np.testing.assert_allclose(a, b, rtol=0.02)
    assert all(t.dtype == full.end.weights[n].dtype for n, t in half.end.weights.items())
    dense = [train([job(r)], [DATA])[0] for r in (recipe, replace(recipe, precision="bfloat16"))]
    assert dense[0].curve.validation_loss == dense[1].curve.validation_loss
    assert dense[0].curve.training_loss[1:] != dense[1].curve.training_loss[1:]


@pytest.mark.parametrize("name", ["adam", "momentum with weight decay"])
def test_channels_last_gives_the_same_numbers_up_to_rounding(name: str) -> None:
    recipe = replace(RECIPES[name], iterations=10)
    snapshots = frozenset({5, "gradient"})
    plain, other = (train_conv(r, snapshots=snapshots) for r in (recipe, replace(recipe, channels_last=True)))
    np.testing.assert_allclose(other.curve.training_loss[1:], plain.curve.training_loss[1:], rtol=1e-3)
    for part in ("weights", "unmasked"):
        for n, values in getattr(plain.end, part).items():
            actual = getattr(other.end, part)[n]
            assert actual.is_contiguous()
            torch.testing.assert_close(actual, values, rtol=1e-2, atol=1e-3)
    start = conv_job(recipe).start
    for n, mask in start.masks.items():
        assert torch.equal(other.end.weights[n][~mask], start.weights[n][~mask])


@pytest.mark.parametrize("options", [{"channels_last": True}, {"compile": True}], ids=str)
@pytest.mark.slow
def test_these_runs_resume_bit_identically(options: dict[str, bool]) -> None:
    recipe = replace(RECIPES["adam"], iterations=30, **options)  # type: ignore[arg-type]
    memory = Memory(2)
    with pytest.raises(Killed):
        train_conv(recipe, checkpointer=memory)
    assert bits(train_conv(recipe, checkpointer=memory)) == bits(train_conv(recipe))


@pytest.mark.slow
def test_compiled_training_gives_the_same_numbers_up_to_rounding() -> None:
    recipe = replace(RECIPES["momentum"], iterations=10)
    plain, compiled = (train_conv(r) for r in (recipe, replace(recipe, compile=True)))
    np.testing.assert_allclose(compiled.curve.training_loss[1:], plain.curve.training_loss[1:], rtol=1e-4)
    assert compiled.end.unmasked.keys() == plain.end.unmasked.keys()


def test_a_module_that_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise torch._dynamo.exc.Unsupported("no compiler\nmany lines")

    monkeypatch.setattr(torch, "compile", lambda module: fail)
    with pytest.raises(UserError, match=r"compile: true: the network cannot be compiled here .*no compiler\)"):
        train([job(replace(RECIPES["sgd"], compile=True))], [DATA])


def test_data_of_other_trainings_is_untouched() -> None:
    """Images are memory maps shared by all runs: no option writes to them."""
    arrays = {n: a for n, a in vars(data((3, 6, 6), CLASSES)).items() if isinstance(a, np.ndarray)}
    for array in arrays.values():
        array.flags.writeable = False
    shared = SplitData(**arrays, max_pixel=16)
    recipe = replace(
        RECIPES["sgd"],
        augment=Augmentation(crop=1, flip=True, cutout=2),
        normalize="per_channel",
        channels_last=True,
        iterations=5,
    )
    assert train_module(SmallConvNet(), conv_job(recipe), shared).status == "finished"
    fresh = data((3, 6, 6), CLASSES)
    for n, array in arrays.items():
        np.testing.assert_array_equal(array, getattr(fresh, n))
