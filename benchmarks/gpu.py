"""First measurements on a GPU, most telling first: each step is a process of its own with its own time limit.

A step that fails or hangs ends alone. Results are JSON lines, one per measurement, with the name of the step. Nothing
is installed and no network is used; `supermask run` steps write their stores below the output folder.

    python benchmarks/gpu.py --minutes 9 --out gpu                      # on a GPU
    python benchmarks/gpu.py --device cpu --tiny --out rehearsal        # the same steps on a CPU, with tiny sizes
    python benchmarks/gpu.py --only fc,update --minutes 3 --out gpu     # some steps

Steps: `facts`, `fresh_reference`, `tests`, `agreement`, `update`, `fc`, `digits`, `ceilings`, `study`, `learned`,
`convolutions`, `failed_capture`, `vmapped`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from supermask.core.types import SplitData
    from supermask.engines.job import TrainingJob
    from supermask.engines.selection import MatmulPrecision
    from supermask.engines.stacked.stack import Stack

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "results.jsonl"
SEEDS = 5
"""Seeds of the replicas, as in a study; replicas of one seed share their batches."""
TRAINING_STEPS = 50_417
"""Steps of one training of FC on MNIST at the paper's settings: 55 epochs of 55,000 images in batches of 60."""
GRACE_SECONDS = 3.0
TINY_PATIENCE = 6
"""Factor of the limits in a rehearsal: a busy CPU is no failure of a step."""


@dataclass(frozen=True)
class Step:
    """One step: a function of this file, or a command line."""

    name: str
    seconds: float
    """Limit of its process."""
    command: Sequence[str] = ()
    """Arguments after the interpreter; empty for a function of this file. `{out}`, `{device}` are filled in."""
    tiny_command: Sequence[str] = ()
    """The command of a rehearsal."""


REHEARSED = ("seeds=1", "prune.levels=1", "train.epochs=1", "--engine", "stacked")
"""Arguments of a rehearsed study: a tiny one, with the engine of a GPU."""


def run_command(store: str, *arguments: str) -> tuple[str, ...]:
    common = ("--device", "{device}", "--workers", "1", "--store", f"{{out}}/{store}")
    return ("-m", "supermask", "run", *arguments, *common)


STEPS = (
    Step("facts", 30),
    Step("fresh_reference", 25),
    Step(
        "tests",
        60,
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "a_gpu", "tests/engines"),
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/engines/test_precision.py"),
    ),
    Step("agreement", 60),
    Step("update", 60),
    Step("fc", 120),
    Step(
        "digits",
        45,
        run_command("store-digits", "mask-criteria", "scale=digits", "seeds=2", "prune.levels=2", "--stack", "16"),
        run_command("store-digits", "mask-criteria", "scale=digits", *REHEARSED),
    ),
    Step("ceilings", 40),
    Step(
        "study",
        110,
        run_command(
            "store-paper",
            *("mask-criteria", "scale=paper", "prune.levels=1", "train.epochs=18"),
            *("--precision", "tf32", "--stack", "64"),
        ),
        run_command("store-paper", "mask-1-actions", "scale=digits", *REHEARSED),
    ),
    Step("learned", 30),
    Step("convolutions", 60),
    Step("failed_capture", 20),
    Step("vmapped", 40),
)


