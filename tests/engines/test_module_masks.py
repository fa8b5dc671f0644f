"""Learned masks of modules with batch normalization, dropout, attention and recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers.killed_training import Killed, Memory
from helpers.trainings import SkippingNetwork, bits, data
from torch import Tensor, nn

from supermask.core.learned_masks import MaskLearning, initial_mask_state
from supermask.core.mask_certificate import certify_learned_mask
from supermask.core.recipe import Recipe
from supermask.core.rng import child_streams
from supermask.core.types import InitialState, NetworkState, TrainingResult
from supermask.engines.job import NullCheckpointer, TrainingJob
from supermask.engines.mask_evaluation import evaluate_supermask
from supermask.engines.reference_masks import train
from supermask.networks.examination import examine_module
from supermask.networks.network import Network
from supermask.networks.registry import named_network
from supermask.store.checkpoint_tensors import check_checkpoint

SHAPE, CLASSES = (1, 8, 8), 4
DATA = data(SHAPE, CLASSES)
RECIPE = Recipe("sgd", 5.0, 16, 12, 4, momentum=0.9)

METHODS = {
    "bernoulli": MaskLearning(samples=3),
    "bernoulli, rescaled": MaskLearning(samples=3, rescaled=True, weights="signed_constant"),
    "rounded": MaskLearning("rounded", start_logit=0.5),
    "edge_popup": MaskLearning("edge_popup", density=0.4),
    "signed": MaskLearning("signed", threshold=0.001),
}


class Sequence(nn.Module):
    """Images `(n, 1, 8, 8)` as rows `(n, 8, 8)`; the mean over rows goes to the last layer."""

    def __init__(self, body: nn.Module, features: int) -> None:
        super().__init__()
        self.body, self.drop, self.head = body, nn.Dropout(0.2), nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Any = self.body(x.reshape(len(x), 8, 8))
        y = y[0] if isinstance(y, tuple) else y
        logits: Tensor = self.head(self.drop(y.mean(1)))
        return logits


def module_network(make: Callable[[], nn.Module], name: str) -> Network:
    return Network(name, examine_module(make, SHAPE, CLASSES, name), None, "own", make)


@cache
def network(name: str) -> Network:
    if name == "residual":
        return named_network("resnet20-2", SHAPE, CLASSES)
    if name == "skipping":
        return module_network(lambda: SkippingNetwork(64), "mine:skipping")
    if name == "transformer":
        layer = lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)  # noqa: E731
        return module_network(lambda: Sequence(layer(), 8), "mine:transformer")
    return module_network(lambda: Sequence(nn.LSTM(8, 6, batch_first=True), 6), "mine:lstm")


def job(name: str, learning: MaskLearning, recipe: Recipe = RECIPE, **others: Any) -> TrainingJob:
    of = network(name)
    streams = child_streams(0)
    start = initial_mask_state(learning, of.tensors, of.initial_state(0), 0, None, None, streams)
    snapshots = frozenset({"lowest_validation_loss"})
    return TrainingJob(of, start, recipe, 0, snapshots, learning=learning, **others)  # type: ignore[arg-type]


def broken(of: TrainingJob, result: TrainingResult, start: InitialState | None = None) -> dict[str, list[str]]:
    assert of.learning is not None
    evaluation = evaluate_supermask(of, DATA, result.snapshots["lowest_validation_loss"], result.end)
    free = of.network.buffers | (of.network.trained_names if of.learning.others_lr else frozenset())
    certificate = certify_learned_mask(
        of.network.tensors,
        of.network.initial_state(0),
        start or of.start,
        replace(result, supermask=evaluation),
        of.learning,
        len(DATA.test_labels),
        free,
    )
    return {name: items for name, items in certificate.checks.items() if items}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["residual", "transformer", "lstm"])
def test_masks_of_any_module_are_learned_and_certified(name: str, method: str) -> None:
    of = job(name, METHODS[method])
    result = train([of], [DATA])[0]
    assert result.status == "finished"
    assert broken(of, result) == {}
    assert any(not torch.equal(m, of.start.logits[n]) for n, m in result.end.logits.items())
    for layer, weight in result.last_sampled_weights.items():
        assert weight.any(), layer
    for parameter in of.network.trained_names:
        assert torch.equal(result.end.unmasked[parameter], of.start.unmasked[parameter])
    for buffer in of.network.buffers:
        assert not torch.equal(result.end.unmasked[buffer], of.start.unmasked[buffer])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [RECIPE, Recipe("adam", 0.1, 16, 12, 4)], ids=["sgd", "adam"])
def test_others_train_beside_the_mask_if_they_are_given_a_rate(recipe: Recipe) -> None:
    of = job("residual", MaskLearning(samples=3, others_lr=0.1), recipe)
    result = train([of], [DATA])[0]
    assert broken(of, result) == {}
    moved = {n for n in of.network.trained_names if not torch.equal(result.end.unmasked[n], of.start.unmasked[n])}
    assert moved == of.network.trained_names


@pytest.mark.slow
def test_the_first_step_of_a_bias_has_its_own_rate() -> None:
    of = job("residual", MaskLearning(samples=3, others_lr=0.1), replace(RECIPE, iterations=1, evaluate_every=1))
    faster = replace(of, learning=MaskLearning(samples=3, others_lr=0.2))
    one, two = (train([each], [DATA])[0].end for each in (of, faster))
    for name in ("fc.bias", "bn.bias"):
        assert torch.allclose(2 * one.unmasked[name], two.unmasked[name], rtol=1e-6)
    for name in of.network.tensors:
        assert torch.equal(one.logits[name], two.logits[name])


def assert_resumes(of: TrainingJob) -> None:
    whole = train([of], [DATA])[0]
    memory = Memory(2)
    killed = replace(of, checkpointer=memory)
    with pytest.raises(Killed):
        train([killed], [DATA])
    saved = memory.load()
    assert saved is not None
    check_checkpoint(*saved, of.start, of.recipe)
    assert bits(train([killed], [DATA])[0]) == bits(whole)


@pytest.mark.slow
@pytest.mark.parametrize("others_lr", [0.0, 0.1])
@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_a_killed_run_resumes_bit_identically(name: str, others_lr: float) -> None:
    assert_resumes(job(name, MaskLearning(samples=3, others_lr=others_lr)))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_layer_may_have_no_gradient_at_some_steps(optimizer: str) -> None:
    recipe = Recipe(optimizer, 0.1, 16, 12, 4, weight_decay=0.01, momentum=0.9 if optimizer == "sgd" else 0.0)  # type: ignore[arg-type]
    assert_resumes(job("skipping", MaskLearning(samples=3, others_lr=0.1), recipe))


def test_the_generator_of_torch_is_left_alone() -> None:
    before = torch.get_rng_state()
    train([replace(job("transformer", METHODS["rounded"]), checkpointer=NullCheckpointer())], [DATA])
    assert torch.equal(before, torch.get_rng_state())


def changed(result: TrainingResult, **tensors: Tensor) -> TrainingResult:
    end = result.end
    unmasked = end.unmasked | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return replace(result, end=NetworkState(end.weights, unmasked, end.logits))


@pytest.mark.slow
def test_faults_are_seen() -> None:
    of = job("residual", METHODS["bernoulli"])
    result = train([of], [DATA])[0]
    weight, mean = result.end.unmasked["bn.weight"], result.end.unmasked["bn.running_mean"]
    assert broken(of, changed(result, bn__weight=weight + 1e-6))["others_are_frozen"] == ["bn.weight"]
    assert broken(of, changed(result, bn__running_mean=mean * float("nan")))["others_are_finite"]
    start = replace(of.start, unmasked=of.start.unmasked | {"bn.running_mean": mean})
    assert "bn.running_mean" in broken(of, result, start)["others_are_frozen"]
