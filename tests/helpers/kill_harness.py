"""Runs a study over and over, kills it at random moments, and looks at what is left. Run as a program.

    python -m helpers.kill_harness FOLDER KILLS SEED ENGINE

A process of its own, so that torch is imported once and every study starts by a fork of it. Every kill is a SIGKILL:
to the whole study, to its main process alone (its workers may then still commit, beside the next study), or to one
worker, which the study has to replace. Prints one JSON object.
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

import supermask.execution.preload  # noqa: F401  (so that a fork has no imports left to do)
from supermask.datasets import load
from supermask.execution import worker
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
"""So long that a kill finds trainings under way."""


@dataclass
class Report:
    """What was done, and what was found."""

    group_kills: int = 0
    main_kills: int = 0
    worker_kills: int = 0
    runs: int = 0
    """Of one study."""
    studies: int = 0
    """Brought to their end, by starting again and again."""
    starts: int = 0
    lost: int = 0
    """Runs that were there once and were not any more."""
    changed: int = 0
    """Runs that were found with other bits, or other facts, than in a study that nobody killed."""
    checkpoints: int = 0
    """Unfinished runs that were found with a checkpoint."""
    left_over: int = 0
    """Things in a finished study's staging and checkpoint folders."""
    quarantined: int = 0

    @property
    def kills(self) -> int:
        return self.group_kills + self.main_kills + self.worker_kills


def study_plan(epochs: float) -> Plan:
    """Eight three-level chains over two dense runs."""
    train = {"epochs": epochs, "evaluate_every": 8, "batch_size": 60}
    return make_plan(study_from_dict({**STUDY, "train": train}))


def found_in(store: Store) -> dict[str, Any]:
    """Run id -> hashes of its tensors, every byte of them read and checked, and its facts; without how long it took."""
    found = {}
    for run_id in store.run_ids():
        store.read(run_id)
        found[run_id] = (store.tensor_hashes(run_id), {**store.facts(run_id), "seconds": 0})
    return found


def start(plan: Plan, store: Path, engine: str) -> int:
    """Starts the study in a process group of its own; gives its id. A checkpoint at every evaluation."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        run_plan(
            plan, WorkerConfig(store, engine=engine, checkpoint_seconds=0.0), 2, lambda *_: None, start_method="fork"
        )
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


def ended(main: int) -> bool:
    """Whether the study's main process is gone by itself."""
    pid, status = os.waitpid(main, os.WNOHANG)
    assert status == 0, f"the study failed by itself: {status}"
    return bool(pid)


def kill(main: int, how: str, chance: np.random.Generator) -> bool:
    """False if there was nothing to kill. After a worker's death the study lives on."""
    with suppress(ProcessLookupError):
        if how == "worker":
            workers = Path(f"/proc/{main}/task/{main}/children").read_text().split()
            if not workers:
                return False
            os.kill(int(chance.choice(workers)), signal.SIGKILL)
            return True
        os.kill(main, signal.SIGKILL) if how == "main" else os.killpg(main, signal.SIGKILL)
        os.waitpid(main, 0)
        return True
    return False


def has_checkpoint(store: Store, run_id: str) -> bool:
    """A worker that outlived its study for a moment may end the run, and remove its folder, while we look."""
    with suppress(FileNotFoundError):
        return any(path.name.startswith("0") for path in (store.root / "checkpoints" / run_id).iterdir())
    return False


class Harness:
    """Studies one after another, each in a store of its own, killed until it is whole."""

    def __init__(self, folder: Path, seed: int, engine: str) -> None:
        self.engine, self.chance, self.plan = engine, np.random.default_rng(seed), study_plan(EPOCHS[engine])
        began = time.monotonic()
        assert os.waitpid(start(self.plan, folder / "whole", engine), 0)[1] == 0
        self.seconds = 0.3 * (time.monotonic() - began)
        """The longest time to the next kill; follows how busy the machine is."""
        self.expected = found_in(Store(folder / "whole"))
        self.report = Report(runs=len(self.expected))

    def study(self, store: Store, kills: int) -> None:
        """Starts and kills one study until it is whole; when so many kills are done, it is left alone."""
        seen: set[str] = set()
        while len(seen) < len(self.expected):
            self.one_life(store, spared=self.report.kills >= kills)
            there = found_in(store)
            self.seconds *= 1.2 if len(there) == len(seen) else 0.95
            self.report.lost += len(seen - there.keys())
            self.report.changed += sum(there[run_id] != self.expected[run_id] for run_id in there)
            unfinished = self.plan.runs.keys() - there.keys()
            self.report.checkpoints += sum(has_checkpoint(store, run_id) for run_id in unfinished)
            seen = set(there)
        store.remove_stale()
        self.report.left_over += sum(1 for kind in ("staging", "checkpoints") for _ in (store.root / kind).glob("*"))
        self.report.quarantined += sum(1 for _ in (store.root / "quarantine").glob("*"))
        self.report.studies += 1

    def one_life(self, store: Store, spared: bool) -> None:
        """From a start to the death of the main process, by itself or not; up to two workers die before."""
        self.report.starts += 1
        main = start(self.plan, store.root, self.engine)
        workers_killed = 0
        while True:
            time.sleep(self.chance.uniform(0.0, self.seconds))
            if ended(main):
                return
            if spared:
                continue
            how = str(self.chance.choice(["group", "main", "worker"], p=[0.5, 0.25, 0.25]))
            if how == "worker" and workers_killed == MAX_WORKER_CRASHES - 1:
                how = "group"
            if kill(main, how, self.chance):
                workers_killed += how == "worker"
                setattr(self.report, f"{how}_kills", getattr(self.report, f"{how}_kills") + 1)
                if how != "worker":
                    return


def main(folder: Path, kills: int, seed: int, engine: str) -> None:
    torch.set_num_threads(1)
    if engine == "sparse":
        import supermask.execution.preload.sparse  # noqa: F401
    images = load("digits")
    setattr(worker, "load", lambda name, data_dir: images)  # noqa: B010 (every fork has them in memory)
    harness = Harness(folder, seed, engine)
    while harness.report.kills < kills:
        harness.study(Store(folder / f"killed-{harness.report.studies}"), kills)
    print(json.dumps({**asdict(harness.report), "kills": harness.report.kills}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
