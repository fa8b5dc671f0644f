"""What trackers are sent, read back by their own readers: everything, once, offline, whatever runs are called."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy.event
from helpers.command_line import call, refused
from helpers.small_studies import carry_out, small_plan
from helpers.stored_study import RUNS, TEXT, Carried, carried_out, written
from helpers.tracker_readers import READERS, Found

import supermask
from supermask.api.trackers import export_tracker
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.core.types import LearningCurve
from supermask.export import trackers
from supermask.export.trackers import TRACKERS, TrackerRun, send, to_tracker_run
from supermask.export.trackers.record import MAX_NAME, METRICS
from supermask.store import Store
from supermask.store.records import decode_curve
from supermask.store.rows import plan_rows
from supermask.store.tables import COLUMNS

SAID = {"level", "seed", "multiplier", "start_logit", "confidence", "lr", "batch_size", "evaluate_every", "momentum"}
SAID |= {"weight_decay", "lr_drop_factor", "warmup", "iterations", "first_iteration"}
SAID |= {f"prune_rate_{kind}" for kind in ("conv", "hidden", "output", "global")}
"""Numbers that say what a run is; all other numbers are measured of it."""


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    return carried_out(tmp_path_factory.mktemp("trackers"))


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """MLflow's tables are made in 500 transactions: without a sync for each they take a second instead of a minute."""

    def at_once(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", at_once)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", at_once)