class Probe:
    """What a step measures with: the device, its sizes, its deadline, and the file of its results."""

    def __init__(self, step: str, device: str, tiny: bool, out: Path, seconds: float) -> None:
        import torch

        self.step, self.tiny, self.out = step, tiny, out
        self.device = torch.device(device)
        self.is_gpu = device == "cuda"
        self.deadline = time.monotonic() + seconds

    def record(self, **facts: object) -> None:
        """Append one result, and print it."""
        line = json.dumps({"step": self.step, **facts})
        print(line, flush=True)
        with (self.out / RESULTS).open("a") as file:
            file.write(line + "\n")

    def synchronize(self) -> None:
        import torch

        if self.is_gpu:
            torch.cuda.synchronize()

    def milliseconds(self, function: Callable[[], object], turns: int = 10) -> float:
        """Median milliseconds of a call, after one that is not counted."""
        function()
        self.synchronize()
        times = []
        for _ in range(turns):
            start = time.perf_counter()
            function()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return median(times) * 1e3

    def as_graph(self, function: Callable[[], object]) -> Callable[[], object]:
        """The function as a CUDA graph, so that its launches are not timed; the function itself on a CPU."""
        from supermask.engines.stacked.cuda_graph import WARMUP_STEPS, CudaGraphStep

        def discard_result() -> None:
            function()

        step = CudaGraphStep(discard_result, self.device)
        step(WARMUP_STEPS + 1)
        return partial(step, 1)

    def attempt(self, what: str, function: Callable[[], object]) -> None:
        """Call the function; record an error instead of raising it, and skip it after the deadline."""
        import torch

        if time.monotonic() > self.deadline:
            self.record(what=what, skipped="no time left")
            return
        try:
            function()
        except Exception as error:
            details = traceback.format_exc()[-600:]
            self.record(what=what, failed=type(error).__name__, message=str(error)[:300], traceback=details)
        gc.collect()
        if self.is_gpu:
            with suppress(RuntimeError):
                torch.cuda.empty_cache()

    @property
    def precisions(self) -> tuple[MatmulPrecision, ...]:
        return ("tf32", "float32", "bfloat16") if self.is_gpu else ("float32",)


# --- synthetic trainings ---


def synthetic_jobs(
    probe: Probe, name: str, replicas: int, image_shape: tuple[int, int, int], density: float = 0.5
) -> tuple[list[TrainingJob], list[SplitData]]:
    """Replicas of five seeds with random masks and random images, sorted by seed."""
    import torch

    from supermask.core.recipe import Recipe
    from supermask.core.types import SplitData
    from supermask.engines.job import TrainingJob
    from supermask.networks.registry import named_network

    rng = np.random.default_rng(0)
    count, evaluated = (300, 50) if probe.tiny else (6_000, 5_000)
    pixels, labels = rng.integers(0, 256, (count, *image_shape), dtype=np.uint8), rng.integers(0, 10, count)
    head = pixels[:evaluated], labels[:evaluated]
    data = [SplitData(pixels, labels, np.arange(count), *head, *head, 255) for _ in range(SEEDS)]
    network = named_network(name, image_shape, 10)
    recipe = Recipe("adam", 1.2e-3, 60, 10**6, 100)
    starts = []
    for seed in range(SEEDS):
        start = network.initial_state(seed)
        masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < density) for n, w in start.weights.items()}
        weights = {n: w * masks[n] for n, w in start.weights.items()}
        starts.append(replace(start, masks=masks, weights=weights))
    seeds = sorted(i % SEEDS for i in range(replicas))
    return [TrainingJob(network, starts[s], recipe, s) for s in seeds], [data[s] for s in seeds]


def make_stack(probe: Probe, jobs: list[TrainingJob], data: list[SplitData], precision: MatmulPrecision) -> Stack:
    from supermask.engines.stacked.stack import Stack

    return Stack(jobs, data, probe.device, precision, {})


# --- steps ---


def facts(probe: Probe) -> None:
    """Versions, device and defaults; imports of the engines; a read-only array on the device."""
    import torch

    versions = {}
    for name in ("torch", "triton", "numpy", "numba", "pydantic", "scipy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    probe.record(
        python=sys.version.split()[0],
        **versions,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        device=torch.cuda.get_device_name() if probe.is_gpu else "cpu",
        cores=os.cpu_count(),
        free_bytes=torch.cuda.mem_get_info()[0] if probe.is_gpu else None,
    )
    for module in ("supermask.engines.reference", "supermask.engines.stacked", "supermask.cli"):
        probe.attempt(f"import {module}", lambda module=module: (__import__(module), probe.record(imported=module)))
    array = np.arange(6, dtype=np.uint8)
    array.setflags(write=False)

    def copy_array() -> None:
        copied = torch.from_dlpack(array).to(probe.device)  # type: ignore[attr-defined]
        probe.record(what="a read-only array on the device", right=copied.sum().item() == 15)

    probe.attempt("a read-only array on the device", copy_array)


def fresh_reference(probe: Probe) -> None:
    """The reference engine as the first user of the device in a process."""
    from supermask.engines import reference

    jobs, data = synthetic_jobs(probe, "fc", 1, (1, 28, 28))
    job = replace(jobs[0], recipe=replace(jobs[0].recipe, iterations=3, evaluate_every=3))
    probe.attempt(
        "the reference engine first",
        lambda: probe.record(status=reference.train([job], data, probe.device.type)[0].status),
    )


