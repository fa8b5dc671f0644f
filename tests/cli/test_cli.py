"""Command line: command table, help, reference page, and the output of each command."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer
from helpers import cli_reference
from helpers.command_line import call, refused, supermask_each
from helpers.stored_study import RUNS, TEXT, TrainedStudy, train_study, write_study
from safetensors.numpy import load_file
from typer.models import OptionInfo

from supermask import cli
from supermask.api import runs
from supermask.cli.app import PATH_OPTIONS, run_command
from supermask.study import load_study

COMMANDS = cli_reference.commands()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("cli"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own folder, without environment variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA"):
        monkeypatch.delenv(name, raising=False)


# --- the command table ---


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_its_example(name: str) -> None:
    status, out, _ = call(*name.split(), "--help")
    assert status == 0
    assert "Example: supermask " + name in " ".join(out.split())
    assert call(*name.split(), "-h")[1] == out


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = shlex.split(cli_reference.example(COMMANDS[name]).split(" > ")[0])
    assert arguments[: 1 + len(name.split())] == ["supermask", *name.split()]
    monkeypatch.setattr("typer.core.TyperCommand.invoke", lambda command, context: None)
    assert run_command(cli.app, arguments[1:]) == 0
    usage = cli_reference.page().split(f"## supermask {name}")[1].splitlines()[0].replace("[STUDY]...", "STUDY")
    if "STUDY" in usage.split():
        index = 2 + usage.split().index("STUDY")
        load_study(arguments[index], [text for text in arguments[index + 1 :] if "=" in text])


def test_example_of_query_runs(trained: TrainedStudy) -> None:
    arguments = shlex.split(cli_reference.example(COMMANDS["query"]))
    assert call(*arguments[1:], "--store", trained.store)[0] == 0


@pytest.mark.slow
def test_docs_cli_md_is_current() -> None:
    """If this fails, run `make cli-reference`."""
    assert cli_reference.PAGE.read_text() == cli_reference.page()


@pytest.mark.slow
def test_reference_has_every_command_and_option() -> None:
    page = cli_reference.page()
    sections = [line.removeprefix("## supermask ") for line in page.splitlines() if line.startswith("## ")]
    assert all(f"{section} ".startswith(f"{name} ") for section, name in zip(sections, COMMANDS, strict=True))
    assert "| `--keep all\\|needed\\|masks` |" in page


def test_no_arguments_prints_help_and_version_prints_one_line() -> None:
    status, out, err = call()
    assert (status, err) == (0, "")
    assert all(name.split()[0] in out for name in COMMANDS)
    assert call("--version")[1] == "supermask 0.1.0\n"


@pytest.mark.slow
def test_help_and_reading_commands_do_not_import_torch(trained: TrainedStudy) -> None:
    """Help and plan import no other heavy library either."""
    program = """
import sys
from supermask.cli import main
def run(*arguments):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
def loaded(*names):
    return [name for name in names if name in sys.modules]
