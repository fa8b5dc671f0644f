"""Untrained networks with batch normalization are evaluated with statistics of training images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.trainings import data
from torch import nn
from torch.nn.functional import cross_entropy

from supermask.core.recipe import UNTRAINED, Recipe
from supermask.core.types import InitialState
from supermask.engines.job import BatchSampler, TrainingJob
from supermask.engines.reference import train, train_module
from supermask.networks.registry import named_network

DATA = data((1, 8, 8), 4, train=600)
NETWORK = named_network("resnet20-2", (1, 8, 8), 4)


def test_statistics_are_means_over_batches_of_training_images() -> None:
    start = NETWORK.initial_state(0)
    result = train([TrainingJob(NETWORK, start, UNTRAINED, 0)], [DATA])[0]
    module = NETWORK.build()
    module.load_state_dict({**start.weights, **start.unmasked})
    stem, batches = module.conv, BatchSampler(0, DATA.train_indices, 250)
    images = torch.from_numpy(DATA.train_images).float() / DATA.max_pixel
    means = [stem(images[batches.batch(i)]).mean((0, 2, 3)) for i in range(2)]  # type: ignore[operator]
    end = result.end
    assert torch.allclose(end.unmasked["bn.running_mean"], (means[0] + means[1]) / 2, atol=1e-6)
    assert int(end.unmasked["bn.num_batches_tracked"]) == 2
    for name, weight in end.weights.items():
        assert torch.equal(weight, start.weights[name])
    for name in NETWORK.trained_names:
        assert torch.equal(end.unmasked[name], start.unmasked[name])
    module.load_state_dict({**end.weights, **end.unmasked})
    tests = torch.from_numpy(DATA.test_images).float() / DATA.max_pixel
    with torch.no_grad():
        logits = module.eval()(tests)
    labels = torch.from_numpy(DATA.test_labels)
    assert result.metrics["final_test_accuracy"] == float((logits.argmax(1) == labels).double().mean())
    loss = result.metrics["final_test_loss"]
    assert loss is not None
    assert abs(loss - float(cross_entropy(logits, labels))) < 1e-5


def test_trained_networks_begin_with_the_statistics_of_their_initial_state() -> None:
    start = NETWORK.initial_state(0)
    recipe = Recipe("sgd", 0.1, 10, 3, 3)
    end = train([TrainingJob(NETWORK, start, recipe, 0)], [DATA])[0].end
    assert int(end.unmasked["bn.num_batches_tracked"]) == 3


@pytest.mark.parametrize("kind", [nn.InstanceNorm2d, nn.BatchNorm2d])
def test_statistics_of_every_kind_of_layer_are_means_over_batches(kind: Any) -> None:
    module = nn.Sequential(kind(1, track_running_stats=True, momentum=0.3), nn.Flatten(), nn.Linear(64, 4))
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights = {"2.weight": state.pop("2.weight")}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    start = InitialState(weights, masks, state)
    end = train_module(module, TrainingJob(NETWORK, start, UNTRAINED, 0), DATA).end
    batches = BatchSampler(0, DATA.train_indices, 250)
    images = torch.from_numpy(DATA.train_images).float() / DATA.max_pixel
    shown = [images[batches.batch(i)] for i in range(2)]
    variances = [x.var((0, 2, 3)) if kind is nn.BatchNorm2d else x.var((2, 3)).mean(0) for x in shown]
    mean = torch.stack([x.mean((0, 2, 3)) for x in shown]).mean(0)
    assert torch.allclose(end.unmasked["0.running_mean"], mean, rtol=1e-5)
    assert torch.allclose(end.unmasked["0.running_var"], torch.stack(variances).mean(0), rtol=1e-5)
    assert module[0].momentum == 0.3


def test_the_momentum_of_the_layers_is_restored() -> None:
    module = NETWORK.build()
    train_module(module, TrainingJob(NETWORK, NETWORK.initial_state(0), UNTRAINED, 0), DATA)
    assert {layer.momentum for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)} == {0.1}
