"""Networks trained a second: stacked, against one at a time by the reference engine, on the same device.

Synthetic data of MNIST's and CIFAR-10's shape, half of the weights pruned, Adam. A stack and the reference take turns;
a time is the median of `--turns`, after one that is not counted, and covers training steps alone. Then, of each stack:
achieved FLOP/s (multiplications and additions of the dense network, three passes a step) as a share of the largest
product's that this device was measured at, memory (of a GPU), and how long forward pass, backward pass, optimiser and
an evaluation of 1,000 images take, each by itself and without a CUDA graph. No files are needed.

    python benchmarks/stacked.py --out stacked.json                      # on a CPU: a small table
    python benchmarks/stacked.py --device cuda --precision tf32 --out stacked.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from supermask.engines import stacked
from supermask.engines.choice import Precision, check_precision
from supermask.engines.job import Data, Job
from supermask.engines.reference import _Module, tiny_is_zero
from supermask.engines.stacked.forward import blocks_of, logits_of
from supermask.engines.stacked.precision import computing_in, products_in
from supermask.engines.stacked.stack import Stack
from supermask.environment import processor
from supermask.networks import architecture, build, initial_start, products
from supermask.recipe import Recipe

SHAPES = {"fc": (1, 28, 28), "conv2": (3, 32, 32), "conv4": (3, 32, 32), "conv6": (3, 32, 32)}
SEEDS = 5
"""Replicas are of five seeds, as those of a study are; those of one seed share their batches."""
SMALL = {"fc": (1, 8, 32), "conv2": (1, 4)}
"""What a CPU measures unless told else."""
LARGE = dict.fromkeys(SHAPES, (1, 8, 32, 128, 512))
BATCH = 60


@dataclass
class Measured:
    """One line of the table."""

    network: str
    replicas: int
    ways: dict[str, str]
    step_ms: float
    """Of the whole stack."""
    reference_step_ms: float
    """Of one network."""
    times_as_many: float
    """Networks trained a second, against one at a time."""
    flops: float
    share_of_peak: float
    bytes: int | None
    forward_ms: float
    backward_ms: float
    optimiser_ms: float
    evaluation_ms: float


def images(shape: tuple[int, int, int]) -> Data:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6000, *shape), dtype=np.uint8)
    labels = rng.integers(0, 10, 6000)
    some = slice(0, 1000)
    return Data(pixels, labels, np.arange(6000), pixels[some], labels[some], pixels[some], labels[some], 255)


def job(network: str, seed: int) -> Job:
    layers = architecture(network, SHAPES[network], 10)
    start = initial_start(layers, seed)
    rng = np.random.default_rng(seed)
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < 0.5) for n, w in start.weights.items()}
    weights = {n: w * masks[n] for n, w in start.weights.items()}
    start = type(start)(weights, masks, start.others)
    return Job(layers, start, Recipe("adam", 1.2e-3, BATCH, 10**6, 100), seed)


def seconds(do: Callable[[], object], turns: int, device: torch.device) -> list[float]:
    found = []
    for _ in range(turns):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        do()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found


def peak(device: torch.device, precision: Precision) -> float:
    """FLOP/s of the largest product that is tried, in the precision that the engine computes in."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, 6, device)[1:])


