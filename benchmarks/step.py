"""Milliseconds per training step: the reference engine and a hand-written eager loop.

The hand-written loop has float32 images in memory, gathers a batch with `index_select`, and masks the gradients before
`torch.optim.Adam`, once with its defaults and once with `fused=True`. All three train the same masked network on the
same data with one thread, in alternation. The engine's time includes all work of a step (batch order, learning rate,
check of the loss). The data are synthetic: no files are needed.

    python benchmarks/step.py --out step.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from supermask.core.recipe import Recipe
from supermask.core.rng import random_stream
from supermask.core.types import InitialState, SplitData
from supermask.engines.job import NullCheckpointer, TrainingJob
from supermask.engines.reference import train
from supermask.networks.network import sequential_network
from supermask.networks.sequential import Architecture, architecture, build_module, initial_state

BATCH = 60
LR = 1.2e-3


@dataclass(frozen=True)
class Case:
    """A network and the shape of its data. A step's time is the mean over one block, after warm-up blocks."""

    name: str
    network: str
    shape: tuple[int, int, int]
    images: int
    density: float
    block: int
    blocks_before: int = 1
    rare_pixels: float = 0.0
    """Share of the pixels that are nonzero in exactly one image, as are many at the edge of MNIST images."""


CASES = (
    Case("fc, MNIST-shaped, dense", "fc", (1, 28, 28), 55000, 1.0, 100),
    Case("fc, MNIST-shaped, density 0.1", "fc", (1, 28, 28), 55000, 0.1, 100),
    Case("fc, MNIST-shaped, dense, many rare pixels", "fc", (1, 28, 28), 55000, 1.0, 100, 16, 0.3),
    Case("fc, digits-shaped, dense", "fc", (1, 8, 8), 1200, 1.0, 300),
    Case("fc, digits-shaped, density 0.1", "fc", (1, 8, 8), 1200, 0.1, 300),
    Case("conv2, CIFAR-shaped, dense", "conv2", (3, 32, 32), 2000, 1.0, 4),
)

Clock = Callable[[], float]


def main() -> None:
    """Measure every case (or those whose name contains `--only`), print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--repeats", type=int, default=5, help="timed blocks per loop")
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(case, options.repeats) for case in CASES if options.only in case.name]
    about = {"torch": torch.__version__, "processor": processor(), "threads": 1, "repeats": options.repeats}
    if options.out:
        options.out.write_text(json.dumps({"about": about, "cases": results}, indent=2) + "\n")


def measure(case: Case, repeats: int) -> dict[str, object]:
    """Measure one case. The three loops alternate, so that other load on the machine affects all of them."""
    data, layers = synthetic(case), architecture(case.network, case.shape, 10)
    start = pruned(layers, case.density)
    images = torch.from_numpy(data.train_images).float().div_(data.max_pixel)
    labels = torch.from_numpy(data.train_labels)
    loops: dict[str, Clock] = {
        "engine": lambda: engine(case, layers, start, data),
        "eager": lambda: eager(case, layers, start, images, labels, fused=False),
        "eager_fused": lambda: eager(case, layers, start, images, labels, fused=True),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repeats):
        for name, time_block in loops.items():
            times[name].append(time_block())
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {n: statistics.median(ratios_by_turn(times, n)) for n in ("eager", "eager_fused")}
    print(f"{case.name}  ({repeats} turns of {case.block} steps)")
    for name, values in times.items():
        ratio = f"   engine / {name} = {ratios[name]:.2f}" if name in ratios else ""
        print(
            f"  {name:12} {medians[name]:8.3f} ms per step  ({min(values):.3f} to {max(values):.3f}){ratio}",
            flush=True,
        )
    return {"case": asdict(case), "milliseconds": times, "median": medians, "engine_divided_by": ratios}


def ratios_by_turn(times: dict[str, list[float]], other: str) -> list[float]:
    """Return engine / other, one value per turn."""
    return [a / b for a, b in zip(times["engine"], times[other], strict=True)]


def engine(case: Case, layers: Architecture, start: InitialState, data: SplitData) -> float:
    """Return milliseconds per step of the engine, read at its evaluations of one image each."""
    recipe = Recipe("adam", LR, BATCH, case.block * (case.blocks_before + 1), evaluate_every=case.block)
    ticks: list[float] = []

    class RecordTime(NullCheckpointer):
        def should_save(self) -> bool:
            ticks.append(time.perf_counter())
            return False

    train([TrainingJob(sequential_network(layers), start, recipe, seed=0, checkpointer=RecordTime())], [data])
    return (ticks[-1] - ticks[-2]) / case.block * 1e3


def eager(
    case: Case, layers: Architecture, start: InitialState, images: torch.Tensor, labels: torch.Tensor, fused: bool
) -> float:
    """Return milliseconds per step of the hand-written loop."""
    module = build_module(layers)
    module.load_state_dict({**start.weights, **start.unmasked})
    masks = [(p, start.masks[n].float()) for n, p in module.named_parameters() if n in start.masks and case.density < 1]
    optimizer = torch.optim.Adam(module.parameters(), lr=LR, fused=True if fused else None)
    order = torch.empty(0, dtype=torch.int64)
    for i in range(case.block * (case.blocks_before + 1)):
        if i == case.block * case.blocks_before:
            start_time = time.perf_counter()
        if len(order) < BATCH:
            order = torch.randperm(len(labels))
        batch, order = order[:BATCH], order[BATCH:]
        loss = cross_entropy(module(images.index_select(0, batch)), labels.index_select(0, batch))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter, mask in masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        optimizer.step()
    return (time.perf_counter() - start_time) / case.block * 1e3


def synthetic(case: Case) -> SplitData:
    """Return random images, 80% of their pixels 0, and one image each for validation and test."""
    rng = random_stream("benchmark", case.name)
    images = rng.integers(0, 256, (case.images, *case.shape), dtype=np.uint8)
    images[rng.random(images.shape, dtype=np.float32) < 0.8] = 0
    pixels = images.reshape(case.images, -1)
    rare = np.arange(int(case.rare_pixels * pixels.shape[1]))
    pixels[:, rare] = 0
    pixels[rng.integers(0, case.images, rare.size), rare] = 255
    labels = rng.integers(0, 10, case.images)
    return SplitData(images, labels, np.arange(case.images), images[:1], labels[:1], images[:1], labels[:1], 255)


def pruned(layers: Architecture, density: float) -> InitialState:
    """Return the initial state with random masks and zeros for pruned weights."""
    start = initial_state(layers, 0)
    if density == 1:
        return start
    rng = random_stream("benchmark", "masks")
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < density) for n, w in start.weights.items()}
    return InitialState({n: w * masks[n] for n, w in start.weights.items()}, masks, start.unmasked)


def processor() -> str:
    """Return the name of the processor, if the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