def agreement(probe: Probe) -> None:
    """Stacked against reference on the CPU: losses, equal bits when repeated, held weights; per precision."""
    import torch

    from supermask.engines import reference, stacked

    jobs, data = synthetic_jobs(probe, "fc", SEEDS, (1, 28, 28))
    iterations = 20 if probe.tiny else 300
    jobs = [replace(job, recipe=replace(job.recipe, iterations=iterations, evaluate_every=20)) for job in jobs]
    expected = reference.train(jobs[:2], data[:2])
    in_a_stack = []
    for precision in probe.precisions:
        first, second = (stacked.train(jobs, data, probe.device.type, precision) for _ in range(2))
        ends = [[result.end.weights["fc1.weight"] for result in results] for results in (first, second)]
        equal = all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
        probe.record(what="the same bits twice", precision=precision, right=equal)
        in_a_stack = first if precision == "float32" else in_a_stack
        for i, job in enumerate(jobs[:2]):
            ratios = np.array(first[i].curve.validation_loss) / np.array(expected[i].curve.validation_loss)
            end, start = first[i].end.weights, job.start.weights
            held = all(torch.equal(end[n][~mask], start[n][~mask]) for n, mask in job.start.masks.items())
            probe.record(
                what="validation loss relative to the reference on the CPU",
                precision=precision,
                largest_difference=float(np.abs(ratios - 1).max()),
                pruned_weights_held=held,
            )
    alone = stacked.train(jobs[:1], data[:1], probe.device.type)[0].end.weights["fc1.weight"]
    difference = (alone - in_a_stack[0].end.weights["fc1.weight"]).abs().max()
    probe.record(what="alone and in a stack, largest difference of a weight", difference=float(difference))
    on_device = reference.train(jobs[:1], data[:1], probe.device.type)[0]
    probe.record(what="the reference engine on the device", status=on_device.status)


def update(probe: Probe) -> None:
    """Adam's update of a stack: the engine's step and PyTorch's fused one, with the bandwidth each reaches."""
    import torch

    from supermask.core.recipe import Recipe
    from supermask.engines.stacked.optimizer import encode_gradient_mask, is_optimizer_compiled, make_optimizer_step

    recipe, device = Recipe("adam", 1.2e-3, 60, 10, 10), probe.device
    start = time.perf_counter()
    compiled = is_optimizer_compiled(recipe, device.type)
    probe.record(what="compilation", compiled=compiled, seconds=time.perf_counter() - start)
    step = make_optimizer_step(recipe, device)

    def measure(replicas: int, weights: int, fused: bool) -> None:
        w, g, m, v = (torch.rand(replicas, weights, device=device) for _ in range(4))
        mask = encode_gradient_mask(torch.rand(replicas, weights, device=device) < 0.5, device.type)
        rate = torch.full((replicas, 1), -1e-6, device=device)
        second = torch.full((replicas, 1), 30.0, device=device)
        count = torch.tensor(1.0, device=device)
        settings = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}

        def move() -> None:
            with torch.no_grad():
                if fused:
                    torch._fused_adam_([w], [g], [m], [v], [], [count], **settings, amsgrad=False, maximize=False)
                else:
                    step(w, g, mask, [m, v], rate, second)

        ms = probe.milliseconds(probe.as_graph(move), 20)
        # Bytes moved per weight: read w, g, m, v (and the mask), write w, m, v.
        tb_per_s = (28 if fused else 29) * replicas * weights / ms / 1e9
        name = "PyTorch, fused, unmasked" if fused else "engine"
        probe.record(what=name, replicas=replicas, weights=weights, ms=ms, tb_per_s=tb_per_s)

    for replicas, weights in ((4, 1_000),) if probe.tiny else ((83, 235_200), (165, 235_200), (512, 235_200)):
        for fused in (False, True):
            probe.attempt(f"update of {replicas} replicas", partial(measure, replicas, weights, fused))


