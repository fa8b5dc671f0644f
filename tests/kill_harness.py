"""Kills a study with SIGKILL at random moments, again and again, and looks at what is left. Run as a program.

A process of its own, so that torch is imported once and every study starts by a fork of it. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import supermask.execute.preload  # noqa: F401  (so that a fork has no imports left to do)
from supermask.execute.local import run_plan
from supermask.execute.worker import Site
from supermask.plan import Plan, make_plan
from supermask.store import Store
from supermask.study_file import study_from

STUDY = {
    "network": "fc-20",
    "dataset": "digits",
    "seeds": 2,
    "train": {"epochs": 1.5, "evaluate_every": 8, "batch_size": 60},
    "prune": {"levels": 3, "rates": {"hidden": 0.5, "output": 0.3}},
    "treatments": [{"criterion": ["large_final", "random"], "mask1": ["rewind", "reshuffle"]}],
}


def study_plan() -> Plan:
    """Eight three-level chains over two dense runs."""
    return make_plan(study_from(STUDY))


def contents(store: Store) -> dict[str, dict[str, str]]:
    """Run id -> hashes of its tensors, every byte of them read and checked."""
    found = {}
    for run_id in store.run_ids():
        store.read(run_id)
        found[run_id] = store.contents(run_id)
    return found


def study_in_child(plan: Plan, store: Path) -> int:
    """Starts the study in a process group of its own; gives its id. A checkpoint at every evaluation."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    try:
        run_plan(plan, Site(store, checkpoint_seconds=0.0), 2, lambda *_: None, start_method="fork")
        os._exit(0)
    except BaseException:
        os._exit(1)


def killed(child: int, after: float) -> bool:
    """SIGKILL to the whole group after so many seconds; False if the study had ended by then."""
    time.sleep(after)
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        assert status == 0, f"the study failed by itself: {status}"
        return False
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    chance = random.Random(seed)
    plan = study_plan()
    began = time.monotonic()
    os.waitpid(study_in_child(plan, folder / "whole"), 0)
    whole_takes = time.monotonic() - began
    expected = contents(Store(folder / "whole"))
    report = {"kills": 0, "studies": 0, "runs": len(expected), "lost": 0, "changed": 0, "checkpoints_seen": 0, "starts": 0}
    seen: set[str] = set()
    while report["kills"] < kills:
        store = Store(folder / f"killed-{report['studies']}")
        report["starts"] += 1
        report["kills"] += killed(study_in_child(plan, store.root), chance.uniform(0.0, 0.6 * whole_takes))
        there = contents(store)
        report["lost"] += len(seen - there.keys())
        report["changed"] += sum(there[run_id] != expected[run_id] for run_id in there)
        unfinished = {run_id for run_id in plan.runs if store.load_checkpoint(run_id)} - there.keys()
        report["checkpoints_seen"] += len(unfinished)
        seen = set(there)
        if len(there) == len(expected):
            store.sweep()
            leftovers = [path for kind in ("staging", "checkpoints") for path in (store.root / kind).glob("*")]
            report["left_over"] = report.get("left_over", 0) + len(leftovers)
            report["studies"] += 1
            seen = set()
    print(json.dumps(report | {"seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
