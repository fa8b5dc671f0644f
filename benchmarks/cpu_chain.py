"""Milliseconds per training step at each level of a chain: FC-300-100 on MNIST, 25 levels of large_final.

Claim: with the sparse engine the cost falls with the surviving weights, while a loop that multiplies by masks costs as
much as the dense network at every level. The sparse engine, the reference engine, a hand-written eager PyTorch loop and
(extra `[bench]`) a jitted JAX scan alternate, one thread each, so that other load affects all of them. The limit is the
time of the chain's necessary products at the best product rate of the same sitting. Only the ratios are comparable
between machines.

SUPERMASK_DATA=data python benchmarks/cpu_chain.py --out cpu_chain.json
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contestants import Case, eager, engine, jax_scan
from processes import first_steps, two_workers
from step import processor

from supermask.api import runs
from supermask.core.errors import UserError
from supermask.core.masks import count_kept
from supermask.core.types import InitialState, SplitData
from supermask.datasets import DATASETS, load, train_validation_split
from supermask.networks.sequential import architecture
from supermask.store import Store
from supermask.store.replay import StateReplayer

WARM = 1000
"""Warm-up steps, not timed. After them Adam's moments of rarely nonzero pixels have become denormal."""
BLOCK = 100
"""Steps per timed block of a loop whose cost does not fall with the density; for the others see `Case.block`."""
PRODUCTS = ((1024, 1024, 1024), (512, 512, 512), (60, 784, 300), (300, 60, 784))
"""(rows, inner, columns) of the products that give the best rate; the last two are the first layer of the network."""

LAYERS = architecture("fc", DATASETS["mnist"].image_shape, DATASETS["mnist"].classes)
NAMES = ("sparse", "reference", "eager", "jax")

Contestant = Callable[[Case, int, int], Iterator[float]]


def main() -> None:
    """Train or load the chain, measure, print the table, write JSON."""
    options = parse_arguments()
    torch.set_num_threads(1)
    try:
        data = load_mnist()
        starts = train_chain(options.store, options.levels, options.chain_iterations)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    cases = [Case(LAYERS, start, data) for start in starts]
    loops = contestants(options.contestants)
    rates, levels = [], []
    for level, case in enumerate(cases):
        if options.only is None or level in options.only:
            print(f"level {level} of {len(cases)} ...", file=sys.stderr, flush=True)
            rates.append(product_rate())
            levels.append({"level": level, **measure(case, loops, options.repeats)})
    for row in levels:
        row["limit"] = needed_flops(cases[row["level"]].start) / max(rates) / 1e6
    names = list(loops)
    print(table(levels, names))
    facts = {**describe_run(options.repeats), "chain_iterations": options.chain_iterations}
    results: dict[str, Any] = {"about": facts, "product_rate_gflops": rates, "levels": levels}
    results["chain"] = summary(levels, names, options.repeats)
    if "sparse" in loops and options.workers:
        sampled_cases = cases[:: max(1, len(cases) // 4)]
        results["two_workers"] = two_workers(sampled_cases, options.repeats)
        print(f"{'two workers / one worker':36} {spread(results['two_workers']['ratio'])}")
        results["first_step_milliseconds"] = first_step_times = {c.density: first_steps(c) for c in sampled_cases[:3:2]}
        for share, times in first_step_times.items():
            print(f"{f'first step, density {share:.4f}':36} {spread(times)} ms")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--repeats", type=int, default=5, help="timed blocks per loop and level")
    parser.add_argument("--levels", type=int, default=25, help="levels of the chain, including the dense level")
    parser.add_argument("--only", type=int, nargs="+", metavar="LEVEL", help="measure only these levels")
    parser.add_argument("--contestants", nargs="+", choices=NAMES, default=NAMES, help="measure only these loops")
    parser.add_argument(
        "--chain-iterations", type=int, default=1000, help="iterations of each training run of the chain"
    )
    parser.add_argument(
        "--workers", action=argparse.BooleanOptionalAction, default=True, help="measure two workers at once"
    )
    store = Path(tempfile.gettempdir()) / "supermask-cpu-chain"
    parser.add_argument("--store", type=Path, default=store, help="store of the chain, reused by the next call")
    return parser.parse_args()


def contestants(names: list[str]) -> dict[str, Contestant]:
    """Return the loops of these names; JAX only if it is installed."""
    loops: dict[str, Contestant] = {}
    for name in names:
        if name in ("sparse", "reference"):
            loops[name] = partial(engine, importlib.import_module(f"supermask.engines.{name}").train)
        elif name == "eager":
            loops[name] = eager
        elif importlib.util.find_spec("jax"):
            loops[name] = jax_scan
        else:
            print("JAX is not installed (pip install 'supermask[bench]'): it is not measured.", file=sys.stderr)
    return loops


def load_mnist() -> SplitData:
    """Return the training images of seed 0, and one image for validation and test."""
    images = load("mnist")
    training, _ = train_validation_split(images, 0)
    evaluated = images.test_images[:1], images.test_labels[:1]
    return SplitData(images.train_images, images.train_labels, training, *evaluated, *evaluated, images.facts.max_pixel)


def train_chain(store: Path, levels: int, iterations: int) -> list[InitialState]:
    """Return the final weights and masks of each training run of the chain; the timed steps start from them."""
    facts = DATASETS["mnist"]
    epochs = iterations * 60 / (facts.training_images - facts.validation_images)
    settings = [
        "seeds=1",
        "treatments=[{criterion: large_final}]",
        f"prune.levels={levels - 1}",
        f"train.epochs={epochs:.4f}",
        f"train.evaluate_every={iterations}",
    ]
    plan = runs.run("mask-criteria", settings, store=store, workers=1, engine="reference").plan
    replayer = StateReplayer(Store(store))
    parents = [replayer.parent_run(run) for run in plan.runs]
    return [InitialState(p.state_at("end").weights, p.start.masks, p.state_at("end").unmasked) for p in parents]


def measure(case: Case, loops: dict[str, Contestant], repeats: int) -> dict[str, Any]:
    """Return milliseconds per step of each loop at one level, one value per turn, and the busy threads meanwhile."""
    times: dict[str, list[float]] = {name: [] for name in loops}
    threads = dict.fromkeys(loops, 0.0)
    with ExitStack() as stack:
        running = {}
        for name, contestant in loops.items():
            block = case.block if name == "sparse" else BLOCK
            warm = math.ceil(WARM / block)
            running[name] = stack.enter_context(closing(contestant(case, block, warm + repeats)))
            for _ in range(warm):
                next(running[name])
        for _ in range(repeats):
            for name, blocks in running.items():
                start_time, used = time.perf_counter(), time.process_time()
                times[name].append(next(blocks))
                busy = (time.process_time() - used) / (time.perf_counter() - start_time)
                threads[name] = max(threads[name], busy)
    return {
        "density": case.density,
        "kept": count_kept(case.start.masks),
        "milliseconds": times,
        "threads_busy": threads,
    }


def product_rate() -> float:
    """Return the best GFLOP/s over the shapes in `PRODUCTS`, with one thread."""
    best = 0.0
    for rows, inner, columns in PRODUCTS:
        left, right = torch.rand(rows, inner), torch.rand(inner, columns)
        out = torch.empty(rows, columns)
        until = time.perf_counter() + 0.05
        while (start_time := time.perf_counter()) < until:
            torch.mm(left, right, out=out)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - start_time) / 1e9)
    return best


