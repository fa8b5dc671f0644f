"""Stores with runs of known duration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from helpers.faulty_disk import QuickDisk
from supermask.store import Store
from supermask.study.plan import Plan


def store_runs(folder: Path, plan: Plan, run_ids: list[str], seconds: float, **changes: Any) -> Store:
    """Return a store in which each of these runs took `seconds`."""
    store = Store(folder, QuickDisk())
    for run_id in run_ids:
        run = plan.runs[run_id]
        facts = {"id": run_id, **run.to_data(), "status": "finished", "seconds": seconds, "first_iteration": 0}
        facts |= {"engine": "reference", "kept": {"all": 1}, "weights": 10**9, "metrics": {}, "start_content": "0" * 64}
        facts |= {"certificate": {"held": True, "checks": {}}, "data": {"fingerprint": "", "note": ""}}
        environment = {"fingerprint": "", "torch": "", **changes.get("environment", {})}
        facts |= {**changes, "environment": environment}
        store.commit(run_id, json.loads(json.dumps(facts)), {"x": np.zeros(1)}, {})
    return store
