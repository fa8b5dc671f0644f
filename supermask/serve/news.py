"""What the page asks for every two seconds: how far studies are, what is going on, and which parts have changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from supermask.execute.progress import duration
from supermask.serve.commands import MOST_FAILURES, Command, Curve
from supermask.serve.shelf import Shelf
from supermask.serve.studies import KnownStudy, how_far
from supermask.status import HEADS

LONGEST = 2_000
"""Characters of a message that are shown: a traceback of its own is no news."""

News = dict[str, Any]


def news(
    shelf: Shelf, known: Sequence[KnownStudy], going_on: Sequence[Command], curves: Mapping[str, Curve], now: float
) -> News:
    """Plain data for JSON. Texts are as they were given: the page sets them as text, never as markup."""
    labels = {run_id: label for study in known for run_id, label in study.labels.items()}
    reading = shelf.reading
    return {
        "reading": None if reading is None else {"read": reading[0], "of": reading[1]},
        "trouble": shelf.trouble,
        "runs": len(shelf.rows),
        "damaged": list(shelf.damaged.values())[:MOST_FAILURES],
        "studies": [_study(study, shelf) for study in known],
        "commands": [_command(command, shelf, known, labels, curves, now) for command in going_on],
    }


def _study(study: KnownStudy, shelf: Shelf) -> News:
    told: News = {"key": study.key, "name": study.name, "title": "", "why_not": study.why_not}
    if study.plan is None:
        return told | {"total": 0, "done": 0, "counts": ""}
    far = how_far(study.plan, shelf.rows)
    bad = [f"{count:,} {HEADS.get(status, status)}" for status, count in sorted(far.by_status.items())]
    kept = [text for text in bad if not text.endswith((" finished", " to do"))]
    subject = f"{next(iter(study.plan.runs.values())).network} on {study.plan.study.dataset}"
    title = study.plan.study.title
    return told | {"title": title, "subject": subject, "total": far.total, "done": far.done, "counts": ", ".join(kept)}


def _command(
    command: Command,
    shelf: Shelf,
    known: Sequence[KnownStudy],
    labels: Mapping[str, str],
    curves: Mapping[str, Curve],
    now: float,
) -> News:
    progress = command.progress
    running = command.state == "running"
    left = progress.seconds_left
    return {
        "studies": progress.studies,
        "names": [study.name for study in known if study.key in progress.studies],
        "state": command.state,
        "message": progress.message[:LONGEST],
        "tasks": progress.tasks,
        "left": min(progress.left, progress.tasks),
        "workers": progress.workers,
        "host": progress.host,
        "time_left": duration(left) if running and left is not None and left >= 0 else "",
        "since": duration(max(now - progress.updated, 0.0)),
        "in_flight": [
            _in_flight(each.run, now - each.since, known, labels, curves) for each in progress.in_flight if running
        ],
        "failures": [_failure(each.run, each.status, each.message, shelf, labels) for each in progress.failures][
            -MOST_FAILURES:
        ],
        "more_failures": max(len(progress.failures) - MOST_FAILURES, 0),
    }


def _in_flight(
    run_id: str, seconds: float, known: Sequence[KnownStudy], labels: Mapping[str, str], curves: Mapping[str, Curve]
) -> News:
    run = next((study.plan.runs[run_id] for study in known if study.plan and run_id in study.plan.runs), None)
    curve = curves.get(run_id)
    return {
        "run": run_id,
        "label": labels.get(run_id, ""),
        "level": run.level if run else None,
        "seed": run.seed if run else None,
        "for": duration(max(seconds, 0.0)),
        "curve": None if curve is None else curve.model_dump(exclude={"run"}),
    }


def _failure(run_id: str, status: str, message: str, shelf: Shelf, labels: Mapping[str, str]) -> News:
    return {
        "run": run_id,
        "label": labels.get(run_id, ""),
        "status": status[:100],
        "message": message[:LONGEST],
        "stored": shelf.has(run_id),
    }