study, store = sys.argv[1:]
run("--help"); run("plan", "--help")
assert not loaded("torch", "numpy", "duckdb", "supermask.api.runs"), loaded
run("studies"); run("plan", study, "--store", store)
assert not loaded("torch", "duckdb", "matplotlib", "scipy", "sklearn", "PIL")
run("status", study, "--store", store); run("table", study, "--store", store)
run("query", "SELECT 1", "--store", store)
assert not loaded("torch", "matplotlib", "scipy", "sklearn")
"""
    command = [sys.executable, "-c", program, str(trained.study), str(trained.store)]
    subprocess.run(command, check=True, capture_output=True, text=True)


# --- a study from file to figure ---


@pytest.mark.slow
def test_a_study_from_file_to_figure(tmp_path: Path) -> None:
    text = TEXT.replace("seeds: 2", "seeds: 1").replace("[zero, freeze_init]", "zero")
    study, store = write_study(tmp_path, text=text), tmp_path / "store"
    # No process imports files of the current folder that are called as modules of Python or of ours.
    current = tmp_path / "current"
    current.mkdir()
    for module in ("random", "queue", "torch", "supermask"):
        (current / f"{module}.py").write_text("raise SystemExit('imported from the current folder')\n")
    command = [Path(sys.executable).with_name("supermask"), "run", study, "--store", store, "--workers", "1"]
    first = subprocess.run(command, cwd=current, capture_output=True, text=True, check=False)
    assert (first.returncode, first.stderr) == (0, "")
    # The first run on a machine says that it compiles.
    lines = [line for line in first.stdout.splitlines() if "compiling kernels" not in line]
    assert len(lines) == 7
    assert lines[0] == "small  sparse engine (auto: its cost falls with the mask)"
    assert lines[1].startswith("small  1/5  dense, level 0, seed 0: ")
    assert lines[-1] == f"small: 5 runs: 5 finished. Store: {store}"
    again, table = supermask_each(("run", study), ("table", study, "--format", "json"), SUPERMASK_STORE=str(store))
    assert again.out.splitlines() == [lines[-1]]
    run_id = json.loads(table.out)[-1]["id"]
    unnamed, exported, verified, drawn = supermask_each(
        ("export", "", tmp_path / "ticket", "--store", store),
        ("export", run_id, tmp_path / "ticket", "--store", store),
        ("verify", "--store", store),
        ("figure", study, "--store", store, "--out", tmp_path / "figures"),
    )
    assert (unnamed.status, exported.status) == (2, 0)
    assert "mask.fc1.weight" in load_file(tmp_path / "ticket" / "tensors.safetensors")
    assert (verified.status, verified.out) == (0, "5 held\n")
    assert drawn.status == 0, drawn.err
    for figure in ("small-accuracy", "small-early-stop"):
        assert f"{tmp_path / 'figures' / figure}.{{pdf,svg,png,csv,txt}}" in drawn.out.splitlines()
        assert all(
            (tmp_path / "figures" / f"{figure}.{suffix}").stat().st_size
            for suffix in ("pdf", "svg", "png", "csv", "txt")
        )


def test_every_option_that_is_a_path_refuses_an_empty_one() -> None:
    options, named = set(), {"table": "--with", "beside": "--with"}  # parameter -> option, where the names differ
    for command in commands_of(cli.app):
        for name, hint in get_type_hints(command, include_extras=True).items():
            kind, *extras = get_args(hint) or (hint,)
            is_path = kind in (Path, Path | None, list[Path], list[Path] | None)
            if is_path and any(isinstance(extra, OptionInfo) for extra in extras):
                options.add(named.get(name, f"--{name.replace('_', '-')}"))
    assert options == set(PATH_OPTIONS)
    for option in PATH_OPTIONS:
        for words in ([option, ""], [f"{option}="]):
            assert f"{option} is empty: give it a path." in refused(call("figure", "mask-criteria", *words))


def commands_of(app: typer.Typer) -> Iterator[Callable[..., object]]:
    yield from (command.callback for command in app.registered_commands if command.callback is not None)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from commands_of(group.typer_instance)


# --- output of the commands ---


def test_plan_counts_one_as_one(trained: TrainedStudy) -> None:
    out = call("plan", *trained.args, "seeds=[0]", "prune.levels=1").out
    assert "small: 4 treatments x 1 seed x 1 level\n" in out


def test_plan_prints_the_counts(trained: TrainedStudy) -> None:
    status, out, err = call("plan", *trained.args, "scale=more", "--workers", 1)
    assert (status, err) == (0, "")
    fields = dict(
        line.split(maxsplit=1) for line in out.replace("in total", "total").replace("to do", "left").splitlines()
    )
    assert fields["study"] == "small: 4 treatments x 2 seeds x 3 levels"
    assert fields["training"] == "fc-8 on digits, 13 iterations of 60 images, adam"
    assert fields["total"] == "32 trainings"
    assert fields["unique"].startswith("26 runs")
    assert (fields["done"], fields["left"]) == (str(RUNS), str(26 - RUNS))
    assert "on 1 worker (from runs in the store" in fields["estimated"]


def test_status_is_not_truncated_on_narrow_terminals(trained: TrainedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    _, out, _ = call("status", *trained.args)
    for label in runs.treatment_labels(trained.plan):
        assert any(line.startswith(f"{label}  ") for line in out.splitlines())
    assert "diverged" not in out


def test_status_names_the_networks_that_are_trained(tmp_path: Path) -> None:
    path = tmp_path / "nets.yaml"
    path.write_text("{treatments: [{network: [conv2, fc-8]}], prune: {levels: 1}, seeds: 1}")
    _, out, _ = call("status", str(path))
    assert out.startswith("nets: conv2, fc-8 on digits\n")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_table_of_an_unfinished_study_has_every_run(trained: TrainedStudy, format: str) -> None:
    command = [sys.executable, "-m", "supermask", "table", *trained.args, "scale=more", "--format", format]
    out = subprocess.run(command, check=True, capture_output=True).stdout
    if format == "csv":
        assert out.count(b"\n") == 1 + 26
        assert out.count(b",to_do,") == 26 - RUNS
    elif format == "json":
        assert len(json.loads(out)) == 26
    else:
        assert out[:4] == out[-4:] == b"PAR1"


@pytest.mark.parametrize(
    ("format", "printed"),
    [
        ("table", "level  n\n-----  -\n    0  2\n    1  8\n    2  8\n"),
        ("csv", "level,n\n0,2\n1,8\n2,8\n"),
        ("json", '[\n{"level": 0, "n": 2},\n{"level": 1, "n": 8},\n{"level": 2, "n": 8}\n]\n'),
    ],
)
def test_query(trained: TrainedStudy, format: str, printed: str) -> None:
    sql = "SELECT level, count(*) AS n FROM runs GROUP BY level ORDER BY level"
    assert call("query", sql, "--store", trained.store, "--format", format) == (0, printed, "")


@pytest.mark.slow
def test_damage_is_reported_and_verify_fails(trained: TrainedStudy, tmp_path: Path) -> None:
    shutil.copytree(trained.store, tmp_path / "store")
    run_id = trained.run_id(2)
    path = tmp_path / "store" / "runs" / run_id[:2] / run_id / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    status, out, err = call("verify", "--store", tmp_path / "store")
    assert (status, err) == (1, "")
    assert out.splitlines()[0].startswith(f"{run_id} damaged: weights.safetensors has ")
    assert out.splitlines()[1] == f"{RUNS - 1} held, 1 DAMAGED"
    (path.parent / "run.json").write_text("{}")
    for command in (("status", trained.study), ("figure", trained.study), ("query", "SELECT 1")):
        status, out, err = call(*command, "--store", tmp_path / "store")
        assert status == 0
        assert out
        assert err.startswith(f"supermask: {run_id} in the store is damaged")
        assert err.count("\n") == 1


NAMES = ["[bold]x[/bold]", "<script>alert(1)</script>", "[/]", "..", "a b;rm -rf ~"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_literally_and_never_become_paths(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "studies"
    folder.mkdir()
    label = name.replace("..", "../../up")
    text = TEXT.replace(
        "  - {criterion: [large_final, random], mask0: [zero, freeze_init]}", f"  - {{name: {label!r}}}"
    )
    text = text.replace("reference: {criterion: large_final, mask0: zero}", "").replace("A small study", name)
    study = write_study(folder, f"{name.replace('/', '')}.yaml", text)
    stored = train_study(folder, text=text)
    status, out, err = call("status", study, "--store", stored.store)
    assert (status, err) == (0, "")
    assert f"\n{label}  " in out
    status, out, _ = call("figure", study, "--store", stored.store, "--out", tmp_path / "figures", "--format", "svg")
    assert status == 0
    assert {path.parent for path in (tmp_path / "figures").rglob("*")} == {tmp_path / "figures"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "studies"]
    svg = next((tmp_path / "figures").glob("*accuracy.svg")).read_text()
    assert "<script" not in svg
