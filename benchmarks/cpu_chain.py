"""A whole chain of tickets, FC-300-100 on MNIST, 25 levels of large_final: what a training step costs at each.

Claim: with the sparse engine a chain costs what its surviving weights need, while every loop that multiplies by masks
pays for the dense network 25 times. Timed in turns, so that a slow minute of the machine is everyone's: the sparse
engine, the reference engine, a hand-written eager PyTorch loop, and (with the extra `[bench]`) a jitted JAX scan; one
thread each. The limit is the chain's needed products at the best product rate of the same sitting. Use the ratios.

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
"""Steps before any is timed: by then what Adam remembers of a pixel that is rarely lit has become denormal."""
BLOCK = 100
"""Steps timed at once, of a contestant whose cost does not fall with the mask; else `Case.block`."""
PRODUCTS = ((1024, 1024, 1024), (512, 512, 512), (60, 784, 300), (300, 60, 784))
"""(rows, inner, columns) of the products whose best rate counts; the last two are the network's own first layer."""

LAYERS = architecture("fc", DATASETS["mnist"].image_shape, DATASETS["mnist"].classes)
NAMES = ("sparse", "reference", "eager", "jax")

Contestant = Callable[[Case, int, int], Iterator[float]]


def main() -> None:
    """Makes the chain, measures, prints, writes JSON."""
    given = arguments()
    torch.set_num_threads(1)
    try:
        data = mnist()
        starts = chain(given.store, given.levels, given.chain_iterations)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    cases = [Case(LAYERS, start, data) for start in starts]
    taking_part = contestants(given.contestants)
    rates, levels = [], []
    for level, case in enumerate(cases):
        if given.only is None or level in given.only:
            print(f"level {level} of {len(cases)} ...", file=sys.stderr, flush=True)
            rates.append(product_rate())
            levels.append({"level": level, **measure(case, taking_part, given.repeats)})
    for row in levels:
        row["limit"] = needed_flops(cases[row["level"]].start) / max(rates) / 1e6
    names = list(taking_part)
    print(table(levels, names))
    facts = {**about(given.repeats), "chain_iterations": given.chain_iterations}
    results: dict[str, Any] = {"about": facts, "product_rate_gflops": rates, "levels": levels}
    results["chain"] = summary(levels, names, given.repeats)
    if "sparse" in taking_part and given.workers:
        some = cases[:: max(1, len(cases) // 4)]
        results["two_workers"] = two_workers(some, given.repeats)
        print(f"{'two workers / one worker':36} {spread(results['two_workers']['ratio'])}")
        results["first_step_milliseconds"] = taken = {c.density: first_steps(c) for c in some[:3:2]}
        for share, times in taken.items():
            print(f"{f'first step, density {share:.4f}':36} {spread(times)} ms")
    if given.out:
        given.out.write_text(json.dumps(results, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers here, as JSON")
    parser.add_argument("--repeats", type=int, default=5, help="turns that each of them takes at a level")
    parser.add_argument("--levels", type=int, default=25, help="levels of the chain, the dense one included")
    parser.add_argument("--only", type=int, nargs="+", metavar="LEVEL", help="measure at these levels alone")
    parser.add_argument("--contestants", nargs="+", choices=NAMES, default=NAMES, help="measure these alone")
    parser.add_argument("--chain-iterations", type=int, default=1000, help="length of the chain's own trainings")
    parser.add_argument("--workers", action=argparse.BooleanOptionalAction, default=True, help="measure two at once")
    store = Path(tempfile.gettempdir()) / "supermask-cpu-chain"
    parser.add_argument("--store", type=Path, default=store, help="where the chain is kept for the next time")
    return parser.parse_args()


def contestants(names: list[str]) -> dict[str, Contestant]:
    """Those of these names that can be had here."""
    found: dict[str, Contestant] = {}
    for name in names:
        if name in ("sparse", "reference"):
            found[name] = partial(engine, importlib.import_module(f"supermask.engines.{name}").train)
        elif name == "eager":
            found[name] = eager
        elif importlib.util.find_spec("jax"):
            found[name] = jax_scan
        else:
            print("JAX is not installed (pip install 'supermask[bench]'): it is left out.", file=sys.stderr)
    return found


def mnist() -> SplitData:
    """The training images of seed 0, and one image to evaluate."""
    images = load("mnist")
    training, _ = train_validation_split(images, 0)
    one = images.test_images[:1], images.test_labels[:1]
    return SplitData(images.train_images, images.train_labels, training, *one, *one, images.facts.max_pixel)


def chain(store: Path, levels: int, iterations: int) -> list[InitialState]:
    """The ends of a chain's trainings, with their masks: what is timed goes on from there."""
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
    lineage = StateReplayer(Store(store))
    parents = [lineage.parent_run(run) for run in plan.runs]
    return [InitialState(p.state_at("end").weights, p.start.masks, p.state_at("end").unmasked) for p in parents]


def measure(case: Case, taking_part: dict[str, Contestant], repeats: int) -> dict[str, Any]:
    """Milliseconds a step of each at one level, turn by turn, and how many threads were busy meanwhile."""
    times: dict[str, list[float]] = {name: [] for name in taking_part}
    threads = dict.fromkeys(taking_part, 0.0)
    with ExitStack() as stack:
        running = {}
        for name, contestant in taking_part.items():
            block = case.block if name == "sparse" else BLOCK
            warm = math.ceil(WARM / block)
            running[name] = stack.enter_context(closing(contestant(case, block, warm + repeats)))
            for _ in range(warm):
                next(running[name])
        for _ in range(repeats):
            for name, blocks in running.items():
                began, used = time.perf_counter(), time.process_time()
                times[name].append(next(blocks))
                busy = (time.process_time() - used) / (time.perf_counter() - began)
                threads[name] = max(threads[name], busy)
    return {
        "density": case.density,
        "kept": count_kept(case.start.masks),
        "milliseconds": times,
        "threads_busy": threads,
    }


def product_rate() -> float:
    """GFLOP/s: the best of some shapes, one thread."""
    best = 0.0
    for rows, inner, columns in PRODUCTS:
        left, right = torch.rand(rows, inner), torch.rand(inner, columns)
        out = torch.empty(rows, columns)
        until = time.perf_counter() + 0.05
        while (began := time.perf_counter()) < until:
            torch.mm(left, right, out=out)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - began) / 1e9)
    return best


def needed_flops(start: InitialState, batch: int = 60) -> float:
    """Of a step: forward, weight gradient and input gradient of every kept weight; no gradient of the images."""
    counts = list(count_kept(start.masks).values())
    return 2.0 * batch * (3 * sum(counts) - counts[0])


def summary(levels: list[dict[str, Any]], names: list[str], repeats: int) -> dict[str, Any]:
    """Sums over the levels turn by turn, and ratios to the sparse engine: of the sums, and at single levels."""
    sums = {n: [sum(row["milliseconds"][n][turn] for row in levels) for turn in range(repeats)] for n in names}
    limit = sum(row["limit"] for row in levels)
    for name, taken in sums.items():
        print(f"sum, {name:9} {spread(taken)} ms")
    print(f"sum, limit     {limit:.3f} ms")
    found: dict[str, Any] = {"sums": sums, "limit": limit, "ratios": {}}
    if "sparse" not in names:
        return found
    nearest = min(levels, key=lambda row: abs(row["density"] - 0.01))
    wanted = {f"{n} / sparse, sum": divided(sums[n], sums["sparse"]) for n in names if n != "sparse"}
    wanted["sparse / limit, sum"] = [taken / limit for taken in sums["sparse"]]
    for row in (levels[0], nearest):
        for n in (n for n in names if n != "sparse"):
            times = row["milliseconds"]
            wanted[f"{n} / sparse, density {row['density']:.4f}"] = divided(times[n], times["sparse"])
    for name, ratios in wanted.items():
        print(f"{name:36} {spread(ratios)}")
    return found | {"ratios": wanted}


def divided(left: list[float], right: list[float]) -> list[float]:
    return [a / b for a, b in zip(left, right, strict=True)]


def spread(values: list[float]) -> str:
    """Median and, in brackets, least and greatest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def table(levels: list[dict[str, Any]], names: list[str]) -> str:
    """Markdown: milliseconds a step, medians (least to greatest)."""
    lines = [["level", "density", *names, "limit"], ["---"] * (3 + len(names))]
    for row in levels:
        cells = [spread(row["milliseconds"][n]) for n in names]
        lines.append([str(row["level"]), f"{row['density']:.4f}", *cells, f"{row['limit']:.4f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def about(repeats: int) -> dict[str, Any]:
    """The machine, the versions, the date and the settings."""
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