@pytest.fixture(scope="module")
def sent(carried: Carried, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tracker -> the folder that the study was sent to."""
    out = tmp_path_factory.mktemp("sent")
    for tracker in TRACKERS:
        report = export_tracker(tracker, [str(carried.study)], (), carried.store, out / tracker)
        assert (report.sent, report.known, report.left_out, report.damaged) == (RUNS, 0, {}, [])
    return {tracker: out / tracker for tracker in TRACKERS}


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, with nothing set, and without a network: wandb's own process is a local socket away."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPERMASK_STORE", raising=False)
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX, f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


def expected(carried: Carried) -> dict[str, tuple[Row, LearningCurve]]:
    found, _ = plan_rows(carried.plan, carried.opened())
    return {str(row["id"]): (row, decode_curve(carried.opened().read(str(row["id"])).tensors)) for row in found}


def same(tracker: str, found: Found, run: TrackerRun) -> None:
    """A tracker holds a run: MLflow's params are text, TensorBoard's scalars have 32 bits and its params 64."""
    kind = np.float32 if tracker == "tensorboard" else np.float64
    assert found.metrics == {name: kind(value) for name, value in run.metrics.items()}
    assert found.curves == {n: [(at, kind(value)) for at, value in points] for n, points in run.curves.items()}
    assert found.params == ({n: str(v) for n, v in run.params.items()} if tracker == "mlflow" else run.params)
    if tracker != "tensorboard":
        assert found.name == run.name


# --- what is sent ---


def test_every_column_is_a_param_or_a_metric() -> None:
    assert set(METRICS) < set(COLUMNS)
    numbers = {name for name, column in COLUMNS.items() if column.type in ("BIGINT", "INTEGER", "DOUBLE")}
    assert numbers - set(METRICS) == SAID


def test_a_run_as_it_is_sent(carried: Carried) -> None:
    row, curve = expected(carried)[carried.run_id(2)]
    run = to_tracker_run(row, curve, 1_000.0)
    assert run.name == "large_final + zero, level 2, seed 0"
    assert (run.ended, run.began) == (1_000.0, 1_000.0 - row["seconds"])
    assert {**run.params, **run.metrics} == {name: value for name, value in row.items() if value is not None}
    assert run.params["certificate"] == "held"
    assert run.tags == {"study": "small", "treatment": "large_final + zero", "network": "fc-8", "dataset": "digits"}
    assert [len(run.curves[name]) for name in ("validation_loss", "validation_accuracy")] == [len(curve.iterations)] * 2
    # Before anything was trained there is no training loss: not-a-number, which no tracker can draw.
    assert [at for at, _ in run.curves["training_loss"]] == curve.iterations[1:]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_everything_is_read_back(tracker: str, carried: Carried, sent: dict[str, Path]) -> None:
    found = READERS[tracker](sent[tracker])
    wanted = expected(carried)
    assert found.keys() == wanted.keys()
    for run_id, (row, curve) in wanted.items():
        same(tracker, found[run_id], to_tracker_run(row, curve, carried.opened().committed_at(run_id)))


def test_every_run_of_the_store_where_no_study_is_named(carried: Carried, tmp_path: Path) -> None:
    report = export_tracker("tensorboard", (), (), carried.store, tmp_path / "out")
    assert report.sent == RUNS
    found = READERS["tensorboard"](tmp_path / "out")[carried.run_id(1)]
    assert found.params["treatment"] == "large_final, rewind, zero"
    assert "study" not in found.params


def test_a_run_of_two_studies_is_sent_once_and_says_both(carried: Carried, tmp_path: Path) -> None:
    other = written(tmp_path, "other.yaml", TEXT.replace("[zero, freeze_init]", "zero"))
    studies = [str(carried.study), str(other), str(carried.study)]
    assert export_tracker("tensorboard", studies, (), carried.store, tmp_path / "out").sent == RUNS
    found = READERS["tensorboard"](tmp_path / "out")
    assert found[carried.run_id(1)].params["study"] == "small | other"
    assert found[carried.run_id(1)].params["treatment"] == "large_final + zero | large_final"
    assert found[carried.run_id(1, mask0="freeze_init")].params["study"] == "small"


def test_only_finished_runs_are_sent_and_the_others_are_counted(tmp_path: Path) -> None:
    plan = small_plan({"criterion": "large_final"}, levels=1, lr=1e30)
    carry_out(plan, tmp_path / "store")
    report = export_tracker("tensorboard", (), (), tmp_path / "store", tmp_path / "out")
    assert report.sent == 0
    assert report.left_out == {"diverged": 1}


def test_a_damaged_run_is_said_and_not_sent(carried: Carried, tmp_path: Path) -> None:
    shutil.copytree(carried.store, tmp_path / "store")
    ids = [carried.run_id(1), carried.run_id(2)]
    for run_id, name in zip(ids, ("run.json", "tensors.safetensors"), strict=True):
        path = tmp_path / "store" / "runs" / run_id[:2] / run_id / name
        path.write_bytes(path.read_bytes()[:-2])
    status, out, err = call("export-tracker", "tensorboard", "--store", tmp_path / "store", "--out", tmp_path / "out")
    assert (status, out.splitlines()[0]) == (0, f"{RUNS - 2} runs sent. Folder: {tmp_path / 'out'}")
    assert sorted(line.split()[1] for line in err.splitlines()) == sorted(ids)
    assert not READERS["tensorboard"](tmp_path / "out").keys() & set(ids)


# --- once, and whole ---


def files(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_second_export_changes_nothing(tracker: str, carried: Carried, sent: dict[str, Path]) -> None:
    before = files(sent[tracker])
    report = export_tracker(tracker, [str(carried.study)], (), carried.store, sent[tracker])
    # Nor does one that calls the runs something else.
    again = export_tracker(tracker, (), (), carried.store, sent[tracker])
    assert (report.sent, report.known) == (again.sent, again.known) == (0, RUNS)
    assert files(sent[tracker]) == before


DIES = {
    "tensorboard": ("supermask.export.trackers.tensorboard", "_session_end"),
    "wandb": ("wandb.sdk.wandb_run:Run", "finish"),
    "mlflow": ("mlflow:MlflowClient", "set_terminated"),
}
"""Tracker -> what of it is called last of all while a run is sent."""

PROGRAM = """
import os, sys
from importlib import import_module
from pathlib import Path
from supermask.api.trackers import export_tracker
tracker, place, name, store, out = sys.argv[1:]
module, _, inner = place.partition(":")
home = getattr(import_module(module), inner) if inner else import_module(module)
calls, own = [], getattr(home, name)
def dies(*given, **named):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), 9)
    return own(*given, **named)
