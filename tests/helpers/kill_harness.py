"""A program that starts studies again and again, kills them at random moments, and checks the store.

    python -m helpers.kill_harness FOLDER KILLS SEED ENGINE START_METHOD
    python -m helpers.kill_harness FOLDER ROUNDS SEED commands

A process of its own: it imports torch once, and every study is a fork of it. The first form kills one study at a time:
the whole process group, its main process, one worker, the fork server or the resource tracker by SIGKILL; main process
or group by SIGTERM, SIGHUP, SIGINT or SIGQUIT. The second form runs four commands at once on one store, with equal and
overlapping studies, and kills some of them. Prints one JSON object.
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
from helpers.processes import command_lines, group_members, wait_until_gone
from supermask.datasets import load
from supermask.execution import resources
from supermask.execution.coordinator import ExecutionRequest
from supermask.execution.local import MAX_WORKER_CRASHES, StudyInterrupted, run_plan
from supermask.execution.tasks import WorkerConfig
from supermask.store import Store
from supermask.study import study_from_dict
from supermask.study.plan import Plan, make_plan

STUDY: dict[str, Any] = {
    "network": "fc-20",
    "dataset": "digits",
    "seeds": 2,
    "prune": {"levels": 3, "rates": {"hidden": 0.5, "output": 0.3}},
    "treatments": [{"criterion": ["large_final", "random"], "mask1": ["rewind", "reshuffle"]}],
}


EPOCHS = {"reference": 1.5, "sparse": 8}
"""Epochs per engine: enough for kills to hit running trainings."""


@dataclass
class Report:
    """Counts of the harness."""

    group_kills: int = 0
    main_kills: int = 0
    worker_kills: int = 0
    stop_kills: int = 0
    """SIGTERM, SIGHUP and SIGINT, to the main process or its group."""
    quit_kills: int = 0
    """SIGQUIT to the group."""
    server_kills: int = 0
    tracker_kills: int = 0
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
    outlived: int = 0
    """Commands of which a process was left two seconds after the end of their main process."""
    trained_twice: int = 0
    """Runs that were trained to their end although another process had committed them."""

    @property
    def kills(self) -> int:
        return sum(getattr(self, f"{target}_kills") for target in (*TARGETS, *SERVER_TARGETS))


TARGETS = {"group": 0.3, "main": 0.2, "worker": 0.2, "stop": 0.2, "quit": 0.1}
"""Target -> share of the kills."""

SERVER_TARGETS = {"server": "multiprocessing.forkserver", "tracker": "multiprocessing.resource_tracker"}
"""Targets of studies with a fork server -> part of their command line."""

INTERRUPTED = 3
"""Exit status of a study that was ended by a stop signal."""


def study_plan(epochs: float) -> Plan:
    """Return the plan of eight three-level chains over two dense runs."""
    return make_plan(study_from_dict({**STUDY, "train": train_settings(epochs)}))


def stored_results(store: Store) -> dict[str, Any]:
    """Return run id -> tensor hashes and facts (without the duration). Reads and checks every byte."""
    results = {}
    for run_id in store.run_ids():
        store.read(run_id)
        results[run_id] = (store.tensor_hashes(run_id), {**store.facts(run_id), "seconds": 0})
    return results


def start_study(plan: Plan, store: Path, engine: str, start_method: str = "fork", every: float = 0.0) -> int:
    """Start the study in a process group of its own and return its id. `every`: seconds between checkpoints."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        config = WorkerConfig(store, engine=engine, checkpoint_seconds=every)
        run_plan(ExecutionRequest(plan, config, 2, lambda *_: None), start_method=start_method)
        os._exit(0)
    except StudyInterrupted:
        os._exit(INTERRUPTED)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


def has_ended(main: int) -> bool:
    """Return True if the study's main process has ended by itself."""
    pid, status = os.waitpid(main, os.WNOHANG)
    assert status == 0, f"the study failed by itself: {status}"
    return bool(pid)


