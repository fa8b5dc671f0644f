"""MLflow: a local SQLite store, `mlflow.db`, without a server; one MLflow run a run, known by its tag."""

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
"""The tag that holds a run's id: MLflow gives ids of its own."""

LONGEST_VALUE = 5000
"""Characters of a tag's or parameter's value."""
BATCH = 900
"""Metrics sent at once, the first time with all params; MLflow takes 1,000 of both."""
PAGE = 5000


@contextmanager
def open_tracker(folder: Path) -> Iterator[LocalStore]:
    """The store in `folder`. Raises MachineError."""
    with _disable_telemetry():
        import sqlalchemy.exc
        from mlflow.exceptions import MlflowException

        try:
            yield LocalStore(folder)
        except (MlflowException, sqlalchemy.exc.SQLAlchemyError) as error:
            raise SystemFailure(f"mlflow cannot write to {folder}: {' '.join(str(error).split())[:300]}") from error


def view_command(folder: Path) -> str:
    """The command that shows what was sent (the `mlflow` package has it, `mlflow-skinny` has not)."""
    return f"mlflow ui --backend-store-uri {quote(address(folder))}"


def address(folder: Path) -> str:
    """The tracking URI of the store in `folder`."""
    return f"sqlite:///{folder / DATABASE}"


class LocalStore:
    """The experiment `supermask`. A run that is not FINISHED there was cut off: it is deleted, and sent again."""

    def __init__(self, folder: Path) -> None:
        import mlflow

        if odd := sorted(set(str(folder)) & set("?#%")):
            raise UserError(f"{folder}: MLflow cannot have its store in a folder with {odd[0]} in its name.")
        self.client: MlflowClient = mlflow.MlflowClient(tracking_uri=address(folder))
        found = self.client.get_experiment_by_name(EXPERIMENT)
        artifacts = (folder / "artifacts").as_uri()
        self.experiment: str = (
            found.experiment_id if found else self.client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        )

    def sent_run_ids(self) -> set[str]:
        """Ids of the runs that are there whole. Others of ours are deleted."""
        finished: set[str] = set()
        cut_off: list[str] = []
        token: str | None = None
        while True:
            page = self.client.search_runs([self.experiment], max_results=PAGE, page_token=token)
            ours = [run for run in page if RUN_ID in run.data.tags]
            finished |= {run.data.tags[RUN_ID] for run in ours if run.info.status == "FINISHED"}
            cut_off += [run.info.run_id for run in ours if run.info.status != "FINISHED"]
            token = page.token
            if not token:
                break
        for each in cut_off:
            self.client.delete_run(each)
        return finished

    def send(self, run: TrackerRun) -> None:
        """Raises MLflow's errors."""
        from mlflow.entities import Metric, Param

        began, ended = round(1000 * run.began), round(1000 * run.ended)
        params = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in run.params.items()]
        tags = {name: value[:LONGEST_VALUE] for name, value in run.tags.items()} | {RUN_ID: run.run_id}
        last = int(run.params["iterations"])
        metrics = [Metric(name, value, ended, last) for name, value in run.metrics.items()]
        for name, points in run.curves.items():
            # `iteration / last` of the way: curves over time are drawn as they went.
            share = (ended - began) / max(last, 1)
            metrics += [Metric(name, value, began + round(at * share), at) for at, value in points]
        at_mlflow = self.client.create_run(self.experiment, began, tags, run.name).info.run_id
        for first in range(0, len(metrics), BATCH):
            self.client.log_batch(at_mlflow, metrics[first : first + BATCH], [] if first else params)
        self.client.set_terminated(at_mlflow, "FINISHED", ended)


@contextmanager
def _disable_telemetry() -> Iterator[None]:
    """No usage data is sent, and nothing is said about tables being made."""
    before = {name: os.environ.get(name) for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")}
    os.environ |= dict.fromkeys(before, "true")
    logger = logging.getLogger("mlflow")
    alembic = logging.getLogger("alembic")
    try:
        import mlflow as _  # noqa: F401 (it sets its loggers up when it is imported)

        levels = {each: each.level for each in (logger, alembic)}
        for each in levels:
            each.setLevel(logging.WARNING)
        yield
        for each, level in levels.items():
            each.setLevel(level)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
