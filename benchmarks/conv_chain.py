"""Milliseconds per training step of Conv2 at several densities, by engine.

The sparse engine, the reference engine, a hand-written eager PyTorch loop and (extra `[bench]`) jitted JAX steps train
the same randomly masked network on the same synthetic CIFAR-shaped images, one thread each, in alternation. The limit
is the time of the necessary products at the best product rate of the same sitting. No files are needed. Only the ratios
are comparable between machines.

python benchmarks/conv_chain.py --out conv_chain.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contestants import Case, eager, engine, jax_scan
from cpu_chain import describe_run, product_rate, ratios_by_turn, spread, table
from step import Case as Synthetic
from step import pruned, synthetic

from supermask.core.masks import count_kept
from supermask.engines import reference, sparse
from supermask.networks.sequential import Conv, Pool, architecture

DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
SHAPE = (3, 32, 32)
LR = 2e-4
WARM = 1
"""Warm-up blocks, not timed."""

Contestant = Callable[[Case, int, int], Iterator[float]]


def main() -> None:
    """Measure every density, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--network", default="conv2", help="conv2, conv4 or conv6")
    parser.add_argument("--repeats", type=int, default=5, help="timed blocks per loop and density")
    parser.add_argument("--steps", type=int, default=3, help="steps per block")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loops: dict[str, Contestant] = {
        "sparse": partial(engine, sparse.train),
        "reference": partial(engine, reference.train),
        "eager": eager,
    }
    if importlib.util.find_spec("jax"):
        loops["jax"] = jax_scan
    rows: list[dict[str, Any]] = []
    rates: list[float] = []
    for level, density in enumerate(options.densities):
        print(f"density {density} ...", file=sys.stderr, flush=True)
        case = make_case(options.network, density)
        rates.append(product_rate())
        milliseconds = measure(case, loops, options.steps, options.repeats)
        rows.append(
            {
                "level": level,
                "density": case.density,
                "kept": count_kept(case.start.masks),
                "milliseconds": milliseconds,
            }
        )
        rows[-1]["flops"] = needed_flops(case)
    for row in rows:
        row["limit"] = row["flops"] / max(rates) / 1e6
    print(table(rows, list(loops)))
    for row in rows:
        times = row["milliseconds"]
        row["ratios"] = {name: ratios_by_turn(times[name], times["sparse"]) for name in loops if name != "sparse"}
        ratio_text = "  ".join(f"{name} / sparse {spread(ratio)}" for name, ratio in row["ratios"].items())
        print(f"density {row['density']:.2f}: {ratio_text}")
    if options.out:
        facts = {**describe_run(options.repeats), "network": options.network, "product_rate_gflops": rates}
        options.out.write_text(json.dumps({"about": facts, "densities": rows}, indent=2) + "\n")


def make_case(network: str, density: float) -> Case:
    """Return a network with this density in every layer, and noise images with the shape of CIFAR-10."""
    shape = Synthetic(network, network, SHAPE, 2000, density, 1)
    layers = architecture(network, SHAPE, 10)
    return Case(layers, pruned(layers, density), synthetic(shape), lr=LR)


def measure(case: Case, loops: dict[str, Contestant], steps: int, repeats: int) -> dict[str, list[float]]:
    """Return milliseconds per step of each loop, one value per turn."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(closing(contestant(case, steps, WARM + repeats)))
            for name, contestant in loops.items()
        }
        for turn in range(WARM + repeats):
            for name, blocks in running.items():
                milliseconds = next(blocks)
                if turn >= WARM:
                    times[name].append(milliseconds)
    return times


def needed_flops(case: Case, batch: int = 60) -> float:
    """Return FLOPs per step: forward, weight and input gradient of every kept weight; no gradient of the images."""
    counts, total = count_kept(case.start.masks), 0.0
    for number, layer in enumerate(layer for layer in case.layers if not isinstance(layer, Pool)):
        pixels = layer.side[0] * layer.side[1] if isinstance(layer, Conv) else 1
        total += 2.0 * batch * pixels * counts[f"{layer.name}.weight"] * (2 if number == 0 else 3)
    return total


if __name__ == "__main__":
    main()