def fc(probe: Probe) -> None:
    """FC on images of MNIST's shape: microseconds per step of stacks of several sizes."""
    import torch

    from supermask.engines.precision import matmul_precision

    sizes, steps = ((2, 7), 5) if probe.tiny else ((165, 83, 512, 8, 1, 32), 100)

    def measure(replicas: int, precision: MatmulPrecision) -> None:
        jobs, data = synthetic_jobs(probe, "fc", replicas, (1, 28, 28))
        with matmul_precision(precision, probe.device):
            if probe.is_gpu:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            stack = make_stack(probe, jobs, data, precision)
            stack.train([0] * replicas, steps)
            first_seconds = time.perf_counter() - start
            seconds = []
            for turn in range(1, 4):
                start = time.perf_counter()
                losses = stack.train([turn * steps] * replicas, steps)
                seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            stack.evaluate(range(replicas), data[0].validation_images, data[0].validation_labels)
            evaluation_seconds = time.perf_counter() - start
        step_seconds = median(seconds) / steps
        # One evaluation per 100 steps, as in the paper's schedule.
        training_seconds = TRAINING_STEPS * (step_seconds + evaluation_seconds / 100)
        probe.record(
            replicas=replicas,
            precision=precision,
            step_us=step_seconds * 1e6,
            evaluation_ms=evaluation_seconds * 1e3,
            first_seconds=first_seconds,
            finite=bool(np.isfinite(losses).all()),
            memory_bytes=torch.cuda.max_memory_allocated() if probe.is_gpu else None,
            trainings_per_minute=60 * replicas / training_seconds,
        )

    for precision in probe.precisions:
        for replicas in sizes:
            probe.attempt(f"fc, {replicas} replicas, {precision}", partial(measure, replicas, precision))


def ceilings(probe: Probe) -> None:
    """Bandwidth of a copy, cost of a node of a graph, and FLOP/s of the products of a step."""
    import torch

    from supermask.engines.precision import matmul_precision

    device = probe.device
    count = 2**20 if probe.tiny else 2**29
    source, target = torch.randn(count, device=device), torch.empty(count, device=device)
    probe.record(what="copy", tb_per_s=8 * count / probe.milliseconds(partial(target.copy_, source)) / 1e9)
    del source, target
    small = torch.zeros(256, device=device)

    def add_200_times() -> None:
        for _ in range(200):
            small.add_(1)

    probe.record(what="node of a graph", us=probe.milliseconds(probe.as_graph(add_200_times)) / 200 * 1e3)
    size, replicas = (256, SEEDS) if probe.tiny else (8_192, 165)
    for precision in probe.precisions:
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        with matmul_precision(precision, device):
            a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            tflops = 2 * size**3 / probe.milliseconds(lambda a=a, b=b: a @ b, 5) / 1e9
            probe.record(what=f"product of {size} x {size}", precision=precision, tflop_per_s=tflops)
            wide = replicas // SEEDS * 300
            w = torch.randn(SEEDS, wide, 784, device=device, dtype=dtype)
            x = torch.randn(SEEDS, 60, 784, device=device, dtype=dtype).mT
            d, bias = w.new_zeros(SEEDS, wide, 60), w.new_zeros(SEEDS, wide)
            products: dict[str, Callable[[], torch.Tensor]] = {
                "first layer, baddbmm": lambda w=w, x=x, bias=bias: torch.baddbmm(bias[:, :, None], w, x),
                "first layer, bmm": lambda w=w, x=x: w @ x,
                "first layer, gradient": lambda d=d, x=x: d @ x.mT,
            }
            for name, product in products.items():
                ms = probe.milliseconds(probe.as_graph(product))
                tflops = 2 * 300 * 784 * 60 * replicas / ms / 1e9
                probe.record(what=name, precision=precision, ms=ms, tflop_per_s=tflops)


def learned(probe: Probe) -> None:
    """Learning masks of FC: microseconds per step."""
    from supermask.core.learned_masks import MaskLearning, initial_mask_state
    from supermask.core.recipe import Recipe
    from supermask.core.rng import child_streams
    from supermask.engines.precision import matmul_precision

    learning, recipe = MaskLearning(), Recipe("sgd", 100.0, 250, 110_000, 880, momentum=0.9)
    precision: MatmulPrecision = "tf32" if probe.is_gpu else "float32"

    def measure(replicas: int) -> None:
        jobs, data = synthetic_jobs(probe, "fc", replicas, (1, 28, 28))
        network = jobs[0].network
        dense, streams = network.initial_state(0), child_streams(0)
        start = initial_mask_state(learning, network.tensors, dense, 0, None, None, streams)
        jobs = [replace(job, start=start, recipe=recipe, learning=learning) for job in jobs]
        steps = 5 if probe.tiny else 100
        with matmul_precision(precision, probe.device):
            stack = make_stack(probe, jobs, data, precision)
            stack.train([0] * replicas, steps)
            begin = time.perf_counter()
            stack.train([steps] * replicas, steps)
            probe.record(replicas=replicas, step_us=(time.perf_counter() - begin) / steps * 1e6)

    for replicas in (SEEDS,) if probe.tiny else (SEEDS, 45):
        probe.attempt(f"learned masks, {replicas} replicas", partial(measure, replicas))


