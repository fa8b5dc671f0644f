"""Median milliseconds of a run without training, FC on MNIST: plan, initial state, certificate, store.

Claim: store and plan cost at most 10 ms per run. Results are synthetic (every kept weight moves a little), so no data
is needed. Usage: python benchmarks/overhead.py [--levels N] [--folder DIR]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

from supermask.core.certificate import certify
from supermask.core.types import InitialState, LearningCurve, NetworkState, TrainingResult
from supermask.store import Store
from supermask.store.records import encode_result
from supermask.store.replay import StateReplayer
from supermask.study import study_from_dict
from supermask.study.networks import run_network
from supermask.study.plan import make_plan
from supermask.study.run import Run

T = TypeVar("T")


def synthetic_result(start: InitialState) -> TrainingResult:
    """Return the result of a synthetic training run: every kept weight and every bias moves a little."""
    weights = {n: w.where(~start.masks[n], w + 0.01 * torch.randn_like(w)) for n, w in start.weights.items()}
    end = NetworkState(weights, {n: b + 0.1 for n, b in start.unmasked.items()})
    curve = LearningCurve([0, 100], [float("nan"), 1.0], [2.0, 1.0], [0.1, 0.9])
    return TrainingResult("finished", end, {}, curve, {"early_stop_test_accuracy": 0.9})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=None, help="folder of the store [default: temporary]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    milliseconds: dict[str, list[float]] = defaultdict(list)

    def measure(part: str, function: Callable[[], T]) -> T:
        start_time = time.perf_counter()
        result = function()
        milliseconds[part].append(1e3 * (time.perf_counter() - start_time))
        return result

    study = study_from_dict(
        {
            "dataset": "mnist",
            "prune": {"levels": options.levels},
            "treatments": [{"criterion": ["large_final", "random"]}],
        }
    )
    plan = measure("plan", lambda: make_plan(study))
    milliseconds["plan"] = [milliseconds["plan"][0] / len(plan.runs)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Store(Path(folder))
        replayer = StateReplayer(store)
        for run in plan.runs.values():
            process_run(run, store, replayer, measure)
        cold = list(plan.runs)[options.levels]
        measure("all ancestors of a last level, replayed", lambda: StateReplayer(store).parent_run(cold))
    for part, times in milliseconds.items():
        print(f"{part:40} {median(times):8.2f} ms   ({min(times):.2f} to {max(times):.2f}, n={len(times)})")
    print(
        f"{'plan and store, per run':40} {median(milliseconds['plan']) + median(milliseconds['store: commit']):8.2f} ms"
    )


def process_run(run: Run, store: Store, replayer: StateReplayer, measure: Callable[[str, Callable[[], T]], T]) -> None:
    """Measure the work of `supermask.execution.worker` for one run, without the training."""
    start = measure("initial state: score, keep the highest, set", lambda: replayer.initial_state(run))
    result = synthetic_result(start)
    parent = None if run.parent is None else replayer.parent_run(run.parent)
    prunable = run_network(run).tensors
    certificate = measure("certificate", lambda: certify(prunable, start, result, parent, run.step))
    if not certificate.passed:
        raise SystemExit(f"the certificate does not hold: {certificate.checks}")
    facts = {"seconds": 0.0, "engine": "none", "environment": {}, "data": {"fingerprint": "", "note": ""}}
    packed = encode_result(run, start, result, certificate, facts)
    measure("store: commit", lambda: store.commit(run.id, *packed))
    replayer.cache(run, start)


if __name__ == "__main__":
    main()
