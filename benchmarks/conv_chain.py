"""Milliseconds a training step of a convolutional network, at several densities: the sparse engine and the reference.

Both train the same randomly masked network on the same synthetic CIFAR-shaped data with one thread, taking turns; a
turn is a block of steps, order of batches and optimiser included. Forward passes alone, as an evaluation makes them,
are measured likewise.

    python benchmarks/conv_chain.py --out conv_chain.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from step import BATCH, Case, processor, pruned, synthetic

from supermask.engines import reference
from supermask.engines.convolutional import Convolutional
from supermask.engines.costs import LayerCosts
from supermask.engines.job import Job
from supermask.engines.layer_costs import measure_layer_costs
from supermask.engines.loop import Stepper
from supermask.networks import architecture, build
from supermask.recipe import Recipe

DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
SHAPE = (3, 32, 32)
EVALUATED = 256
"""Images of a forward pass."""


def main() -> None:
    """Measures every density, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers here, as JSON")
    parser.add_argument("--network", default="conv2", help="conv2, conv4 or conv6")
    parser.add_argument("--turns", type=int, default=7, help="turns that each of the two takes")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with reference.tiny_is_zero():
        costs = measure_layer_costs()
        print(f"{given.network}, batch {BATCH}, one thread, {given.turns} turns of {given.steps} steps; milliseconds")
        print("density   engine (lowest to highest)   reference (lowest to highest)   times faster   forward alone")
        results = [measure(given.network, d, given.turns, given.steps, costs) for d in DENSITIES]
    about = {"torch": torch.__version__, "processor": processor(), "threads": 1, "costs": asdict(costs)}
    if given.out:
        given.out.write_text(
            json.dumps({"about": about, "network": given.network, "densities": results}, indent=2) + "\n"
        )


def measure(network: str, density: float, turns: int, steps: int, costs: LayerCosts) -> dict[str, object]:
    """One density: the two take turns, so that a slow minute of the machine is both's."""
    data = synthetic(Case("conv chain", network, SHAPE, 1000, density, steps))
    layers = architecture(network, SHAPE, 10)
    job = Job(layers, pruned(layers, density), Recipe("adam", 1e-3, BATCH, 10**6, 10**6), seed=0)
    steppers: dict[str, Stepper] = {
        "engine": Convolutional(job, data, costs),
        "reference": reference._Module(build(layers), job, data, torch.device("cpu")),
    }
    images, labels = data.train_images[:EVALUATED], data.train_labels[:EVALUATED]
    done = dict.fromkeys(steppers, 0)

    def train(name: str) -> None:
        done[name] += steps
        steppers[name].train(done[name] - steps, done[name])

    def evaluate(name: str) -> None:
        steppers[name].measure(images, labels)

    for stepper in steppers.values():
        stepper.load(job.start.state)
    step = {name: [ms / steps for ms in taken] for name, taken in alternately(train, [*steppers], turns).items()}
    forward = alternately(evaluate, [*steppers], turns)
    found = {"step": summary(step), "forward": summary(forward)}
    a, b = step["engine"], step["reference"]
    print(
        f"{density:7.2f} {statistics.median(a):8.1f} ({min(a):.1f} to {max(a):.1f})"
        f"         {statistics.median(b):8.1f} ({min(b):.1f} to {max(b):.1f})"
        f"         {found['step']['times_faster']:8.2f}     {found['forward']['times_faster']:8.2f}",
        flush=True,
    )
    return {"density": density, **found, "milliseconds_a_step": step, "milliseconds_forward": forward}


def alternately(work: Callable[[str], None], names: list[str], turns: int) -> dict[str, list[float]]:
    """Milliseconds of each turn; the first is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns + 1):
        for name in names:
            began = time.perf_counter()
            work(name)
            if turn:
                taken[name].append((time.perf_counter() - began) * 1e3)
    return taken


def summary(taken: dict[str, list[float]]) -> dict[str, float]:
    """Medians, and the median over the turns of how many times faster the engine is."""
    ratios = [theirs / ours for ours, theirs in zip(taken["engine"], taken["reference"], strict=True)]
    return {**{n: statistics.median(t) for n, t in taken.items()}, "times_faster": statistics.median(ratios)}


if __name__ == "__main__":
    main()
