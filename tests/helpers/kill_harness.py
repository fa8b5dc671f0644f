"""A program that starts a study again and again, kills it at random moments, and checks the store.

    python -m helpers.kill_harness FOLDER KILLS SEED ENGINE

A process of its own: it imports torch once, and every study is a fork of it. Every kill is a SIGKILL: to the whole
study, to its main process only (its workers may still commit beside the next study), or to one worker, which the study
has to replace. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import supermask.execution.preload.base  # noqa: F401  (imported before the forks)
from supermask.datasets import load
from supermask.execution import resources
from supermask.execution.coordinator import ExecutionRequest
from supermask.execution.local import MAX_WORKER_CRASHES, run_plan
from supermask.execution.tasks import WorkerConfig
from supermask.store import Store
from supermask.study import study_from_dict
from supermask.study.plan import Plan, make_plan

STUDY = {
    "network": "fc-20",
    "dataset": "digits",
    "seeds": 2,
    "prune": {"levels": 3, "rates": {"hidden": 0.5, "output": 0.3}},
    "treatments": [{"criterion": ["large_final", "random"], "mask1": ["rewind", "reshuffle"]}],
}


EPOCHS = {"reference": 1.5, "sparse": 20}
"""Epochs per engine: enough for kills to hit running trainings."""


@dataclass
class Report:
    """Counts of the harness."""

    group_kills: int = 0
    main_kills: int = 0
    worker_kills: int = 0
    runs: int = 0
    """Runs of one study."""
    studies: int = 0
    """Studies that were restarted until they were complete."""
    starts: int = 0
    lost: int = 0
    """Runs that disappeared from the store."""
    changed: int = 0
    """Runs with other bits or other facts than in a study without kills."""
    checkpoints: int = 0
    """Unfinished runs with a checkpoint."""
    left_over: int = 0
    """Entries in the staging and checkpoint folders of complete studies."""
    quarantined: int = 0

    @property
    def kills(self) -> int:
        return self.group_kills + self.main_kills + self.worker_kills


def study_plan(epochs: float) -> Plan:
    """Return the plan of eight three-level chains over two dense runs."""
    train = {"epochs": epochs, "evaluate_every": 8, "batch_size": 60}
    return make_plan(study_from_dict({**STUDY, "train": train}))


def stored_results(store: Store) -> dict[str, Any]:
    """Return run id -> tensor hashes and facts (without the duration). Reads and checks every byte."""
    results = {}
    for run_id in store.run_ids():
        store.read(run_id)
        results[run_id] = (store.tensor_hashes(run_id), {**store.facts(run_id), "seconds": 0})
    return results


def start_study(plan: Plan, store: Path, engine: str) -> int:
    """Start the study in a process group of its own and return its id. It saves a checkpoint at every evaluation."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        config = WorkerConfig(store, engine=engine, checkpoint_seconds=0.0)
        run_plan(ExecutionRequest(plan, config, 2, lambda *_: None), start_method="fork")
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


def has_ended(main: int) -> bool:
    """Return True if the study's main process has ended by itself."""
    pid, status = os.waitpid(main, os.WNOHANG)
    assert status == 0, f"the study failed by itself: {status}"
    return bool(pid)


def kill(main: int, target: str, rng: np.random.Generator) -> bool:
    """Kill a target; return False if there was nothing to kill. The study survives the death of a worker."""
    with suppress(ProcessLookupError):
        if target == "worker":
            workers = Path(f"/proc/{main}/task/{main}/children").read_text().split()
            if not workers:
                return False
            os.kill(int(rng.choice(workers)), signal.SIGKILL)
            return True
        os.kill(main, signal.SIGKILL) if target == "main" else os.killpg(main, signal.SIGKILL)
        os.waitpid(main, 0)
        return True
    return False


def has_checkpoint(store: Store, run_id: str) -> bool:
    """Return True if the run has a checkpoint. A worker that survives its study may remove it at the same time."""
    with suppress(FileNotFoundError):
        return any(path.name.startswith("0") for path in (store.root / "checkpoints" / run_id).iterdir())
    return False


class Harness:
    """Runs studies, each in a store of its own, with kills until they are complete."""

    def __init__(self, folder: Path, seed: int, engine: str) -> None:
        self.engine, self.rng, self.plan = engine, np.random.default_rng(seed), study_plan(EPOCHS[engine])
        began = time.monotonic()
        assert os.waitpid(start_study(self.plan, folder / "whole", engine), 0)[1] == 0
        self.seconds = 0.3 * (time.monotonic() - began)
        """Upper limit of the time to the next kill. Adapts to the load of the machine."""
        self.expected = stored_results(Store(folder / "whole"))
        self.report = Report(runs=len(self.expected))

    def study(self, store: Store, kills: int) -> None:
        """Start and kill one study until it is complete; spare it once there were `kills` kills."""
        seen_ids: set[str] = set()
        while len(seen_ids) < len(self.expected):
            self.run_once(store, spare=self.report.kills >= kills)
            results = stored_results(store)
            self.seconds *= 1.2 if len(results) == len(seen_ids) else 0.95
            self.report.lost += len(seen_ids - results.keys())
            self.report.changed += sum(results[run_id] != self.expected[run_id] for run_id in results)
            unfinished = self.plan.runs.keys() - results.keys()
            self.report.checkpoints += sum(has_checkpoint(store, run_id) for run_id in unfinished)
            seen_ids = set(results)
        store.remove_stale()
        self.report.left_over += sum(1 for kind in ("staging", "checkpoints") for _ in (store.root / kind).glob("*"))
        self.report.quarantined += sum(1 for _ in (store.root / "quarantine").glob("*"))
        self.report.studies += 1

    def run_once(self, store: Store, spare: bool) -> None:
        """Run the study until its main process ends or is killed; up to two workers are killed before."""
        self.report.starts += 1
        main = start_study(self.plan, store.root, self.engine)
        workers_killed = 0
        while True:
            time.sleep(self.rng.uniform(0.0, self.seconds))
            if has_ended(main):
                return
            if spare:
                continue
            target = str(self.rng.choice(["group", "main", "worker"], p=[0.5, 0.25, 0.25]))
            if target == "worker" and workers_killed == MAX_WORKER_CRASHES - 1:
                target = "group"
            if kill(main, target, self.rng):
                workers_killed += target == "worker"
                setattr(self.report, f"{target}_kills", getattr(self.report, f"{target}_kills") + 1)
                if target != "worker":
                    return


def main(folder: Path, kills: int, seed: int, engine: str) -> None:
    torch.set_num_threads(1)
    if engine == "sparse":
        import supermask.execution.preload.sparse  # noqa: F401
    images = load("digits")
    setattr(resources, "load", lambda name, data_dir: images)  # noqa: B010 (shared by all forks)
    harness = Harness(folder, seed, engine)
    while harness.report.kills < kills:
        harness.study(Store(folder / f"killed-{harness.report.studies}"), kills)
    print(json.dumps({**asdict(harness.report), "kills": harness.report.kills}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
