"""Milliseconds a training step of Conv2 at several densities: what a ticket of a convolutional network costs.

The sparse engine, the reference engine, a hand-written eager PyTorch loop and (extra `[bench]`) jitted JAX steps train
the same randomly masked network on the same synthetic CIFAR-shaped images, one thread each, taking turns. The limit is
the needed products at the best product rate of the same sitting. No files are needed. Use the ratios.

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
from cpu_chain import about, divided, product_rate, spread, table
from step import Case as Synthetic
from step import pruned, synthetic

from supermask.core.masks import count_kept
from supermask.engines import reference, sparse
from supermask.networks.sequential import Conv, Pool, architecture

DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
SHAPE = (3, 32, 32)
LR = 2e-4
WARM = 1
"""Blocks before any is timed."""

Contestant = Callable[[Case, int, int], Iterator[float]]


def main() -> None:
    """Measures every density, prints, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers here, as JSON")
    parser.add_argument("--network", default="conv2", help="conv2, conv4 or conv6")
    parser.add_argument("--repeats", type=int, default=5, help="turns that each of them takes at a density")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    taking_part: dict[str, Contestant] = {
        "sparse": partial(engine, sparse.train),
        "reference": partial(engine, reference.train),
        "eager": eager,
    }
    if importlib.util.find_spec("jax"):
        taking_part["jax"] = jax_scan
    rows: list[dict[str, Any]] = []
    rates: list[float] = []
    for level, density in enumerate(given.densities):
        print(f"density {density} ...", file=sys.stderr, flush=True)
        case = case_of(given.network, density)
        rates.append(product_rate())
        milliseconds = measure(case, taking_part, given.steps, given.repeats)
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
    print(table(rows, list(taking_part)))
    for row in rows:
        times = row["milliseconds"]
        row["ratios"] = {name: divided(times[name], times["sparse"]) for name in taking_part if name != "sparse"}
        found = "  ".join(f"{name} / sparse {spread(ratio)}" for name, ratio in row["ratios"].items())
        print(f"density {row['density']:.2f}: {found}")
    if given.out:
        facts = {**about(given.repeats), "network": given.network, "product_rate_gflops": rates}
        given.out.write_text(json.dumps({"about": facts, "densities": rows}, indent=2) + "\n")


def case_of(network: str, density: float) -> Case:
    """A network of which this share of every layer is left, on noise of CIFAR's shape."""
    shape = Synthetic(network, network, SHAPE, 2000, density, 1)
    layers = architecture(network, SHAPE, 10)
    return Case(layers, pruned(layers, density), synthetic(shape), lr=LR)


def measure(case: Case, taking_part: dict[str, Contestant], steps: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds a step of each, turn by turn."""
    times: dict[str, list[float]] = {name: [] for name in taking_part}
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(closing(contestant(case, steps, WARM + repeats)))
            for name, contestant in taking_part.items()
        }
        for turn in range(WARM + repeats):
            for name, blocks in running.items():
                taken = next(blocks)
                if turn >= WARM:
                    times[name].append(taken)
    return times


def needed_flops(case: Case, batch: int = 60) -> float:
    """Of a step: every kept weight's products forward and of both gradients; none of the images' gradient."""
    counts, total = count_kept(case.start.masks), 0.0
    for number, layer in enumerate(layer for layer in case.layers if not isinstance(layer, Pool)):
        pixels = layer.side[0] * layer.side[1] if isinstance(layer, Conv) else 1
        total += 2.0 * batch * pixels * counts[f"{layer.name}.weight"] * (2 if number == 0 else 3)
    return total


if __name__ == "__main__":
    main()