setattr(home, name, dies)
export_tracker(tracker, (), (), Path(store), Path(out))
"""


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_killed_export_is_completed(tracker: str, carried: Carried, sent: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", PROGRAM, tracker, *DIES[tracker], str(carried.store), str(out)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    report = export_tracker(tracker, [str(carried.study)], (), carried.store, out)
    assert (report.sent, report.known) == (RUNS - 3, 3)
    found, whole = READERS[tracker](out), READERS[tracker](sent[tracker])
    assert found.keys() == whole.keys()
    for run_id, run in found.items():
        assert (run.metrics, run.curves) == (whole[run_id].metrics, whole[run_id].curves)
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def test_one_export_at_a_time(carried: Carried, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / send.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another export is writing to"):
            export_tracker("tensorboard", (), (), carried.store, tmp_path / "out")


# --- hostile names, other people's environment ---

HOSTILE = ["<script>alert(1)</script>", "../../up", "\u202eevil", "a\nb\x00\x1b[31m", "x" * 10_000, "", "🎟️ " * 40]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_names_are_kept_and_never_become_paths(tracker: str, carried: Carried, tmp_path: Path) -> None:
    row, curve = expected(carried)[carried.run_id(1)]
    runs = [
        to_tracker_run({**row, "id": f"{place:032x}", "treatment": name, "study": name}, curve, 1e9)
        for place, name in enumerate(HOSTILE)
    ]
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with send._module(tracker).opened(out) as opened:
        for run in runs:
            opened.send(run)
        assert opened.known() == {run.run_id for run in runs}
    assert [path.name for path in tmp_path.glob("*")] == ["deep"] and list((tmp_path / "deep").iterdir()) == [out]
    assert all(len(part) < 100 and part.isascii() for path in out.rglob("*") for part in path.parts[-1:])
    found = READERS[tracker](out)
    for run in runs:
        cut = {n: v[:5000] if isinstance(v, str) and tracker == "mlflow" else v for n, v in run.params.items()}
        same(tracker, found[run.run_id], replace(run, params=cut))
        assert run.name.endswith(", level 1, seed 0") and len(run.name) <= MAX_NAME and run.name.isprintable()


def test_wandb_does_not_heed_the_environment(carried: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"WANDB_MODE": "online", "WANDB_RUN_ID": "x", "WANDB_PROJECT": "y", "WANDB_DIR": str(tmp_path / "z")}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    hooks = sys.exit, sys.excepthook
    report = export_tracker("wandb", (), (), carried.store, tmp_path / "out")
    assert report.sent == RUNS and len(READERS["wandb"](tmp_path / "out")) == RUNS
    assert {name: os.environ[name] for name in os.environ if name.startswith("WANDB_")} == given
    assert (sys.exit, sys.excepthook) == hooks
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_mlflow_cannot_have_every_folder(carried: Carried, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder with # in its name"):
        export_tracker("mlflow", (), (), carried.store, tmp_path / "a#b")


# --- the command ---


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_missing_extra_is_said(tracker: str, carried: Carried, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send, "find_spec", lambda name: None)
    said = refused(call("export-tracker", tracker, "--store", carried.store))
    assert f"pip install 'supermask[{tracker}]'" in said
    assert not Path("trackers").exists()


@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_command_says_what_it_did(tracker: str, carried: Carried, sent: dict[str, Path]) -> None:
    arguments = ["export-tracker", tracker, *carried.args, "scale=more", "--out", sent[tracker]]
    status, out, err = call(*arguments)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"0 runs sent, {RUNS} skipped because the folder has them. Folder: {sent[tracker]}"
    assert lines[1] == "not sent, because not finished: 8 to do"
    assert lines[2] == f"  {trackers.view_command(tracker, sent[tracker])}"


def test_what_cannot_be_used(carried: Carried, tmp_path: Path) -> None:
    given = ["export-tracker", "tensorboard", "--store", carried.store]
    assert "'seeds=1' is a setting of a study: name the study too" in refused(call(*given, "seeds=1"))
    assert "did you mean 'mask-criteria'?" in refused(call(*given, "mask-criteri"))
    assert "there is no store at" in refused(call(*given[:3], tmp_path / "nowhere"))
    assert f"{carried.study} is not a folder" in refused(call(*given, "--out", carried.study))
    with pytest.raises(UserError, match="'tensorbord' is not a tracker; did you mean 'tensorboard'"):
        supermask.export_tracker("tensorbord")


def test_progress_is_told_where_it_takes_long(carried: Carried, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supermask.cli.trackers.PROGRESS_INTERVAL", 0.0)
    _, _, err = call("export-tracker", "tensorboard", *carried.args, "--out", "out")
    lines = err.splitlines()
    assert lines[0] == f"sending runs: 0/{RUNS}"
    assert lines[-1].startswith(f"sending runs: {RUNS - 1}/{RUNS}  ") and lines[-1].endswith(" s left")
    assert Store(carried.store).run_ids()
