"""Export to trackers, read back with their own readers: complete, once, offline, with any names."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy.event
from helpers.command_line import call, refused
from helpers.small_studies import small_plan, train_plan
from helpers.stored_study import RUNS, TEXT, TrainedStudy, train_study, write_study
from helpers.tracker_readers import READERS, TrackedRun

import supermask
from supermask.api.trackers import export_tracker
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.core.types import LearningCurve
from supermask.export import trackers
from supermask.export.folder_lock import LOCK
from supermask.export.trackers import TRACKERS, TrackerRun, mlflow, send, to_tracker_run
from supermask.export.trackers.record import MAX_NAME, METRICS
from supermask.store import Store
from supermask.store.records import decode_curve
from supermask.store.rows import plan_rows
from supermask.store.tables import COLUMNS

NUMERIC_PARAMS = {
    "level",
    "seed",
    "multiplier",
    "start_logit",
    "confidence",
    "lr",
    "batch_size",
    "evaluate_every",
    "momentum",
}
NUMERIC_PARAMS |= {"weight_decay", "lr_drop_factor", "warmup", "iterations", "first_iteration"}
NUMERIC_PARAMS |= {"eps", "label_smoothing", "train_images", "label_noise", "validation_images"}
NUMERIC_PARAMS |= {f"prune_rate_{kind}" for kind in ("conv", "hidden", "output", "global")}
"""Numeric columns that describe a run; all other numbers are measurements."""


@pytest.fixture(scope="module")
def stored_study(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("trackers"))


@pytest.fixture(scope="module", autouse=True)
def disable_sqlite_sync() -> Iterator[None]:
    """MLflow creates its tables in 500 transactions; without a sync each this takes a second instead of a minute."""

    def disable_sync(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", disable_sync)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", disable_sync)


@pytest.fixture(scope="module")
def sent(stored_study: TrainedStudy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export the study to every tracker: tracker -> folder."""
    out = tmp_path_factory.mktemp("sent")
    for tracker in TRACKERS:
        summary = export_tracker(tracker, [str(stored_study.study)], (), stored_study.store, out / tracker)
        assert (summary.sent, summary.known, summary.left_out, summary.damaged) == (RUNS, 0, {}, [])
    return {tracker: out / tracker for tracker in TRACKERS}


@pytest.fixture(autouse=True)
def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, without a store and without a network. wandb's service uses a local socket."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPERMASK_STORE", raising=False)
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX, f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


def expected(stored_study: TrainedStudy) -> dict[str, tuple[Row, LearningCurve]]:
    tracked, _ = plan_rows(stored_study.plan, stored_study.open_store())
    return {
        str(row["id"]): (row, decode_curve(stored_study.open_store().read(str(row["id"])).tensors)) for row in tracked
    }


def check_tracked(tracker: str, tracked: TrackedRun, run: TrackerRun) -> None:
    """Compare a run in a tracker: MLflow's params are text; TensorBoard's scalars have 32 bits, its params 64."""
    kind = np.float32 if tracker == "tensorboard" else np.float64
    assert tracked.metrics == {name: kind(value) for name, value in run.metrics.items()}
    assert tracked.curves == {n: [(at, kind(value)) for at, value in points] for n, points in run.curves.items()}
    assert tracked.params == ({n: str(v) for n, v in run.params.items()} if tracker == "mlflow" else run.params)
    if tracker != "tensorboard":
        assert tracked.name == run.name


# --- content ---


def test_every_number_is_a_param_or_a_metric() -> None:
    assert set(METRICS) < set(COLUMNS)
    numbers = {name for name, column in COLUMNS.items() if column.type in ("BIGINT", "INTEGER", "DOUBLE")}
    assert numbers - set(METRICS) == NUMERIC_PARAMS


def test_conversion_of_a_run(stored_study: TrainedStudy) -> None:
    row, curve = expected(stored_study)[stored_study.run_id(2)]
    run = to_tracker_run(row, curve, 1_000.0)
    assert run.name == "large_final + zero, level 2, seed 0"
    assert (run.ended, run.began) == (1_000.0, 1_000.0 - row["seconds"])
    assert {**run.params, **run.metrics} == {name: value for name, value in row.items() if value is not None}
    assert run.params["certificate"] == "held"
    assert run.tags == {"study": "small", "treatment": "large_final + zero", "network": "fc-8", "dataset": "digits"}
    assert [len(run.curves[name]) for name in ("validation_loss", "validation_accuracy")] == [len(curve.iterations)] * 2
    # The training loss before training is NaN, which no tracker can draw.
    assert [at for at, _ in run.curves["training_loss"]] == curve.iterations[1:]


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_run_is_read_back(tracker: str, stored_study: TrainedStudy, sent: dict[str, Path]) -> None:
    tracked = READERS[tracker](sent[tracker])
    wanted = expected(stored_study)
    assert tracked.keys() == wanted.keys()
    for run_id, (row, curve) in wanted.items():
        check_tracked(
            tracker, tracked[run_id], to_tracker_run(row, curve, stored_study.open_store().commit_time(run_id))
        )


