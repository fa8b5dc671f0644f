"""Paths: `~` is the home folder in every option, argument and environment variable that names a file or folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import cli_reference
from helpers.command_line import call, refused
from helpers.own_data import write_npz
from helpers.stored_study import TrainedStudy, train_study, write_study

from supermask.api import notebook, runs
from supermask.core.environment import cache_folder, check_path, expand_path
from supermask.core.errors import UserError
from supermask.datasets.images import data_folder
from supermask.execution.run import data_dir


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("paths"))


@pytest.fixture(autouse=True)
def home(stored: TrainedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with the store and the study file; the current folder is another one and stays empty."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copytree(stored.store, folder / "store")
    write_study(folder)
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("HOME", str(folder))
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA"):
        monkeypatch.delenv(name, raising=False)
    return folder


STORE = "--store=~/store"

COMMANDS: dict[str, list[tuple[str, ...]]] = {
    "plan": [("~/small.yaml", STORE)],
    "run": [("~/small.yaml", STORE)],
    "reproduce": [("--only", "mask-points", "--store=~/empty", "--out=~/new/report.html", "--workers=1")],
    "status": [("~/small.yaml", STORE)],
    "table": [("~/small.yaml", STORE)],
    "figure": [("~/small.yaml", STORE, "--out=~/new/figures", "--only=accuracy", "--format=svg")],
    "export": [("RUN", "~/new/run", STORE)],
    "verify": [(STORE,)],
    "merge": [("~/store", "--store=~/new/merged")],
    "query": [("SELECT 1", STORE)],
    "claims": [(STORE, "scale=digits")],
    "compare": [("~/small.yaml", "--with=~/theirs.csv", "--value=accuracy", STORE)],
    "report": [("~/small.yaml", STORE, "--out=~/new/r.html")],
    "serve": [],
    "pack": [("RUN", "~/ticket", STORE), ("RUN", "--to-folder=~/new/folder", STORE)],
    "inspect": [("~/packed",)],
    "eval": [("~/packed",)],
    "tickets build": [("--out=~/new/registry", STORE)],
    "tickets find": [("~/registry",)],
    "masks": [("~/packed", "RUN", STORE, "--only=density", "--out=~/new/masks")],
    "data inspect": [("npz:~/own.npz", "--out=~/new/sheet.png")],
    "data get": [("mnist", "--out=~/data")],
    "export-tracker": [("tensorboard", "~/small.yaml", STORE, "--out=~/new/tracker")],
}
"""Command -> command lines; RUN is the id of a run. `serve` is tested below."""


def test_every_command_with_a_path_is_tested() -> None:
    assert set(COMMANDS) == set(cli_reference.commands()) - {"studies", "push", "data list"}


def test_tilde_in_push(home: Path) -> None:
    assert f"{home}/new has no ticket.safetensors" in refused(call("push", "~/new", "me/ticket"))


@pytest.mark.slow
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "reproduce"])
def test_tilde_in_options_and_arguments(
    command: str, stored: TrainedStudy, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("pack", stored.run_id(1), home / "packed", "--store", home / "store").status == 0
    if command == "tickets find":
        assert call("tickets", "build", "--out", home / "registry", "--store", home / "store").status == 0
    write_npz(home / "own.npz")
    (home / "theirs.csv").write_text(
        "treatment,level,seed,accuracy\nlarge_final + zero,1,0,90\nlarge_final + zero,1,1,91\n"
    )
    downloaded = {home / "data": [home / "own.npz"]}
    monkeypatch.setattr("supermask.api.data.download", lambda name, folder, mirror: downloaded[folder])
    for arguments in COMMANDS[command]:
        ended = call(*command.split(), *(stored.run_id(1) if text == "RUN" else text for text in arguments))
        assert (ended.status, ended.err) == (0, ""), ended.err
    assert not list(Path.cwd().iterdir())


def test_tilde_in_options_of_reproduce(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[object] = []

    def stop(scale: str, only: list[str], run_options: object, out: Path, listener: object) -> None:
        options.extend([run_options, out])
        raise UserError("stopped.")

    monkeypatch.setattr("supermask.api.reports.reproduce", stop)
    refused(call("reproduce", *COMMANDS["reproduce"][0]))
    assert options[0].store == home / "empty"  # type: ignore[attr-defined]


def test_tilde_in_serve(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots: list[Path] = []
    monkeypatch.setattr("supermask.serve.app.make_app", lambda root, _: roots.append(root))
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: None)
    assert call("serve", STORE, "--port=0").status == 0
    assert roots == [home / "store"]


def test_tilde_in_environment_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA", "SUPERMASK_CACHE"):
        monkeypatch.setenv(name, "~/folder")
    assert runs.default_store_path() == home / "folder"
    assert data_dir() == data_folder().path == cache_folder() == home / "folder"


@pytest.mark.slow
def test_tilde_in_python(home: Path) -> None:
    assert notebook.table("~/small.yaml", store="~/store").shape[0] == 18
    paths = notebook.figure("~/small.yaml", "accuracy", store="~/store").save("~/figures")
    assert {path.parent for path in paths} == {home / "figures"}
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("text", ["~no-such-user/store", "~no-such-user"])
def test_unknown_home_is_one_message(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(call("verify", f"--store={text}"))
    assert message == f"supermask: '{text}': the home folder of '~no-such-user' is not known: give the whole path.\n"
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA", "SUPERMASK_CACHE"):
        monkeypatch.setenv(name, text)
    for function in (runs.default_store_path, data_dir, data_folder, cache_folder):
        with pytest.raises(UserError, match="the home folder of '~no-such-user' is not known"):
            function()


def test_tilde_inside_a_path_is_literal() -> None:
    assert expand_path("a/~/b") == Path("a/~/b")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\0b", "has a null character, which no path can have"),
        ("folder/" + "x" * 256, "has 256 bytes; a file's name has at most 255"),
        ("é" * 128, "has 256 bytes; a file's name has at most 255"),
    ],
)
def test_names_that_no_file_can_have_are_refused(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_path(path)
    assert check_path("x" * 255) == expand_path("x" * 255) == Path("x" * 255)