def convolutions(probe: Probe) -> None:
    """The convolution that the engine selects for each layer of Conv6, and the time of each candidate."""
    import torch

    from supermask.engines.precision import matmul_precision
    from supermask.engines.stacked import convolutions as algorithms
    from supermask.engines.stacked.device import autocast_factory
    from supermask.networks.sequential import Conv, architecture

    network, shape, names = ("conv2", (3, 8, 8), ("conv1", "conv2"))
    if not probe.tiny:
        network, shape, names = "conv6", (3, 32, 32), ("conv1", "conv2", "conv4", "conv6")
    batch_size = 4 if probe.tiny else 60
    layers = [layer for layer in architecture(network, shape, 10) if isinstance(layer, Conv) and layer.name in names]

    def measure(layer: Conv, replicas: int, precision: MatmulPrecision, name: str) -> None:
        sizes = (layer.inputs, layer.outputs, *layer.side)
        inputs = algorithms._make_inputs(sizes, batch_size, replicas, probe.device, layer.name == "conv1")
        with matmul_precision(precision, probe.device):
            autocast = autocast_factory(precision, torch.device(probe.device))
            seconds = algorithms._time_pass(algorithms.CONV_ALGORITHMS[name], inputs, autocast, 1e9)
        flop = 6 * 9 * layer.inputs * layer.outputs * layer.side[0] * layer.side[1] * batch_size * replicas
        facts = {"layer": layer.name, "replicas": replicas, "precision": precision, "algorithm": name}
        probe.record(**facts, ms=seconds * 1e3, tflop_per_s=flop / seconds / 1e12)

    for replicas in (2,) if probe.tiny else (8, 32):
        for precision in probe.precisions:
            for layer in layers:
                for name in ("grouped", "grouped, channels last", "one by one", "branches"):
                    what = f"{layer.name}, {name}, {precision}, {replicas} replicas"
                    probe.attempt(what, partial(measure, layer, replicas, precision, name))


def failed_capture(probe: Probe) -> None:
    """A process after a recording that failed: the current stream, the allocator, and a later recording."""
    import torch

    from supermask.engines.stacked.cuda_graph import CudaGraphStep

    x = torch.ones(3, device=probe.device)
    before = torch.cuda.current_stream() if probe.is_gpu else None
    # Reading a value on the host is not allowed in a recording.
    failing = CudaGraphStep(lambda: (x.fill_(x.sum().item()), None)[1], probe.device)
    probe.attempt("a step that cannot be recorded", lambda: failing(5))
    if probe.is_gpu:
        probe.record(what="the current stream is restored", right=torch.cuda.current_stream() == before)
    y = torch.zeros(1, device=probe.device)
    later = CudaGraphStep(lambda: (y.add_(1), None)[1], probe.device)
    probe.attempt("a later recording", lambda: (later(9), probe.record(what="a later recording", right=y.item() == 9)))


