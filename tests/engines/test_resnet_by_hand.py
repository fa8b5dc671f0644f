"""The product against ResNet-20 in plain PyTorch: masks from the same weights, losses of a chain step by step."""

from __future__ import annotations

import pytest
import torch
from helpers import resnet_by_hand as by_hand
from helpers.harness import IS_FULL
from helpers.trainings import data
from torch import Tensor

from supermask.core.pruning import ParentRun, PruneStep, prune_and_reset
from supermask.core.recipe import Recipe
from supermask.core.rng import child_streams
from supermask.core.types import InitialState, NetworkState
from supermask.engines.job import BatchSampler, TrainingJob
from supermask.engines.reference import train
from supermask.networks.registry import named_network

SHAPE, CLASSES, STEPS, LATE = (1, 8, 8), 4, 24, 6
NETWORK = named_network("resnet20-4", SHAPE, CLASSES)
DATA = data(SHAPE, CLASSES, train=200)
RECIPE = Recipe("sgd", 0.02, 25, STEPS, 1, momentum=0.9, weight_decay=1e-4, lr_milestones=(15,), warmup_iterations=4)
RATES = {"conv": 0.2, "output": 0.1, "hidden": 0.2}


def tensors(state: NetworkState | InitialState) -> list[Tensor]:
    """Return all tensors in the order of the product's module, which is that of the script's."""
    named = {**state.weights, **state.unmasked}
    return [named[name] for name in NETWORK.build().state_dict()]


def script_losses(start: InitialState) -> tuple[list[float], list[Tensor]]:
    """Return the losses and the final tensors of the script from an initial state of the product."""
    net = by_hand.resnet20(4, SHAPE[0], CLASSES)
    net.load_state_dict(dict(zip(net.state_dict(), tensors(start), strict=True)))
    names = [name for name, w in net.named_parameters() if by_hand.is_kernel(w)]
    masks = {name: mask.float() for name, mask in zip(names, start.masks.values(), strict=True)}
    sampler = BatchSampler(0, DATA.train_indices, RECIPE.batch_size)
    steps = range(start.first_iteration, STEPS)
    images = torch.from_numpy(DATA.train_images).float() / DATA.max_pixel
    rates = [RECIPE.learning_rate(step) for step in steps]
    batches = [sampler.batch(step) for step in steps]
    losses = by_hand.train(net, images, torch.from_numpy(DATA.train_labels), batches, masks, rates, 0.9, 1e-4)
    return losses, list(net.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scope", "rewind_to"),
    [("layer", LATE), ("global", "start"), *([("layer", "start"), ("global", LATE)] if IS_FULL else [])],
)
def test_a_chain_of_resnet20_agrees_with_plain_pytorch(scope: str, rewind_to: str | int) -> None:
    rates = RATES if scope == "layer" else {"global": 0.2}
    step = PruneStep("large_final", "rewind", "zero", rates, scope, rewind_to=rewind_to)  # type: ignore[arg-type]
    start = NETWORK.initial_state(0)
    for level in (0, 1, 2):
        # After the first level the chain begins at the late iteration, which is then its start.
        snapshots = frozenset({LATE}) if level == 0 else frozenset()
        result = train([TrainingJob(NETWORK, start, RECIPE, 0, snapshots)], [DATA])[0]
        losses, end = script_losses(start)
        assert len(losses) == STEPS - start.first_iteration
        assert max(abs(a - b) for a, b in zip(losses, result.curve.training_loss[1:], strict=True)) < 1e-4
        for ours, theirs in zip(tensors(result.end), end, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-3)
        parent = ParentRun(start, {"end": result.end, **result.snapshots}, NETWORK.tensors)
        step_of_level = PruneStep(**{**step.to_data(), "rewind_to": rewind_to if level == 0 else "start"})
        child = prune_and_reset(parent, step_of_level, child_streams(0, "level", level + 1))
        named = {"all": 0.2} if scope == "global" else {n: RATES[t.kind] for n, t in NETWORK.tensors.items()}
        expected = by_hand.prune(result.end.weights, start.masks, named)
        for name, mask in child.masks.items():
            assert torch.equal(mask, expected[name]), name
        source = parent.state_at(step_of_level.rewind_to)
        for name, weight in child.weights.items():
            assert torch.equal(weight, source.weights[name] * expected[name])
        start = child
