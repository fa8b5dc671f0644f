"""MLflow: a local SQLite store, `mlflow.db`, without a server. Each run is one MLflow run, identified by a tag."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from supermask.core.errors import SystemFailure, UserError
from supermask.export.trackers.record import TrackerRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUIRES = ("mlflow", "sqlalchemy", "alembic")
EXPERIMENT = "supermask"
DATABASE = "mlflow.db"
RUN_ID = "supermask.run_id"
"""Tag that holds a run's id; MLflow assigns its own ids."""

MAX_VALUE = 5000
"""Number of characters of a tag's or param's value."""

BATCH_SIZE = 900
"""Number of metrics per request; the first request has all params too. MLflow accepts 1,000 entries."""

PAGE_SIZE = 5000


@contextmanager
def open_tracker(folder: Path) -> Iterator[LocalStore]:
    """Open the store in `folder`. Raises SystemFailure."""
    with _disable_telemetry():
        import sqlalchemy.exc
        from mlflow.exceptions import MlflowException

        try:
            yield LocalStore(folder)
        except (MlflowException, sqlalchemy.exc.SQLAlchemyError) as error:
            raise SystemFailure(f"mlflow cannot write to {folder}: {' '.join(str(error).split())[:300]}") from error


def view_command(folder: Path) -> str:
    """Return the shell command that displays the runs. It needs `mlflow`; `mlflow-skinny` lacks it."""
    return f"mlflow ui --backend-store-uri {quote(tracking_uri(folder))}"


def tracking_uri(folder: Path) -> str:
    """Return the tracking URI of the store in `folder`."""
    return f"sqlite:///{folder / DATABASE}"


class LocalStore:
    """The experiment `supermask`. Runs that are not FINISHED were interrupted; they are deleted and sent again."""

    def __init__(self, folder: Path) -> None:
        import mlflow

        if forbidden := sorted(set(str(folder)) & set("?#%")):
            raise UserError(
                f"{folder}: MLflow cannot use a folder with {forbidden[0]} in its name: choose another with --out."
            )
        self.client: MlflowClient = mlflow.MlflowClient(tracking_uri=tracking_uri(folder))
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        artifacts = (folder / "artifacts").as_uri()
        self.experiment: str = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        )

    def sent_run_ids(self) -> set[str]:
        """Return the ids of the complete runs, and delete interrupted ones."""
        finished: set[str] = set()
        interrupted: list[str] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=PAGE_SIZE, page_token=token)
            ours = [run for run in page if RUN_ID in run.data.tags]
            finished |= {run.data.tags[RUN_ID] for run in ours if run.info.status == "FINISHED"}
            interrupted += [run.info.run_id for run in ours if run.info.status != "FINISHED"]
            token = page.token
            if not token:
                break
        for mlflow_id in interrupted:
            self.client.delete_run(mlflow_id)
        return finished

    def send(self, run: TrackerRun) -> None:
        """Add a run. Raises MLflow's errors."""
        from mlflow.entities import Metric, Param

        began, ended = round(1000 * run.began), round(1000 * run.ended)
        params = [Param(name, str(value)[:MAX_VALUE]) for name, value in run.params.items()]
        tags = {name: value[:MAX_VALUE] for name, value in run.tags.items()} | {RUN_ID: run.run_id}
        last = int(run.params["iterations"])
        metrics = [Metric(name, value, ended, last) for name, value in run.metrics.items()]
        for name, points in run.curves.items():
            # Times of evaluations are not stored; they are interpolated, so that curves over time have the right shape.
            milliseconds = (ended - began) / max(last, 1)
            metrics += [Metric(name, value, began + round(i * milliseconds), i) for i, value in points]
        mlflow_id = self.client.create_run(self.experiment, began, tags, run.name).info.run_id
        for first in range(0, len(metrics), BATCH_SIZE):
            self.client.log_batch(mlflow_id, metrics[first : first + BATCH_SIZE], [] if first else params)
        self.client.set_terminated(mlflow_id, "FINISHED", ended)


@contextmanager
def _disable_telemetry() -> Iterator[None]:
    """Turn off usage data, and log messages about the creation of tables."""
    before = {name: os.environ.get(name) for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")}
    os.environ |= dict.fromkeys(before, "true")
    levels: dict[logging.Logger, int] = {}
    try:
        import mlflow as _  # noqa: F401 (it sets its loggers up when it is imported)

        levels = {log: log.level for log in map(logging.getLogger, ("mlflow", "alembic"))}
        for log in levels:
            log.setLevel(logging.WARNING)
        yield
    finally:
        for log, level in levels.items():
            log.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