def test_every_run_of_the_store_is_sent_without_a_study(stored_study: TrainedStudy, tmp_path: Path) -> None:
    summary = export_tracker("tensorboard", (), (), stored_study.store, tmp_path / "out")
    assert summary.sent == RUNS
    tracked = READERS["tensorboard"](tmp_path / "out")[stored_study.run_id(1)]
    assert tracked.params["treatment"] == "large_final, rewind, zero"
    assert "study" not in tracked.params


def test_run_of_two_studies_is_sent_once_with_both_names(stored_study: TrainedStudy, tmp_path: Path) -> None:
    other = write_study(tmp_path, "other.yaml", TEXT.replace("[zero, freeze_init]", "zero"))
    studies = [str(stored_study.study), str(other), str(stored_study.study)]
    assert export_tracker("tensorboard", studies, (), stored_study.store, tmp_path / "out").sent == RUNS
    tracked = READERS["tensorboard"](tmp_path / "out")
    assert tracked[stored_study.run_id(1)].params["study"] == "small | other"
    assert tracked[stored_study.run_id(1)].params["treatment"] == "large_final + zero | large_final"
    assert tracked[stored_study.run_id(1, mask0="freeze_init")].params["study"] == "small"


def test_only_finished_runs_are_sent(tmp_path: Path) -> None:
    plan = small_plan({"criterion": "large_final"}, levels=1, lr=1e30)
    train_plan(plan, tmp_path / "store")
    summary = export_tracker("tensorboard", (), (), tmp_path / "store", tmp_path / "out")
    assert summary.sent == 0
    assert summary.left_out == {"diverged": 1}


def test_damaged_run_is_reported_and_not_sent(stored_study: TrainedStudy, tmp_path: Path) -> None:
    shutil.copytree(stored_study.store, tmp_path / "store")
    ids = [stored_study.run_id(1), stored_study.run_id(2)]
    for run_id, name in zip(ids, ("run.json", "tensors.safetensors"), strict=True):
        path = tmp_path / "store" / "runs" / run_id[:2] / run_id / name
        path.write_bytes(path.read_bytes()[:-2])
    status, out, err = call("export-tracker", "tensorboard", "--store", tmp_path / "store", "--out", tmp_path / "out")
    assert (status, out.splitlines()[0]) == (0, f"{RUNS - 2} runs sent. Folder: {tmp_path / 'out'}")
    assert sorted(line.split()[1] for line in err.splitlines()) == sorted(ids)
    assert not READERS["tensorboard"](tmp_path / "out").keys() & set(ids)


# --- repeated and interrupted exports ---