def measure(network: str, replicas: int, args: argparse.Namespace, at_most: float) -> Measured:
    device, precision = torch.device(args.device), check_precision(args.precision, args.device)
    data = images(SHAPES[network])
    jobs = [job(network, seed) for seed in sorted(i % SEEDS for i in range(replicas))]
    layers = jobs[0].layers
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ways = stacked.ways_here(layers, BATCH, replicas, args.device, precision)
    stack = Stack(jobs, [data] * replicas, device, precision, ways)
    module = _Module(build(layers).to(device), jobs[0], data, device)
    module.load(jobs[0].start.state)
    stack_steps = max(2, args.steps // replicas)
    times, alone = [], []
    for turn in range(args.turns + 1):
        firsts = [turn * stack_steps] * replicas
        times += [s / stack_steps for s in seconds(partial(stack.train, firsts, stack_steps), 1, device)]
        alone += [s / args.steps for s in seconds(lambda: module.train(0, args.steps), 1, device)]
    step, one = median(times[1:]), median(alone[1:])
    flops = 6 * products(layers) * BATCH * replicas / step
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    split = parts(stack, data, args.turns, device, precision)
    return Measured(
        network,
        replicas,
        dict(ways),
        step * 1e3,
        one * 1e3,
        replicas * one / step,
        flops,
        flops / at_most,
        used,
        *split,
    )


def parts(
    stack: Stack, data: Data, turns: int, device: torch.device, precision: Precision
) -> tuple[float, float, float, float]:
    """Milliseconds of a forward pass, a backward pass, the optimiser, and an evaluation of the whole stack."""
    tensors = {**stack.weights, **stack.others}
    blocks = blocks_of([(j.seed,) for j in stack.jobs])
    batches = sum(block.batches for block in blocks)
    pixels = stack.images.scaled(stack.images.pixels[: BATCH * batches]).reshape(
        batches, BATCH, *data.train_images.shape[1:]
    )
    labels = torch.zeros(len(stack.jobs) * BATCH, dtype=torch.int64, device=device)
    computing = computing_in(precision, device)

    def forward() -> torch.Tensor:
        with computing():
            logits = logits_of(stack.layers, tensors, pixels, blocks, stack.ways)
        return cross_entropy(logits.float().flatten(0, 1), labels)

    def both() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(forward(), list(tensors.values()))

    gradients = both()
    numbers = torch.full((2, len(stack.jobs), 1), -1e-6, device=device)

    def move() -> None:
        with torch.no_grad():
            for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
                kept = [moment.flatten(1) for moment in stack.kept[name]]
                bits = stack._bits.get(name)
                stack._update(tensor.detach().flatten(1), gradient.flatten(1), bits, kept, numbers[0], numbers[1])

    def look() -> object:
        return stack.measure(range(len(stack.jobs)), data.validation_images, data.validation_labels)

    found = [1e3 * median(seconds(do, turns + 1, device)[1:]) for do in (forward, both, move, look)]
    return found[0], found[1] - found[0], found[2], found[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=None)
    parser.add_argument("--replicas", nargs="+", type=int, default=None)
    parser.add_argument(
        "--steps", type=int, default=None, help="of the reference in a turn; a stack does a share of it"
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--out", type=Path, default=Path("stacked.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.steps = args.steps or (500 if args.device == "cuda" else 40)
    device, precision = torch.device(args.device), check_precision(args.precision, args.device)
    table = SMALL if args.device == "cpu" else LARGE
    networks = args.networks or list(table)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else processor(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "threads": args.threads,
        "precision": precision,
        "measured": [],
    }
    with tiny_is_zero(), products_in(precision, device):
        report["peak_flops"] = at_most = peak(device, precision)
        print(f"{report['device']}, {precision}: largest product {at_most / 1e9:,.0f} GFLOP/s")
        for network in networks:
            for replicas in args.replicas or table.get(network, (1,)):
                try:
                    line = measure(network, replicas, args, at_most)
                except torch.OutOfMemoryError:
                    print(f"{network:6}{replicas:5}  does not fit into the memory")
                    continue
                report["measured"].append(asdict(line))
                args.out.write_text(json.dumps(report, indent=1))
                print(
                    f"{network:6}{replicas:5}  {line.step_ms:9.2f} ms a step, one {line.reference_step_ms:7.2f} ms: "
                    f"{line.times_as_many:6.2f} times as many; {100 * line.share_of_peak:5.1f}% of the peak; forward "
                    f"{line.forward_ms:.2f}, backward {line.backward_ms:.2f}, optimiser {line.optimiser_ms:.2f}, "
                    f"evaluation {line.evaluation_ms:.1f} ms"
                )


if __name__ == "__main__":
    main()