def vmapped(probe: Probe) -> None:
    """ResNet-20 in stacks: the check of the module, agreement with the reference engine, milliseconds per step."""
    from supermask.engines import reference, stacked
    from supermask.engines.precision import matmul_precision
    from supermask.engines.stacked.modules import module_obstacle

    name, image_shape = ("resnet20-2", (1, 8, 8)) if probe.tiny else ("resnet20", (3, 32, 32))
    steps, sizes = (3, (2,)) if probe.tiny else (20, (8, 32, 128))

    def check() -> None:
        jobs, data = synthetic_jobs(probe, name, 2, image_shape)
        start = time.perf_counter()
        obstacle = module_obstacle(jobs[0].network, probe.device.type)
        probe.record(what="check of the module", right=not obstacle, obstacle=obstacle, s=time.perf_counter() - start)
        short = [replace(job, recipe=replace(job.recipe, iterations=4, evaluate_every=4)) for job in jobs]
        found, expected = (
            [r.curve.training_loss[-1] for r in engine.train(short, data, probe.device.type)]
            for engine in (stacked, reference)
        )
        difference = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
        probe.record(what="losses of 4 steps against the reference engine", largest_difference=difference)

    def measure(replicas: int, precision: MatmulPrecision) -> None:
        jobs, data = synthetic_jobs(probe, name, replicas, image_shape)
        with matmul_precision(precision, probe.device):
            stack = make_stack(probe, jobs, data, precision)
            stack.train([0] * replicas, steps)
            start = time.perf_counter()
            stack.train([steps] * replicas, steps)
            seconds = (time.perf_counter() - start) / steps
        probe.record(what="ResNet-20", replicas=replicas, precision=precision, ms=seconds * 1e3)

    probe.attempt("ResNet-20, check", check)
    for precision in probe.precisions:
        for replicas in sizes:
            probe.attempt(f"ResNet-20, {replicas} replicas, {precision}", partial(measure, replicas, precision))


FUNCTIONS: dict[str, Callable[[Probe], None]] = {
    function.__name__: function
    for function in (
        *(facts, fresh_reference, agreement, update, fc, ceilings, learned, convolutions, failed_capture, vmapped),
    )
}


# --- supervisor ---


def step_command(step: Step, args: argparse.Namespace, seconds: float) -> list[str]:
    """Command line of a step's process."""
    command = step.tiny_command if args.tiny else step.command
    if command:
        return [sys.executable, *(part.format(out=args.out, device=args.device) for part in command)]
    own = ["--step", step.name, "--seconds", str(seconds - GRACE_SECONDS), "--device", args.device]
    return [sys.executable, "-W", "default", __file__, *own, "--out", str(args.out), *(["--tiny"] * args.tiny)]


def run_step(step: Step, args: argparse.Namespace, seconds: float) -> dict[str, object]:
    """Run one step's process, at most `seconds`, and return its line of the summary."""
    start = time.monotonic()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {"SUPERMASK_CACHE": str(args.out / "cache"), **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with (args.out / "log").open("ab") as log:
        log.write(f"=== {step.name}\n".encode())
        log.flush()
        process = subprocess.Popen(
            step_command(step, args, seconds),
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = "ended at its limit"
        finally:
            # Its workers too: a step may have started some.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {"step": step.name, "status": status, "seconds": round(time.monotonic() - start, 1)}


def run_steps(args: argparse.Namespace) -> list[dict[str, object]]:
    """Run the chosen steps in order until the time is used up; return one line per step."""
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    args.out = args.out.resolve()
    lines: list[dict[str, object]] = []
    with clock_log(args):
        for step in STEPS:
            if args.only and step.name not in args.only:
                continue
            seconds = min(step.seconds * (TINY_PATIENCE if args.tiny else 1), end - time.monotonic())
            if seconds < 2 * GRACE_SECONDS:
                lines.append({"step": step.name, "status": "no time left", "seconds": 0.0})
            else:
                lines.append(run_step(step, args, seconds))
            print(json.dumps(lines[-1]), flush=True)
            with (args.out / RESULTS).open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    return lines


@contextmanager
def clock_log(args: argparse.Namespace) -> Iterator[None]:
    """Log power, utilization, clocks and memory of the GPU once per second, where `nvidia-smi` is there."""
    process = None
    if args.device == "cuda":
        with suppress(FileNotFoundError), (args.out / "dmon").open("wb") as log:
            process = subprocess.Popen(["nvidia-smi", "dmon", "-s", "pucm", "-d", "1"], stdout=log, stderr=log)
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all steps")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a rehearsal")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of steps, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of results, logs and stores")
    parser.add_argument("--step", choices=FUNCTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = [step.name for step in STEPS]
    if unknown := [name for name in args.only or () if name not in names]:
        parser.error(f"--only: {', '.join(unknown)} is not a step; allowed: {', '.join(names)}")
    if args.step:
        import torch

        torch.set_num_threads(1)
        FUNCTIONS[args.step](Probe(args.step, args.device, args.tiny, args.out, args.seconds))
    elif any(line["status"] != 0 for line in run_steps(args)):
        sys.exit(1)


if __name__ == "__main__":
    main()