def files(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_second_export_changes_nothing(tracker: str, stored_study: TrainedStudy, sent: dict[str, Path]) -> None:
    before = files(sent[tracker])
    summary = export_tracker(tracker, [str(stored_study.study)], (), stored_study.store, sent[tracker])
    # The second export has other labels for the same runs.
    again = export_tracker(tracker, (), (), stored_study.store, sent[tracker])
    assert (summary.sent, summary.known) == (again.sent, again.known) == (0, RUNS)
    assert files(sent[tracker]) == before


LAST_CALLS = {
    "tensorboard": ("supermask.export.trackers.tensorboard", "_session_end"),
    "wandb": ("wandb.sdk.wandb_run:Run", "finish"),
    "mlflow": ("mlflow:MlflowClient", "set_terminated"),
}
"""Tracker -> (module, function): the last function called while a run is sent."""

PROGRAM = """
import os, sys
from importlib import import_module
from pathlib import Path
from supermask.api.trackers import export_tracker
tracker, place, name, store, out = sys.argv[1:]
module, _, inner = place.partition(":")
home = getattr(import_module(module), inner) if inner else import_module(module)
calls, own = [], getattr(home, name)
def dies(*arguments, **named):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), 9)
    return own(*arguments, **named)
setattr(home, name, dies)
export_tracker(tracker, (), (), Path(store), Path(out))
"""


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_killed_export_is_completed(
    tracker: str, stored_study: TrainedStudy, sent: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, tracker, *LAST_CALLS[tracker], str(stored_study.store), str(out)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    summary = export_tracker(tracker, [str(stored_study.study)], (), stored_study.store, out)
    assert (summary.sent, summary.known) == (RUNS - 3, 3)
    tracked, whole = READERS[tracker](out), READERS[tracker](sent[tracker])
    assert tracked.keys() == whole.keys()
    for run_id, run in tracked.items():
        assert (run.metrics, run.curves) == (whole[run_id].metrics, whole[run_id].curves)
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def test_concurrent_export_is_refused(stored_study: TrainedStudy, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another command is writing to"):
            export_tracker("tensorboard", (), (), stored_study.store, tmp_path / "out")


# --- hostile names and environments ---

HOSTILE = ["<script>alert(1)</script>", "../../up", "\u202eevil", "a\nb\x00\x1b[31m", "x" * 10_000, "", "🎟️ " * 40]


@pytest.mark.slow
@pytest.mark.parametrize("tracker", TRACKERS)
def test_hostile_names_are_kept_and_never_become_paths(
    tracker: str, stored_study: TrainedStudy, tmp_path: Path
) -> None:
    row, curve = expected(stored_study)[stored_study.run_id(1)]
    runs = [
        to_tracker_run({**row, "id": f"{place:032x}", "treatment": name, "study": name}, curve, 1e9)
        for place, name in enumerate(HOSTILE)
    ]
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with send._load_module(tracker).open_tracker(out) as opened:
        for run in runs:
            opened.send(run)
        assert opened.sent_run_ids() == {run.run_id for run in runs}
    assert [path.name for path in tmp_path.glob("*")] == ["deep"] and list((tmp_path / "deep").iterdir()) == [out]
    assert all(len(part) < 100 and part.isascii() for path in out.rglob("*") for part in path.parts[-1:])
    tracked = READERS[tracker](out)
    for run in runs:
        cut = {n: v[:5000] if isinstance(v, str) and tracker == "mlflow" else v for n, v in run.params.items()}
        check_tracked(tracker, tracked[run.run_id], replace(run, params=cut))
        assert run.name.endswith(", level 1, seed 0") and len(run.name) <= MAX_NAME and run.name.isprintable()


@pytest.mark.slow
def test_wandb_ignores_the_environment(
    stored_study: TrainedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"WANDB_MODE": "online", "WANDB_RUN_ID": "x", "WANDB_PROJECT": "y", "WANDB_DIR": str(tmp_path / "z")}
    for name, value in arguments.items():
        monkeypatch.setenv(name, value)
    hooks = sys.exit, sys.excepthook
    summary = export_tracker("wandb", (), (), stored_study.store, tmp_path / "out")
    assert summary.sent == RUNS and len(READERS["wandb"](tmp_path / "out")) == RUNS
    assert {name: os.environ[name] for name in os.environ if name.startswith("WANDB_")} == arguments
    assert (sys.exit, sys.excepthook) == hooks
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_mlflow_refuses_folders_with_special_characters(stored_study: TrainedStudy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot use a folder with # in its name"):
        export_tracker("mlflow", (), (), stored_study.store, tmp_path / "a#b")


@pytest.mark.parametrize("fails", [False, True])
def test_mlflow_restores_log_levels(fails: bool, tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    with mlflow.open_tracker(tmp_path):  # Its import sets the levels.
        pass
    for logger in loggers:
        logger.setLevel(logging.INFO)
    with suppress(KeyError), mlflow.open_tracker(tmp_path):
        assert [logger.level for logger in loggers] == [logging.WARNING] * 2
        if fails:
            raise KeyError
    assert [logger.level for logger in loggers] == [logging.INFO] * 2


# --- the command ---


@pytest.mark.parametrize("tracker", TRACKERS)
def test_missing_extra_is_reported(tracker: str, stored_study: TrainedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "find_spec", lambda name: None)
    message = refused(call("export-tracker", tracker, "--store", stored_study.store))
    assert f"pip install 'supermask[{tracker}]'" in message
    assert not Path("trackers").exists()


@pytest.mark.parametrize("tracker", TRACKERS)
def test_command_prints_a_summary(tracker: str, stored_study: TrainedStudy, sent: dict[str, Path]) -> None:
    arguments = ["export-tracker", tracker, *stored_study.args, "scale=more", "--out", sent[tracker]]
    status, out, err = call(*arguments)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"0 runs sent, {RUNS} skipped because the folder has them. Folder: {sent[tracker]}"
    assert lines[1] == "not sent, because not finished: 8 to do"
    assert lines[2] == f"  {trackers.view_command(tracker, sent[tracker])}"


def test_invalid_arguments_are_refused(stored_study: TrainedStudy, tmp_path: Path) -> None:
    arguments = ["export-tracker", "tensorboard", "--store", stored_study.store]
    assert "'seeds=1' is a setting of a study: name the study too" in refused(call(*arguments, "seeds=1"))
    assert "did you mean 'mask-criteria'?" in refused(call(*arguments, "mask-criteri"))
    assert "there is no store at" in refused(call(*arguments[:3], tmp_path / "nowhere"))
    assert f"{stored_study.study} is not a folder" in refused(call(*arguments, "--out", stored_study.study))
    with pytest.raises(UserError, match="'tensorbord' is not a tracker; did you mean 'tensorboard'"):
        supermask.export_tracker("tensorbord")


def test_long_export_prints_progress(stored_study: TrainedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supermask.cli.trackers.PROGRESS_SECONDS", 0.0)
    _, _, err = call("export-tracker", "tensorboard", *stored_study.args, "--out", "out")
    lines = err.splitlines()
    assert lines[0] == f"sending runs: 0/{RUNS}"
    assert lines[-1].startswith(f"sending runs: {RUNS - 1}/{RUNS}  ") and lines[-1].endswith(" s left")
    assert Store(stored_study.store).run_ids()