def kill(main: int, target: str, rng: np.random.Generator) -> bool:
    """Kill a target; return False if there was nothing to kill. Workers and servers leave the study alive."""
    with suppress(ProcessLookupError):
        if target in ("worker", *SERVER_TARGETS):
            pids = workers(main) if target == "worker" else server_processes(main, SERVER_TARGETS[target])
            if not pids:
                return False
            os.kill(int(rng.choice(pids)), signal.SIGKILL)
            return True
        if target == "stop":
            number = rng.choice([signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
            (os.kill if rng.random() < 0.5 else os.killpg)(main, int(number))
        elif target == "main":
            os.kill(main, signal.SIGKILL)
        else:
            os.killpg(main, signal.SIGQUIT if target == "quit" else signal.SIGKILL)
        os.waitpid(main, 0)
        return True
    return False


def server_processes(main: int, text: str) -> list[int]:
    """Return the ids of a study's processes whose command line contains a text."""
    return [pid for pid, command in command_lines(main).items() if text in command]


def workers(main: int) -> list[int]:
    """Return the ids of a study's workers: children of its main process or of its fork server."""
    servers = server_processes(main, "multiprocessing.")
    parents = [main, *servers]
    children = {int(pid) for parent in parents for pid in children_of(parent)}
    return sorted(children - set(servers))


def children_of(pid: int) -> list[str]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def has_checkpoint(store: Store, run_id: str) -> bool:
    """Return True if the run has a checkpoint. A worker that survives its study may remove it at the same time."""
    with suppress(FileNotFoundError):
        return any(path.name.startswith("0") for path in (store.root / "checkpoints" / run_id).iterdir())
    return False


class Harness:
    """Runs studies, each in a store of its own, with kills until they are complete."""

    def __init__(self, folder: Path, seed: int, engine: str, start_method: str = "fork") -> None:
        self.folder, self.engine, self.start_method = folder, engine, start_method
        self.rng, self.plan = np.random.default_rng(seed), study_plan(EPOCHS[engine])
        began = time.monotonic()
        assert os.waitpid(start_study(self.plan, folder / "whole", engine, start_method), 0)[1] == 0
        self.seconds = 0.3 * (time.monotonic() - began)
        """Upper limit of the time to the next kill. Adapts to the load of the machine."""
        self.expected = stored_results(Store(folder / "whole"))
        self.report = Report(runs=len(self.expected))
        self.targets = dict(TARGETS)
        if start_method == "forkserver":
            self.targets = {"server": 0.3, "tracker": 0.2, "worker": 0.1, "main": 0.2, "stop": 0.2}

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
        self.check_leftovers(store)

    def check_leftovers(self, store: Store) -> None:
        """Count what a complete study must not leave."""
        store.remove_stale()
        self.report.left_over += sum(1 for kind in ("staging", "checkpoints") for _ in (store.root / kind).glob("*"))
        self.report.quarantined += sum(1 for _ in (store.root / "quarantine").glob("*"))
        self.report.studies += 1

    def choose_target(self) -> str:
        """Draw a target; those that were never killed come first, so that a few kills have every kind."""
        missing = [target for target in self.targets if not getattr(self.report, f"{target}_kills")]
        if missing:
            return str(self.rng.choice(missing))
        return str(self.rng.choice([*self.targets], p=[*self.targets.values()]))

    def run_once(self, store: Store, spare: bool) -> None:
        """Run the study until its main process ends or is killed; up to two helper processes are killed before."""
        self.report.starts += 1
        main = start_study(self.plan, store.root, self.engine, self.start_method)
        crashes = 0
        while True:
            time.sleep(self.rng.uniform(0.0, self.seconds))
            if has_ended(main):
                break
            if spare:
                continue
            target = self.choose_target()
            # A killed server takes all workers with it, each of which counts as a crash of its run.
            if target in ("worker", "server") and crashes == MAX_WORKER_CRASHES - 1:
                target = "main"
            if kill(main, target, self.rng):
                crashes += target in ("worker", "server")
                setattr(self.report, f"{target}_kills", getattr(self.report, f"{target}_kills") + 1)
                if target not in ("worker", *SERVER_TARGETS):
                    break
        self.report.outlived += not wait_until_gone(main, 2.0)


def run_commands(folder: Path, rounds: int, seed: int) -> Report:
    """Run four commands at once on one store, kill some of them, and let the others end; `rounds` times."""
    harness = Harness(folder, seed, "reference")
    large = harness.plan
    treatments = [{"criterion": "random", "mask1": ["reshuffle", "rewind"]}, {"criterion": "large_final"}]
    overlapping = make_plan(
        study_from_dict({**STUDY, "train": train_settings(EPOCHS["reference"]), "treatments": treatments})
    )
    shorter = make_plan(
        study_from_dict(
            {**STUDY, "train": train_settings(EPOCHS["reference"]), "prune": {**STUDY["prune"], "levels": 2}}
        )
    )
    log = folder / "second-commits"
    record_second_commits(log)
    rng, report = harness.rng, harness.report
    for number in range(rounds):
        store = Store(folder / f"shared-{number}")
        plans = [large, large, overlapping, shorter]
        mains = [start_study(plan, store.root, "reference", every=0.05) for plan in plans]
        report.starts += len(mains)
        victims = {int(main) for main in rng.choice(mains, size=rng.integers(0, 4), replace=False)}
        for main in victims:
            time.sleep(rng.uniform(0.0, harness.seconds))
            target = str(rng.choice(["group", "main", "stop", "quit"]))
            if group_members(main) and kill(main, target, rng):
                setattr(report, f"{target}_kills", getattr(report, f"{target}_kills") + 1)
                report.outlived += not wait_until_gone(main, 2.0)
        for main in mains:
            if main not in victims:
                assert os.waitpid(main, 0)[1] == 0, "a command that was not killed has failed"
        # Commands that were killed leave their runs to the others, or to a last command.
        for plan in (large, overlapping):
            assert os.waitpid(start_study(plan, store.root, "reference"), 0)[1] == 0
        results = stored_results(store)
        report.lost += len(harness.expected.keys() - results.keys())
        report.changed += sum(results[run_id] != harness.expected[run_id] for run_id in harness.expected)
        harness.check_leftovers(store)
    report.trained_twice = len(log.read_text().splitlines()) if log.exists() else 0
    return report


def train_settings(epochs: float) -> dict[str, float]:
    return {"epochs": epochs, "evaluate_every": 8, "batch_size": 60}


def record_second_commits(log: Path) -> None:
    """Record every commit of a run that is in the store already, in this process and all its forks."""
    commit = Store.commit

    def recording_commit(store: Store, run_id: str, *arguments: Any) -> bool:
        is_first = commit(store, run_id, *arguments)
        if not is_first:
            with log.open("a") as file:
                file.write(f"{run_id}\n")
        return is_first

    setattr(Store, "commit", recording_commit)  # noqa: B010 (mypy does not allow to assign a method)


def main(folder: Path, count: int, seed: int, engine: str, start_method: str = "fork") -> None:
    torch.set_num_threads(1)
    if engine == "sparse":
        import supermask.execution.preload.sparse  # noqa: F401
    images = load("digits")
    setattr(resources, "load", lambda name, data_dir: images)  # noqa: B010 (shared by all forks)
    if engine == "commands":
        report = run_commands(folder, count, seed)
    else:
        harness = Harness(folder, seed, engine, start_method)
        report = harness.report
        while report.kills < count:
            harness.study(Store(folder / f"killed-{report.studies}"), count)
    print(json.dumps({**asdict(report), "kills": report.kills}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
