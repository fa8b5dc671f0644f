"""Command `report`: the file it writes, and the input it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command_line import call, refused
from helpers.report_page import read
from helpers.stored_study import RUNS, TEXT, TrainedStudy, train_study, write_study

from supermask.api import reports
from supermask.core.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("report"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA"):
        monkeypatch.delenv(name, raising=False)


def test_report_writes_one_file_and_prints_a_summary(trained: TrainedStudy, tmp_path: Path) -> None:
    status, out, err = call("report", *trained.args, "--out", tmp_path / "new" / "r.html")
    assert (status, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'new' / 'r.html'}  ")
    assert f"n = 2 seeds; {RUNS} runs." in out
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.html"]


def test_default_file_is_report_html(trained: TrainedStudy, tmp_path: Path) -> None:
    assert reports.report([str(trained.study)], store=trained.store) == Path("report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_overrides_apply_to_all_studies_at_any_position(trained: TrainedStudy, tmp_path: Path) -> None:
    other = write_study(tmp_path, "other.yaml", TEXT)
    status, out, _ = call("report", "scale=more", trained.study, other, "seeds=[0]", "--store", trained.store)
    assert status == 0
    assert "2 studies of fc-8 on digits, scale=more; n = 1 seed" in out
    text = read(Path("report.html").read_text(encoding="utf-8")).text
    assert f"supermask report {trained.study} {other} scale=more 'seeds=[0]'" in text


def test_file_name_with_equals_sign_is_a_study(trained: TrainedStudy, tmp_path: Path) -> None:
    write_study(tmp_path, "a=b.yaml", TEXT)
    assert call("report", "a=b.yaml", "--store", trained.store)[0] == 0


@pytest.mark.parametrize("arguments", [(), ("scale=more",)])
def test_missing_study_is_refused(arguments: tuple[str, ...]) -> None:
    message = refused(call("report", *arguments))
    assert "no study was given" in message and "mask-criteria" in message and ".yaml" in message


@pytest.mark.slow
def test_study_without_runs_is_refused(trained: TrainedStudy, tmp_path: Path) -> None:
    message = refused(call("report", trained.study, "--store", tmp_path / "none"))
    assert "no run of 'small'" in message and "supermask run" in message
    assert not Path("report.html").exists()


def test_diverged_runs_are_not_reported_as_missing(tmp_path: Path) -> None:
    diverging = {"seeds": 2, "train": {"optimizer": "sgd", "lr": 1e30, "epochs": 1}, "prune": {"levels": 1}}
    study = tmp_path / "diverging.yaml"
    study.write_text(json.dumps({**diverging, "treatments": [{"name": "a"}]}))
    assert call("run", study, "--store", tmp_path / "s", "--workers", "1")[0] == 1
    message = refused(call("figure", study, "--store", tmp_path / "s"))
    assert "has finished: 4 runs: 2 diverged, 2 not possible, because a level before them diverged." in message


@pytest.mark.parametrize(("out", "message"), [(".", "is a folder"), ("file/report.html", "is not a folder")])
def test_unwritable_file_is_refused(trained: TrainedStudy, tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    assert message in refused(call("report", *trained.args, "--out", out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_only_a_report_is_replaced(tmp_path: Path) -> None:
    """A study, a table or a device that --out names by mistake stays as it is."""
    study = write_study(tmp_path, "own.yaml", TEXT)
    for out, message in ((study, "exists and is no HTML page"), (Path("/dev/null"), "is a device or a pipe")):
        with pytest.raises(UserError, match=message):
            reports.ensure_writable(out)
    assert study.read_text() == TEXT
    for text in ("", "<!doctype html>\n<html>", "\n <HTML>"):
        (tmp_path / "report.html").write_text(text)
        reports.ensure_writable(tmp_path / "report.html")


def test_damage_is_a_warning(trained: TrainedStudy, tmp_path: Path) -> None:
    own = train_study(tmp_path)
    run_id = own.run_id(2)
    (own.store / "runs" / run_id[:2] / run_id / "run.json").write_text("{}")
    status, _, err = call("report", *own.args)
    assert status == 0
    assert err.startswith(f"supermask: {run_id} in the store is damaged")
    assert run_id in read(Path("report.html").read_text(encoding="utf-8")).text


@pytest.mark.slow
def test_report_imports_neither_torch_nor_plotly(trained: TrainedStudy, tmp_path: Path) -> None:
    program = """
import sys
from supermask.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
heavy = [name for name in ("torch", "plotly", "matplotlib", "duckdb", "sklearn", "numba") if name in sys.modules]
assert not heavy, heavy
"""
    command = [sys.executable, "-c", program, "report", *trained.args]
    subprocess.run(command, check=True, capture_output=True, text=True)
