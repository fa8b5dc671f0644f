"""What a run costs beside its training, for FC on MNIST: plan, start, certificate, store. Milliseconds, medians.

Claim: the store and the plan cost at most 10 ms a run. Outcomes are made up (every kept weight moves a little), so no
data is needed. Usage: python benchmarks/overhead.py [--levels N] [--folder DIR]
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
from supermask.networks.sequential import prunable_tensors
from supermask.store import Store
from supermask.store.records import encode_result
from supermask.store.replay import StateReplayer, build_step, run_architecture
from supermask.study import study_from_dict
from supermask.study.plan import make_plan
from supermask.study.run import Run

T = TypeVar("T")


def moved(start: InitialState) -> TrainingResult:
    """A made-up training: every kept weight and every bias a little further."""
    weights = {n: w.where(~start.masks[n], w + 0.01 * torch.randn_like(w)) for n, w in start.weights.items()}
    end = NetworkState(weights, {n: b + 0.1 for n, b in start.unmasked.items()})
    curve = LearningCurve([0, 100], [float("nan"), 1.0], [2.0, 1.0], [0.1, 0.9])
    return TrainingResult("finished", end, {}, curve, {"early_stop_test_accuracy": 0.9})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", type=int, default=12)
    parser.add_argument("--folder", type=Path, default=None, help="where the store is made [default: temporary]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    took: dict[str, list[float]] = defaultdict(list)

    def timed(what: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        took[what].append(1e3 * (time.perf_counter() - began))
        return result

    study = study_from_dict(
        {
            "dataset": "mnist",
            "prune": {"levels": options.levels},
            "treatments": [{"criterion": ["large_final", "random"]}],
        }
    )
    plan = timed("plan", lambda: make_plan(study))
    took["plan"] = [took["plan"][0] / len(plan.runs)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = Store(Path(folder))
        lineage = StateReplayer(store)
        for run in plan.runs.values():
            one_run(run, store, lineage, timed)
        cold = list(plan.runs)[options.levels]
        timed("a last level's parents, all made again", lambda: StateReplayer(store).parent_run(cold))
    for what, times in took.items():
        print(f"{what:40} {median(times):8.2f} ms   ({min(times):.2f} to {max(times):.2f}, n={len(times)})")
    print(f"{'plan and store, a run':40} {sum(median(took[what]) for what in ('plan', 'store: commit')):8.2f} ms")


def one_run(run: Run, store: Store, lineage: StateReplayer, timed: Callable[[str, Callable[[], T]], T]) -> None:
    """The work of `execute.worker.Worker` without the training."""
    start = timed("start: score, keep the top, set", lambda: lineage.initial_state(run))
    outcome = moved(start)
    parent = None if run.parent is None else lineage.parent_run(run.parent)
    step = None if run.step is None else build_step(run.step)
    found = prunable_tensors(run_architecture(run))
    certificate = timed("certificate", lambda: certify(found, start, outcome, parent, step))
    if not certificate.held:
        raise SystemExit(f"the certificate does not hold: {certificate.checks}")
    about = {"seconds": 0.0, "engine": "none", "environment": {}, "data": {"fingerprint": "", "note": ""}}
    packed = encode_result(run, start, outcome, certificate, about)
    timed("store: commit", lambda: store.commit(run.id, *packed))
    lineage.cache(run, start)


if __name__ == "__main__":
    main()
