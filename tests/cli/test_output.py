"""Output on any stream: text that an encoding lacks is escaped, and no failure to write ends a training."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.harness import IS_FULL
from helpers.stored_study import TEXT, TrainedStudy, train_study, write_study

from supermask import cli
from supermask.cli.app import run_command
from supermask.core.text_output import escape_unencodable, survive_lost_output
from supermask.store import Store

ENCODINGS = ["latin-1", "cp1252", "ascii"]

NAME = "日本語 é 🎟️"

HOSTILE = (
    TEXT.replace("  - {criterion: [large_final, random], mask0: [zero, freeze_init]}", f"  - {{name: {NAME}}}")
    .replace("reference: {criterion: large_final, mask0: zero}", "")
    .replace("A small study", f"A study of {NAME}")
)
"""Two dense runs, and two levels with two seeds."""

SMALL = HOSTILE.replace("seeds: 2", "seeds: 1").replace("levels: 2,", "levels: 1,")
"""Two runs: dense, and one level."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("output"), text=HOSTILE)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own folder, without environment variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA"):
        monkeypatch.delenv(name, raising=False)


def environment(encoding: str) -> dict[str, str]:
    """Variables under which Python and the C library use an encoding other than UTF-8."""
    return {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": encoding}


def call_encoded(encoding: str, arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Run a command in this process with streams of an encoding; return its status and output."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        patched.setattr(sys, "stderr", err)
        status = run_command(cli.app, [str(argument) for argument in arguments])
    for stream in (out, err):
        stream.flush()
    texts = [stream.buffer.getvalue().decode(encoding) for stream in (out, err)]  # type: ignore[attr-defined]
    return status, texts[0], texts[1]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS if IS_FULL else ["ascii"])
def test_training_and_every_stream(encoding: str, tmp_path: Path) -> None:
    study = write_study(tmp_path, text=SMALL)
    command = [sys.executable, "-m", "supermask", "run", str(study), "--store", "store", "--workers", "1"]
    ended = subprocess.run(command, capture_output=True, env=environment(encoding), check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    out = ended.stdout.decode(encoding)
    assert "2 finished" in out
    assert "\\u65e5\\u672c\\u8a9e" in out


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_escapes_names(
    encoding: str, stored: TrainedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = treatment_run(stored)
    store = ("--store", stored.store)
    note = write_study(tmp_path, "日本.yaml", HOSTILE)
    commands: list[tuple[object, ...]] = [
        ("status", *stored.args),
        ("table", *stored.args),
        ("table", *stored.args, "--format", "json"),
        ("figure", *stored.args, "--out", tmp_path / "図", "--only", "accuracy", "--format", "svg"),
        ("figure", note, *store, "--out", tmp_path / "figures", "--only", "early-stop", "--format", "png"),
        ("report", *stored.args, "--out", tmp_path / "報告.html"),
        ("export", run_id, tmp_path / "出力", *store),
        ("pack", run_id, tmp_path / "切符", *store),
        ("inspect", tmp_path / "切符"),
        ("eval", tmp_path / "切符"),
        ("masks", run_id, *store, "--only", "density", "--out", tmp_path / "マスク"),
        ("query", f"SELECT '{NAME}' AS name", *store),
        ("query", f"SELECT '{NAME}' AS name", *store, "--format", "csv"),
        ("plan", note, *store),
        ("run", *stored.args),
        ("verify", *store),
        ("studies",),
        ("--help",),
    ]
    for arguments in commands:
        status, _, err = call_encoded(encoding, arguments, monkeypatch)
        assert (status, err) == (0, ""), arguments
    for arguments in (("plan", "日本.yml"), ("plan", "mask-criteria", "日本=1"), ("verify", "--store", "日本")):
        status, out, err = call_encoded(encoding, arguments, monkeypatch)
        assert (status, out) == (2, "")
        assert err.startswith("supermask: ") and "\\u65e5\\u672c" in err


def treatment_run(stored: TrainedStudy) -> str:
    """Id of the run of the named treatment at level 1 with seed 0."""
    return next(run.run_id for run in stored.plan.treatment_runs if (run.seed, run.level) == (0, 1))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_stays_valid(encoding: str, stored: TrainedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = call_encoded(encoding, ("table", *stored.args, "--format", "json"), monkeypatch)
    assert NAME in {row["treatment"] for row in json.loads(out)}


def test_escapes_are_utf_16_units() -> None:
    error = UnicodeEncodeError("ascii", "a🎟\udcffb", 1, 3, "")
    assert escape_unencodable(error) == ("\\ud83c\\udf9f\\udcff", 3)


def test_unencodable_file_names_are_printed_in_utf_8_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file name that is not valid UTF-8 has lone surrogates, which UTF-8 cannot encode."""
    study = write_study(tmp_path, os.fsdecode(b"\xff.yaml"), SMALL)
    status, _, err = call_encoded("utf-8", ("plan", study, "--store", os.fsdecode(b"\xff")), monkeypatch)
    assert (status, err) == (0, "")
    status, _, err = call_encoded("utf-8", ("verify", "--store", os.fsdecode(b"\xff")), monkeypatch)
    assert status == 2
    assert "\\udcff" in err


@pytest.mark.slow
@pytest.mark.parametrize("target", ["closed pipe", "full disk", "closed descriptor"])
def test_training_continues_without_its_output(target: str, tmp_path: Path) -> None:
    study = write_study(tmp_path, text=SMALL)
    command = [sys.executable, "-m", "supermask", "run", str(study), "--store", "store", "--workers", "1"]
    if target == "closed pipe":
        read_end, write_end = os.pipe()
        os.close(read_end)
        ended = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, check=False)
        os.close(write_end)
        expected = (1, b"")
    elif target == "full disk":
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        with Path("/dev/full").open("wb") as full:
            ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
        expected = (1, b"supermask: system error: No space left on device.\n")
    else:
        ended = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, check=False)
        expected = (0, b"")
    assert (ended.returncode, ended.stderr) == expected
    assert len(Store(tmp_path / "store").run_ids()) == 2


@pytest.mark.slow
def test_training_continues_when_its_terminal_is_gone(tmp_path: Path) -> None:
    study = write_study(tmp_path, text=SMALL)
    command = [sys.executable, "-m", "supermask", "run", str(study), "--store", "store", "--workers", "1"]
    leader, follower = pty.openpty()
    process = subprocess.Popen(command, stdout=follower, stderr=subprocess.PIPE, env=environment("ascii"))
    os.close(follower)
    assert os.read(leader, 1)  # the first line was written
    os.close(leader)
    _, err = process.communicate()
    assert b"Traceback" not in err
    assert len(Store(tmp_path / "store").run_ids()) == 2


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_streams_of_the_caller_are_escaped_and_restored(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a Python program the error handler of its streams is not changed."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with survive_lost_output():
        sys.stdout.write("日é")
    assert sys.stdout is stream and stream.errors == "strict"
    stream.flush()
    expected = "\\u65e5" + ("\\u00e9" if encoding == "ascii" else "é")
    assert stream.buffer.getvalue().decode(encoding) == expected  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["latin-1", "closed pipe"] if IS_FULL else ["closed pipe"])
def test_python_functions_train_on_any_stream(target: str, tmp_path: Path) -> None:
    study = write_study(tmp_path, text=SMALL)
    program = f"import supermask as sm; sm.run({str(study)!r}, store='store', workers=1)"
    read_end, write_end = os.pipe()
    encoding = "utf-8" if target == "closed pipe" else target
    if target == "closed pipe":
        os.close(read_end)
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, env=environment(encoding), check=False)
    os.close(write_end)
    if target == "latin-1":
        with os.fdopen(read_end, encoding=encoding) as reader:
            assert "\\u65e5\\u672c" in reader.read()
        assert (ended.returncode, ended.stderr) == (0, b"")
    assert len(Store(tmp_path / "store").run_ids()) == 2
