"""Weights & Biases: one offline run folder a run, for `wandb sync`; nothing is sent, nobody is asked to log in."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from supermask.core.errors import SystemFailure
from supermask.export.trackers.record import TrackerRun, one_line

NEEDS = ("wandb",)
PROJECT = "supermask"
STAGING = ".partial"
"""Where a run's folder is written before it is moved to its place, whole."""

RUN_FOLDER = re.compile(r"offline-run-[0-9]{8}_[0-9]{6}-([0-9a-f]{32})")
LONGEST_TAG = 64


@contextmanager
def open_tracker(folder: Path) -> Iterator[OfflineRuns]:
    """The offline runs in `folder`. Raises MachineError."""
    with _offline():
        import wandb

        try:
            yield OfflineRuns(folder)
        except wandb.Error as error:
            raise SystemFailure(f"wandb cannot write to {folder}: {' '.join(str(error).split())}") from error
        finally:
            shutil.rmtree(folder / STAGING, ignore_errors=True)


def view_command(folder: Path) -> str:
    """The command that sends what was written, for those who want that."""
    return f"wandb sync {quote(str(folder))}/offline-run-*"


class OfflineRuns:
    """`offline-run-<when the run ended, UTC>-<run id>/run-<run id>.wandb`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # What a killed export left behind.
        shutil.rmtree(folder / STAGING, ignore_errors=True)

    def sent_run_ids(self) -> set[str]:
        """Ids of the runs whose folder is there."""
        return {match[1] for path in self.folder.iterdir() if (match := RUN_FOLDER.fullmatch(path.name))}

    def send(self, run: TrackerRun) -> None:
        """Raises OSError and wandb's errors."""
        staging = self.folder / STAGING
        staging.mkdir(exist_ok=True)
        with _restore_exit_hooks():
            made = self._written(run, staging)
        for part in ("logs", "tmp"):
            shutil.rmtree(made / part, ignore_errors=True)
        ended = time.strftime("%Y%m%d_%H%M%S", time.gmtime(run.ended))
        made.rename(self.folder / f"offline-run-{ended}-{run.run_id}")

    def _written(self, run: TrackerRun, staging: Path) -> Path:
        import wandb

        written = wandb.init(
            project=PROJECT,
            id=run.run_id,
            name=run.name,
            config=dict(run.params),
            tags=[one_line(tag)[:LONGEST_TAG] for tag in run.tags.values() if tag],
            group=one_line(run.tags["treatment"])[:LONGEST_TAG],
            mode="offline",
            reinit="create_new",
            settings=_settings(staging),
        )
        at: dict[int, dict[str, float]] = {}
        for name, points in run.curves.items():
            for iteration, value in points:
                at.setdefault(iteration, {})[name] = value
        for iteration, values in sorted(at.items()):
            written.log(values, step=iteration)
        written.summary.update(run.metrics)
        written.finish()
        return Path(written.settings.sync_dir)


def _settings(staging: Path) -> object:
    """Nothing of this machine, its repository or its packages goes in: the environment is in the run's params."""
    import wandb

    return wandb.Settings(
        root_dir=str(staging),
        use_dot_wandb=False,
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        save_code=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


@contextmanager
def _restore_exit_hooks() -> Iterator[None]:
    """wandb puts hooks of its own around the end of the program, once more with every run, and leaves them there."""
    before = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = before


@contextmanager
def _offline() -> Iterator[None]:
    """Without what the user's environment says to wandb: a run id, a sweep, a key, a mode."""
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    for name in before:
        del os.environ[name]
    os.environ |= {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            del os.environ[name]
        os.environ |= before
