"""A study whose names break every output that does not escape them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.small_studies import train_plan
from supermask.study import study_from_dict
from supermask.study.plan import Plan, make_plan

SCRIPT = "<script>alert(1)</script>"

TREATMENTS: dict[str, dict[str, Any]] = {
    SCRIPT: {},
    "../../etc/x": {"criterion": "random"},
    "</script><!--<script>": {"criterion": "small_final"},
    "<b onclick=x>&amp;\"'": {"mask0": "freeze_init"},
    "\u05d0\u05d1\u05d2 \u0627\u0644": {"mask1": "reinit"},
    "\U0001f389 $x$ %{y} {{ 7 * 7 }}": {"mask1": "constant"},
    "w" * 300: {"mask1": "reshuffle"},
}
NAMES = list(TREATMENTS)


def train_hostile_study(store: Path, name: str, title: str) -> Plan:
    """Train one pruned level of each treatment with two seeds into the store and return the plan."""
    data = {
        "title": title,
        "network": "fc-8",
        "seeds": 2,
        "train": {"epochs": 0.3, "evaluate_every": 4},
        "prune": {"levels": 1},
        "treatments": [{"name": label, **treatment} for label, treatment in TREATMENTS.items()],
        "reference": {"name": SCRIPT},
    }
    plan = make_plan(study_from_dict(data, name=name))
    train_plan(plan, store)
    return plan
