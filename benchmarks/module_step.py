"""Milliseconds per training step of ResNet-20: the reference engine and a hand-written PyTorch loop, one thread.

Batch 128, random images of 32 x 32 pixels and 3 channels, random crops and flips, per-channel normalization, SGD with
momentum 0.9 and weight decay 1e-4 (He et al. 2016, Sec. 4.2). The hand-written loop has float32 images in memory that
were normalized and padded before, crops them by one gather per batch, and masks gradients by a product. The loops
alternate in one sitting; the engine's time includes all work of a step (batch order, draws, learning rate, losses).
Times are CPU time of the process: other load on the machine lengthens the wall-clock time of either loop at random.

    python benchmarks/module_step.py --turns 9 --steps 1 --out module_step.json

Claim: the engine takes at most 1.1 times as long as the hand-written loop (median of the ratios by turn).
"""

# ruff: noqa: E402 (the thread count and the module path are set before the imports)

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The folder of this file has modules (report.py, step.py) that must not shadow others.
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import numpy as np
import torch
from torch.nn.functional import cross_entropy, pad

from supermask.core.recipe import Augmentation, Recipe
from supermask.core.rng import random_stream
from supermask.core.types import InitialState, SplitData
from supermask.engines.job import NullCheckpointer, TrainingJob
from supermask.engines.reference import train
from supermask.networks.registry import named_network

BATCH, SIDE, PADDING, CLASSES = 128, 32, 4, 10
LR, MOMENTUM, DECAY = 0.1, 0.9, 1e-4
NETWORK = named_network("resnet20", (3, SIDE, SIDE), CLASSES)


def main() -> None:
    """Measure both loops in turns, dense and with 80% of the weights pruned; print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--turns", type=int, default=7, help="timed blocks per loop")
    parser.add_argument("--steps", type=int, default=4, help="steps of a block, after as many for warm-up")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = synthetic_data()
    results = {}
    for name, density in (("dense", 1.0), ("density 0.2", 0.2)):
        start = pruned(density)
        times: dict[str, list[float]] = {"engine": [], "hand-written": []}
        for _ in range(options.turns):
            times["engine"].append(time_engine(start, data, options.steps))
            times["hand-written"].append(time_by_hand(start, data, options.steps))
        ratios = [a / b for a, b in zip(times["engine"], times["hand-written"], strict=True)]
        for loop, values in times.items():
            print(f"{name:12} {loop:13} {median(values):8.1f} ms of CPU time  ({min(values):.1f} to {max(values):.1f})")
        print(f"{name:12} ratio         {median(ratios):8.3f}  ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)
        results[name] = {"milliseconds": times, "ratios": ratios, "median_ratio": median(ratios)}
    about = {"torch": torch.__version__, "processor": platform.processor(), "threads": 1, "turns": options.turns}
    if options.out:
        options.out.write_text(json.dumps({"about": about, "cases": results}, indent=2) + "\n")


def synthetic_data(images: int = 2_000) -> SplitData:
    """Return random images, with one image each for validation and test."""
    rng = random_stream("benchmark", "module step")
    pixels = rng.integers(0, 256, (images, 3, SIDE, SIDE), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, images)
    return SplitData(pixels, labels, np.arange(images), pixels[:1], labels[:1], pixels[:1], labels[:1], 255)


def pruned(density: float) -> InitialState:
    """Return the initial state with random masks of this density; pruned weights are 0."""
    start, rng = NETWORK.initial_state(0), random_stream("benchmark", "masks")
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < density) for n, w in start.weights.items()}
    return InitialState({n: w * masks[n] for n, w in start.weights.items()}, masks, start.unmasked)


def time_engine(start: InitialState, data: SplitData, steps: int) -> float:
    """Return milliseconds per step of the engine, between its evaluations of one image each."""
    recipe = Recipe(
        "sgd",
        LR,
        BATCH,
        2 * steps,
        evaluate_every=steps,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        schedule="cosine",
        augment=Augmentation(crop=PADDING, flip=True),
        normalize="per_channel",
    )
    ticks: list[float] = []

    class RecordTime(NullCheckpointer):
        def should_save(self) -> bool:
            ticks.append(time.process_time())
            return False

    train([TrainingJob(NETWORK, start, recipe, seed=0, checkpointer=RecordTime())], [data])
    return (ticks[-1] - ticks[-2]) / steps * 1e3


def time_by_hand(start: InitialState, data: SplitData, steps: int) -> float:
    """Return milliseconds per step of the hand-written loop."""
    module = NETWORK.build()
    module.load_state_dict({**start.weights, **start.unmasked})
    parameters = dict(module.named_parameters())
    masks = {n: m.float() for n, m in start.masks.items() if not bool(m.all())}
    pixels = torch.from_numpy(data.train_images).float().div_(255)
    mean, std = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True)
    images = pad((pixels - mean) / std, (PADDING,) * 4)
    labels = torch.from_numpy(data.train_labels)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * steps)
    order = torch.randperm(len(labels))
    offsets = torch.arange(SIDE)
    began = 0.0
    for i in range(2 * steps):
        if i == steps:
            began = time.process_time()
        batch = order[i * BATCH % 1_900 :][:BATCH]
        batch = torch.cat([batch, order[: BATCH - len(batch)]])
        top, left = torch.randint(0, 2 * PADDING + 1, (2, BATCH))
        columns = torch.where(torch.rand(BATCH, 1) < 0.5, offsets.flip(0), offsets) + left[:, None]
        rows = offsets + top[:, None]
        x = images[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
        loss = cross_entropy(module(x), labels.index_select(0, batch))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for name, mask in masks.items():
            if (gradient := parameters[name].grad) is not None:
                gradient.mul_(mask)
        optimizer.step()
        scheduler.step()
    return (time.process_time() - began) / steps * 1e3


if __name__ == "__main__":
    main()
