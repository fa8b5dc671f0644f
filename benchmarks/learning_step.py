"""A step of learning a supermask: this package's engines against an eager PyTorch step of the same method, one thread.

    python benchmarks/learning_step.py [--dataset mnist] [--steps 200] [--turns 5] [--rescaled]

Claim: for FC at batch 250 the sparse engine is at least twice as fast. Contestants take turns; each gives the median of
its turns, in milliseconds a step, and the eager step over it. Evaluation is not in it.
"""

# ruff: noqa: E402 (what is imported depends on the lines above it)

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
# This file has the package's name: Python would look for the package in it.
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
from supermask.networks.sequential import architecture, initial_state, prunable_tensors

Steps = Callable[[int, int], Any]


class Straight(torch.autograd.Function):
    """A Bernoulli sample whose gradient is that of its probabilities."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        return torch.bernoulli(p)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def eager(job: TrainingJob, data: SplitData) -> Steps:
    """What one would write by hand: three linear layers, masks from torch's generator, torch's own SGD."""
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
            x = images[batch].float() / data.pixel_maximum
            for k, (w, m) in enumerate(zip(weights, logits, strict=True)):
                mask: Tensor = Straight.apply(torch.sigmoid(m))  # type: ignore[no-untyped-call]
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
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = load(given.dataset, Path(os.environ["SUPERMASK_DATA"]) if "SUPERMASK_DATA" in os.environ else None)
    layers = architecture("fc", images.facts.image_shape, images.facts.classes)
    learning = MaskLearning(rescaled=given.rescaled)
    start = initial_mask_state(
        learning, prunable_tensors(layers), initial_state(layers, 0), 0, None, None, child_streams(0)
    )
    job = TrainingJob(layers, start, Recipe("sgd", 100.0, 250, 10**6, 10**6, momentum=0.9), 0, learning=learning)
    data = split_data(images, 0)
    contestants: dict[str, Steps] = {"eager": eager(job, data)}
    for name, stepper in (("reference", MaskTrainer(job, data)), ("sparse", MLPMaskTrainer(job, data))):
        stepper.load(start.state)
        contestants[name] = stepper.train
    for steps in contestants.values():
        steps(0, 5)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(given.turns):
        for name, steps in contestants.items():
            began = time.perf_counter()
            steps(5 + turn * given.steps, 5 + (turn + 1) * given.steps)
            times[name].append((time.perf_counter() - began) / given.steps * 1e3)
    found = {name: median(each) for name, each in times.items()}
    for name, each in times.items():
        print(
            f"{name:10} {found[name]:7.3f} ms ({min(each):.3f} to {max(each):.3f}), {found['eager'] / found[name]:.2f}x"
        )
    print(json.dumps({"torch": torch.__version__, **vars(given), "ms": times}))


if __name__ == "__main__":
    main()