def needed_flops(start: InitialState, batch: int = 60) -> float:
    """Return FLOPs per step: forward, weight and input gradient of every kept weight; no gradient of the images."""
    counts = list(count_kept(start.masks).values())
    return 2.0 * batch * (3 * sum(counts) - counts[0])


def summary(levels: list[dict[str, Any]], names: list[str], repeats: int) -> dict[str, Any]:
    """Print and return sums over the levels per turn, and ratios to the sparse engine, of sums and single levels."""
    sums = {n: [sum(row["milliseconds"][n][turn] for row in levels) for turn in range(repeats)] for n in names}
    limit = sum(row["limit"] for row in levels)
    for name, taken in sums.items():
        print(f"sum, {name:9} {spread(taken)} ms")
    print(f"sum, limit     {limit:.3f} ms")
    results: dict[str, Any] = {"sums": sums, "limit": limit, "ratios": {}}
    if "sparse" not in names:
        return results
    nearest = min(levels, key=lambda row: abs(row["density"] - 0.01))
    ratios_by_name = {f"{n} / sparse, sum": ratios_by_turn(sums[n], sums["sparse"]) for n in names if n != "sparse"}
    ratios_by_name["sparse / limit, sum"] = [taken / limit for taken in sums["sparse"]]
    for row in (levels[0], nearest):
        for n in (n for n in names if n != "sparse"):
            times = row["milliseconds"]
            ratios_by_name[f"{n} / sparse, density {row['density']:.4f}"] = ratios_by_turn(times[n], times["sparse"])
    for name, ratios in ratios_by_name.items():
        print(f"{name:36} {spread(ratios)}")
    return results | {"ratios": ratios_by_name}


def ratios_by_turn(left: list[float], right: list[float]) -> list[float]:
    return [a / b for a, b in zip(left, right, strict=True)]


def spread(values: list[float]) -> str:
    """Format the median and, in parentheses, minimum and maximum."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def table(levels: list[dict[str, Any]], names: list[str]) -> str:
    """Return a Markdown table of milliseconds per step: medians (minimum to maximum)."""
    lines = [["level", "density", *names, "limit"], ["---"] * (3 + len(names))]
    for row in levels:
        cells = [spread(row["milliseconds"][n]) for n in names]
        lines.append([str(row["level"]), f"{row['density']:.4f}", *cells, f"{row['limit']:.4f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe_run(repeats: int) -> dict[str, Any]:
    """Return machine, versions, date and settings."""
    versions = {d.name: d.version for d in importlib.metadata.distributions()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "python": platform.python_version(),
        **{name: versions[name] for name in ("torch", "numpy", "numba", "jax", "jaxlib") if name in versions},
        "threads": 1,
        "repeats": repeats,
    }


if __name__ == "__main__":
    main()
