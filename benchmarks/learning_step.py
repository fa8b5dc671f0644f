"""Milliseconds per step of mask learning: the engines and an eager PyTorch loop of the same method, one thread.

    python benchmarks/learning_step.py [--dataset mnist] [--steps 200] [--turns 5] [--rescaled]

Claim: for FC at batch 250 the sparse engine is at least twice as fast as the eager loop. The loops alternate. Each line
has the median of the turns, in milliseconds per step, and the speed relative to the eager loop. Evaluation is not
timed.
"""

# ruff: noqa: E402 (the thread count and the module path are set before the imports)

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The folder of this file has modules (report.py, step.py) that must not shadow others.
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from supermask.core.learned_masks import MaskLearning, initial_mask_state
from supermask.core.recipe import Recipe
from supermask.core.rng import child_streams
from supermask.core.types import SplitData
from supermask.datasets import load
from supermask.datasets.images import split_data
from supermask.engines.job import TrainingJob
from supermask.engines.reference_masks import MaskTrainer
from supermask.engines.sparse.masked import MLPMaskTrainer
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state, prunable_tensors

Steps = Callable[[int, int], Any]


class StraightThroughBernoulli(torch.autograd.Function):
    """Bernoulli sample of p with a straight-through gradient: dL/dp = dL/db."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        return torch.bernoulli(p)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def eager(job: TrainingJob, data: SplitData) -> Steps:
    """Return the steps of a hand-written loop: three linear layers, masks from torch's generator, torch's SGD."""
    weights = [w.clone() for w in job.start.weights.values()]
    logits = [m.clone().requires_grad_() for m in job.start.logits.values()]
    optimizer = torch.optim.SGD(logits, lr=job.recipe.lr, momentum=job.recipe.momentum, fused=True)
    images = torch.from_numpy(data.train_images.copy()).flatten(1)
    labels = torch.from_numpy(data.train_labels.copy())
    indices = torch.from_numpy(data.train_indices)
    rescaled = job.learning is not None and job.learning.rescaled
    size = job.recipe.batch_size

    def steps(first: int, last: int) -> None:
        for i in range(first, last):
            batch = indices[torch.arange(i * size, (i + 1) * size) % len(indices)]
            x = images[batch].float() / data.max_pixel
            for k, (w, m) in enumerate(zip(weights, logits, strict=True)):
                mask: Tensor = StraightThroughBernoulli.apply(torch.sigmoid(m))  # type: ignore[no-untyped-call]
                masked = mask * w
                if rescaled:
                    masked = masked * (mask.numel() / mask.sum())
                x = linear(x, masked)
                if k < len(weights) - 1:
                    x = torch.relu(x)
            loss = cross_entropy(x, labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rescaled", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = load(options.dataset, Path(os.environ["SUPERMASK_DATA"]) if "SUPERMASK_DATA" in os.environ else None)
    layers = architecture("fc", images.facts.image_shape, images.facts.classes)
    learning = MaskLearning(rescaled=options.rescaled)
    start = initial_mask_state(
        learning, prunable_tensors(layers), initial_state(layers, 0), 0, None, None, child_streams(0)
    )
    job = TrainingJob(
        sequential_network(layers), start, Recipe("sgd", 100.0, 250, 10**6, 10**6, momentum=0.9), 0, learning=learning
    )
    data = split_data(images, 0)
    loops: dict[str, Steps] = {"eager": eager(job, data)}
    for name, stepper in (("reference", MaskTrainer(job, data)), ("sparse", MLPMaskTrainer(job, data))):
        stepper.load(start.state)
        loops[name] = stepper.train
    for steps in loops.values():
        steps(0, 5)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(options.turns):
        for name, steps in loops.items():
            start_time = time.perf_counter()
            steps(5 + turn * options.steps, 5 + (turn + 1) * options.steps)
            times[name].append((time.perf_counter() - start_time) / options.steps * 1e3)
    medians = {name: median(turn_times) for name, turn_times in times.items()}
    for name, turn_times in times.items():
        ratio = medians["eager"] / medians[name]
        print(f"{name:10} {medians[name]:7.3f} ms ({min(turn_times):.3f} to {max(turn_times):.3f}), {ratio:.2f}x")
    print(json.dumps({"torch": torch.__version__, **vars(options), "ms": times}))


if __name__ == "__main__":
    main()
