"""Weights & Biases: one offline run folder per run, for `wandb sync`. Nothing is uploaded and no login is needed."""

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

REQUIRES = ("wandb",)
PROJECT = "supermask"
STAGING = ".partial"
"""Folder in which a run is written before it is renamed into place."""

RUN_FOLDER = re.compile(r"offline-run-[0-9]{8}_[0-9]{6}-([0-9a-f]{32})")
MAX_TAG = 64


@contextmanager
def open_tracker(folder: Path) -> Iterator[OfflineRuns]:
    """Open the offline runs in `folder`. Raises SystemFailure."""
    with _set_offline():
        import wandb

        try:
            yield OfflineRuns(folder)
        except wandb.Error as error:
            raise SystemFailure(f"wandb cannot write to {folder}: {' '.join(str(error).split())}") from error
        finally:
            shutil.rmtree(folder / STAGING, ignore_errors=True)


def view_command(folder: Path) -> str:
    """Return the shell command that uploads the runs."""
    return f"wandb sync {quote(str(folder))}/offline-run-*"


class OfflineRuns:
    """Offline runs `offline-run-<end of the run, UTC>-<run id>/run-<run id>.wandb`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Remains of a killed export.
        shutil.rmtree(folder / STAGING, ignore_errors=True)

    def sent_run_ids(self) -> set[str]:
        """Return the ids of the runs that have a folder."""
        return {match[1] for path in self.folder.iterdir() if (match := RUN_FOLDER.fullmatch(path.name))}

    def send(self, run: TrackerRun) -> None:
        """Add a run. Raises OSError and wandb's errors."""
        staging = self.folder / STAGING
        staging.mkdir(exist_ok=True)
        with _restore_exit_hooks():
            staged = self._write(run, staging)
        for part in ("logs", "tmp"):
            shutil.rmtree(staged / part, ignore_errors=True)
        ended = time.strftime("%Y%m%d_%H%M%S", time.gmtime(run.ended))
        staged.rename(self.folder / f"offline-run-{ended}-{run.run_id}")

    def _write(self, run: TrackerRun, staging: Path) -> Path:
        import wandb

        wandb_run = wandb.init(
            project=PROJECT,
            id=run.run_id,
            name=run.name,
            config=dict(run.params),
            tags=[one_line(tag)[:MAX_TAG] for tag in run.tags.values() if tag],
            group=one_line(run.tags["treatment"])[:MAX_TAG],
            mode="offline",
            reinit="create_new",
            settings=_settings(staging),
        )
        # W&B accepts one log entry per step, with all its values.
        values_by_step: dict[int, dict[str, float]] = {}
        for name, points in run.curves.items():
            for iteration, value in points:
                values_by_step.setdefault(iteration, {})[name] = value
        for iteration, values in sorted(values_by_step.items()):
            wandb_run.log(values, step=iteration)
        wandb_run.summary.update(run.metrics)
        wandb_run.finish()
        return Path(wandb_run.settings.sync_dir)


def _settings(staging: Path) -> object:
    """Return settings that record nothing about this machine; the run's params hold its environment."""
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
    """Restore `sys.exit` and `sys.excepthook`, which wandb wraps again with every run."""
    before = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = before


@contextmanager
def _set_offline() -> Iterator[None]:
    """Hide the user's WANDB_* variables (run id, sweep, key, mode) and set the offline mode."""
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
