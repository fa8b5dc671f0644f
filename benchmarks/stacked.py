"""Networks trained per second by the stacked engine, relative to the reference engine, one at a time, on one device.

Synthetic data with the shapes of MNIST and CIFAR-10, half of the weights pruned, Adam. The stack and the reference
engine alternate. A time is the median over `--turns`, after one warm-up turn, and covers training steps (for the
reference also one evaluation of one image). In addition, for each stack: FLOP/s (multiplications and additions of the
dense network: forward pass, gradient of the weights, and gradient of the inputs except of the images) as a share of the
fastest of a few matrix products on this device in the same precision; GPU memory; and the time of forward
pass, backward pass, optimizer and an evaluation of 1,000 images, each separately, on a GPU as recorded steps. The
reference uses TF32 if the stack does, and float32 if the stack uses bfloat16. No files are needed.

    python benchmarks/stacked.py --out stacked.json                      # on a CPU: a small table
    python benchmarks/stacked.py --device cuda --precision tf32 --out stacked.json
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from supermask.core.environment import cpu_name
from supermask.core.recipe import Recipe
from supermask.core.types import LearningCurve, SplitData
from supermask.engines import reference, stacked
from supermask.engines.job import NullCheckpointer, TrainingJob
from supermask.engines.precision import matmul_precision
from supermask.engines.reference import flush_denormals
from supermask.engines.selection import MatmulPrecision, validate_precision
from supermask.engines.stacked.bias_relu import make_bias_relu
from supermask.engines.stacked.cuda_graph import WARMUP_STEPS, CudaGraphStep
from supermask.engines.stacked.device import autocast_factory
from supermask.engines.stacked.forward import forward, group_batches
from supermask.engines.stacked.optimizer import encode_gradient_mask, make_optimizer_step
from supermask.engines.stacked.stack import Stack
from supermask.networks.network import sequential_network
from supermask.networks.sequential import Architecture, architecture, count_multiplications, initial_state

SHAPES = {"fc": (1, 28, 28), "conv2": (3, 32, 32), "conv4": (3, 32, 32), "conv6": (3, 32, 32)}
SEEDS = 5
"""Number of seeds of the replicas, as in a study; replicas of one seed share their batches."""
SMALL = {"fc": (1, 8, 32), "conv2": (1, 4)}
"""Replicas per network, default on a CPU."""
LARGE = dict.fromkeys(SHAPES, (1, 8, 32, 128, 512))
"""Replicas per network, default on a GPU."""
BATCH = 60
MIN_STEPS = {"cpu": WARMUP_STEPS + 1, "cuda": 100}
"""Steps of a stack per turn, at least, per device."""
PRODUCTS = {"cpu": (1024, 2048), "cuda": (4096, 8192, 16384)}
"""Sizes of the square matrices of the products, per device."""


@dataclass
class Measurement:
    """One row of the table."""

    network: str
    replicas: int
    ways: dict[str, str]
    step_ms: float
    """Milliseconds per step of the whole stack."""
    reference_step_ms: float
    """Milliseconds per step of one network."""
    times_as_many: float
    """Networks trained per second, relative to the reference engine."""
    flops: float
    share_of_peak: float
    bytes: int | None
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    evaluation_ms: float


def synthetic_data(shape: tuple[int, int, int]) -> SplitData:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6000, *shape), dtype=np.uint8)
    labels = rng.integers(0, 10, 6000)
    evaluated = slice(0, 1000)
    return SplitData(
        pixels, labels, np.arange(6000), pixels[evaluated], labels[evaluated], pixels[evaluated], labels[evaluated], 255
    )


def make_job(network: str, seed: int) -> TrainingJob:
    layers = architecture(network, SHAPES[network], 10)
    start = initial_state(layers, seed)
    rng = np.random.default_rng(seed)
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < 0.5) for n, w in start.weights.items()}
    weights = {n: w * masks[n] for n, w in start.weights.items()}
    start = type(start)(weights, masks, start.unmasked)
    return TrainingJob(sequential_network(layers), start, Recipe("adam", 1.2e-3, BATCH, 10**6, 100), seed)


def step_flops(layers: Architecture) -> int:
    """Multiplications and additions of one training step of one network on a batch of `BATCH` images."""
    # Nothing needs the gradient of the images: the first layer has two products, the others three.
    return 2 * BATCH * (3 * count_multiplications(layers) - count_multiplications(layers[:1]))


def measure_seconds(function: Callable[[], object], turns: int, device: torch.device) -> list[float]:
    seconds = []
    for _ in range(turns):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start_time = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start_time)
    return seconds


def peak_flops(device: torch.device, precision: MatmulPrecision) -> float:
    """Return the FLOP/s of the fastest product in `PRODUCTS`, in the precision of the engine."""
    dtype, rates = torch.bfloat16 if precision == "bfloat16" else torch.float32, []
    for size in PRODUCTS[device.type]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        rates.append(2 * size**3 / min(measure_seconds(partial(torch.mm, a, b), 6, device)[1:]))
    return max(rates)


@dataclass
class Clock(NullCheckpointer):
    """Recorder of evaluation times; an evaluation waits for all device work before it."""

    seen: list[float] = field(default_factory=list)

    def on_evaluation(self, curve: LearningCurve) -> None:
        self.seen.append(time.perf_counter())


def reference_step(job: TrainingJob, data: SplitData, steps: int, device: str) -> float:
    """Return seconds per step of the reference engine, over `steps` steps after as many warm-up steps."""
    clock = Clock()
    recipe = replace(job.recipe, iterations=2 * steps, evaluate_every=steps)
    reference.train([replace(job, recipe=recipe, checkpointer=clock)], [data], device)
    return (clock.seen[2] - clock.seen[1]) / steps


def measure(network: str, replicas: int, args: argparse.Namespace, max_flops: float) -> Measurement:
    device, precision = torch.device(args.device), validate_precision(args.precision, args.device)
    data = synthetic_data(SHAPES[network])
    few = replace(data, validation_images=data.validation_images[:1], validation_labels=data.validation_labels[:1])
    jobs = [make_job(network, seed) for seed in sorted(i % SEEDS for i in range(replicas))]
    layers = jobs[0].network.layers
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    algorithms = stacked.choose_conv_algorithms(layers, BATCH, replicas, args.device, precision)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    stack = Stack(jobs, [data] * replicas, device, precision, algorithms)
    # More than the eager warm-up steps, so that the untimed turn includes the recording of the CUDA graph. On a GPU a
    # turn of few steps would be mostly its wait at the end.
    stack_steps = max(MIN_STEPS[device.type], args.steps // replicas)
    times, alone = [], []
    for turn in range(args.turns + 1):
        firsts = [turn * stack_steps] * replicas
        times += [s / stack_steps for s in measure_seconds(partial(stack.train, firsts, stack_steps), 1, device)]
        if turn == 0 and device.type == "cuda":
            used: int | None = torch.cuda.max_memory_allocated()
        alone.append(reference_step(jobs[0], few, args.steps, args.device))
    step, reference_seconds = median(times[1:]), median(alone[1:])
    flops = step_flops(layers) * replicas / step
    return Measurement(
        network,
        replicas,
        dict(algorithms),
        step * 1e3,
        reference_seconds * 1e3,
        replicas * reference_seconds / step,
        flops,
        flops / max_flops,
        used if device.type == "cuda" else None,
        *measure_parts(stack, data, algorithms, stack_steps, args.turns, device, precision),
    )


def measure_parts(
    stack: Stack,
    data: SplitData,
    algorithms: dict[str, str],
    steps: int,
    turns: int,
    device: torch.device,
    precision: MatmulPrecision,
) -> tuple[float, float, float, float]:
    """Return milliseconds of a forward pass, a backward pass, the optimizer and an evaluation of the whole stack."""
    tensors = {**stack.weights, **stack.unmasked}
    blocks = group_batches([(j.seed,) for j in stack.jobs])
    batches = sum(block.num_batches for block in blocks)
    pixels = stack.images.pixels[: BATCH * batches].reshape(batches, BATCH, *data.train_images.shape[1:])
    labels = torch.zeros(len(stack.jobs) * BATCH, dtype=torch.int64, device=device)
    computing, move = autocast_factory(precision, device), make_optimizer_step(stack.recipe, device)

    def compute_loss() -> torch.Tensor:
        with computing():
            logits = forward(
                stack.jobs[0].layers, tensors, stack.images.scale(pixels), blocks, algorithms, make_bias_relu(device)
            )
        return cross_entropy(logits.float().flatten(0, 1), labels)

    def compute_gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(compute_loss(), list(tensors.values()))

    gradients = compute_gradients()
    masks = {n: torch.stack([j.start.masks[n] for j in stack.jobs]).to(device) for n in stack.weights}
    bits = {n: encode_gradient_mask(mask.flatten(1), device.type) for n, mask in masks.items()}
    rate, second = torch.tensor([-1e-6, 30.0], device=device)[:, None, None].repeat(1, len(stack.jobs), 1)

    def step_optimizer() -> None:
        with torch.no_grad():
            for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
                kept = [moment.flatten(1) for moment in stack.optimizer_state[name]]
                move(tensor.detach().flatten(1), gradient.flatten(1), bits.get(name), kept, rate, second)

    def evaluate() -> object:
        return stack.evaluate(range(len(stack.jobs)), data.validation_images, data.validation_labels)

    def milliseconds(function: Callable[[], object]) -> float:
        repeated = CudaGraphStep(lambda: (function(), None)[1], device)
        return 1e3 / steps * median(measure_seconds(partial(repeated, steps), turns + 1, device)[1:])

    forward_ms, both_ms = milliseconds(compute_loss), milliseconds(compute_gradients)
    optimizer_ms = milliseconds(step_optimizer)
    return (
        forward_ms,
        both_ms - forward_ms,
        optimizer_ms,
        1e3 * median(measure_seconds(evaluate, turns + 1, device)[1:]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=None)
    parser.add_argument("--replicas", nargs="+", type=int, default=None)
    parser.add_argument(
        "--steps",
        type=int,
        default=None,
        help="steps of the reference per turn; a stack of n replicas does 1/n of them",
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads, on a CPU")
    parser.add_argument("--out", type=Path, default=Path("stacked.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.steps = args.steps or (500 if args.device == "cuda" else 40)
    device, precision = torch.device(args.device), validate_precision(args.precision, args.device)
    table = SMALL if args.device == "cpu" else LARGE
    networks = args.networks or list(table)
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else cpu_name(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "threads": args.threads,
        "precision": precision,
        "measured": [],
    }
    with flush_denormals(), matmul_precision(precision, device):
        report["peak_flops"] = max_flops = peak_flops(device, precision)
        print(f"{report['device']}, {precision}: largest product {max_flops / 1e9:,.0f} GFLOP/s")
        for network in networks:
            for replicas in args.replicas or table.get(network, (1,)):
                try:
                    line = measure(network, replicas, args, max_flops)
                except torch.OutOfMemoryError:
                    print(f"{network:6}{replicas:5}  does not fit into memory")
                    continue
                report["measured"].append(asdict(line))
                args.out.write_text(json.dumps(report, indent=1))
                print(
                    f"{network:6}{replicas:5}  {line.step_ms:9.2f} ms per step, one {line.reference_step_ms:7.2f} ms: "
                    f"{line.times_as_many:6.2f} times as many; {100 * line.share_of_peak:5.1f}% of the peak; forward "
                    f"{line.forward_ms:.2f}, backward {line.backward_ms:.2f}, optimizer {line.optimizer_ms:.2f}, "
                    f"evaluation {line.evaluation_ms:.1f} ms"
                )


if __name__ == "__main__":
    main()
