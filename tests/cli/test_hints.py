"""Hints for near misses, `--scale` beside `scale=`, and shell completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import cli_reference
from helpers.command_line import call, refused
from helpers.stored_study import TrainedStudy, train_study, write_study

from supermask.core.errors import did_you_mean
from supermask.study.schema import KEY_ALIASES, Settings
from supermask.study.yaml import nested_keys


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("hints"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own folder, without environment variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA"):
        monkeypatch.delenv(name, raising=False)


# --- nearest keys ---


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("lr=1e-3", "train.lr"),
        ("levels=3", "prune.levels"),
        ("epochs=3", "train.epochs"),
        ("epoch=3", "train.epochs"),
        ("batchsize=3", "train.batch_size"),
        ("samples=3", "learn.samples"),
        ("hidden=0.3", "prune.rates.hidden"),
        ("train.levels=3", "prune.levels"),
        ("prune.lr=3", "train.lr"),
        ("train.epoch=3", "epochs"),
        ("learning_rate=3", "train.lr"),
        ("model=fc", "network"),
        ("data=mnist", "dataset"),
        ("seed=3", "seeds"),
        ("criterion=random", "treatments"),
        ("prune_rate=0.3", "prune.rates.hidden"),
        ("sead=3", "seeds"),
    ],
)
def test_nearest_key_of_an_override(override: str, key: str) -> None:
    assert f"; did you mean '{key}'?" in refused(call("plan", "mask-criteria", override))


def test_nearest_key_in_a_study_file(tmp_path: Path) -> None:
    study = write_study(tmp_path, text="lr: 3\ntreatments: [{start_logit: 1}]\n")
    message = refused(call("plan", study))
    assert "small.yaml, line 1: a study has no key 'lr'; did you mean 'train.lr'?" in message
    assert (
        "small.yaml, line 2: treatments[0] has no key 'start_logit'; did you mean 'supermask.start_logit'?" in message
    )


def test_aliases_are_keys_of_a_study() -> None:
    keys = {*nested_keys(Settings), "treatments"}
    assert set(KEY_ALIASES.values()) <= keys
    assert not set(KEY_ALIASES) & keys


@pytest.mark.parametrize(
    ("option", "setting"), [("--lr", "train.lr=VALUE"), ("--levels", "prune.levels=VALUE"), ("--seeds", "seeds=VALUE")]
)
def test_setting_as_an_option(option: str, setting: str) -> None:
    message = refused(call("run", "mask-criteria", option, "3"))
    assert f"No such option {option}; settings of a study are written without dashes: {setting}. See" in message


def test_no_hint_about_settings_for_commands_without_settings() -> None:
    assert "settings" not in refused(call("verify", "--lr", "3"))


@pytest.mark.parametrize("command", ["run", "reproduce"])
def test_gpu_is_cuda(command: str) -> None:
    study = ["mask-criteria"] if command == "run" else []
    message = refused(call(command, *study, "--device", "gpu"))
    assert "'gpu' is not a device; did you mean 'cuda'? Allowed: cpu, cuda." in message


def test_study_file_without_its_suffix(tmp_path: Path) -> None:
    write_study(tmp_path, "signs.yaml")
    for command in ("table", "plan", "run", "report"):
        assert "study 'signs' is not known; did you mean 'signs.yaml'?" in refused(call(command, "signs"))
    assert "did you mean 'signs.yaml'?" in refused(call("plan", "sings"))
    assert "did you mean 'mask-criteria'?" in refused(call("plan", "mask-criteri"))


# --- scale ---

SCALE_COMMANDS = ["plan", "run", "status", "table", "figure", "claims", "compare", "report", "export-tracker"]


@pytest.mark.slow
def test_every_command_with_a_study_has_the_option() -> None:
    page = cli_reference.page()
    with_settings = {
        name
        for name in cli_reference.commands()
        if "KEY=VALUE" in page.split(f"## supermask {name}")[1].partition("\n## ")[0]
    }
    assert with_settings == set(SCALE_COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plan", "run", "status", "table", "figure", "report"])
def test_scale_as_option_and_as_setting(command: str, stored: TrainedStudy, tmp_path: Path) -> None:
    figure = ("--out", tmp_path / "out", "--format", "svg", "--only", "accuracy")
    out = {"figure": figure, "report": ("--out", tmp_path / "report.html")}.get(command, ())
    store = ("--store", tmp_path / "store") if command == "run" else ("--store", stored.store)
    results = [
        call(command, stored.study, *setting, *store, *out)[:2] for setting in (("scale=more",), ("--scale", "more"))
    ]
    if command == "run":  # the second call trains nothing
        results = [(status, text.splitlines()[-1]) for status, text in results]
    assert results[0] == results[1]
    assert results[0][0] == 0
    message = refused(call(command, stored.study, "scale=more", "--scale", "other", *store, *out))
    assert "--scale other and scale=more differ: give one of them" in message


@pytest.mark.slow
def test_scale_as_setting_of_reproduce(tmp_path: Path) -> None:
    for arguments in (("scale=digit",), ("--scale", "digit")):
        message = refused(call("reproduce", *arguments, "--store", tmp_path / "store"))
        assert "'digit' is not a scale; did you mean 'digits'?" in message
    assert "reproduce has the setting scale only" in refused(call("reproduce", "train.lr=3"))
    assert "'scale=digits' and 'scale=laptop' differ" in refused(call("reproduce", "scale=digits", "scale=laptop"))
    assert "--scale digits and scale=laptop differ" in refused(call("reproduce", "--scale", "digits", "scale=laptop"))


@pytest.mark.parametrize("command", ["claims", "export-tracker"])
def test_scale_as_option_of_the_other_commands(command: str, stored: TrainedStudy) -> None:
    tracker = ["tensorboard"] if command == "export-tracker" else []
    message = refused(call(command, *tracker, "mask-criteria", "--scale", "digit", "--store", stored.store))
    assert "scale 'digit' is not known; did you mean 'digits'?" in message


# --- completion ---


def complete(line: str) -> list[str]:
    """Return the completions of the last word of a command line, as bash receives them."""
    variables = {
        "_SUPERMASK_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    command = [sys.executable, "-m", "supermask"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, check=True)
    return ended.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("supermask pl", {"plan"}),
        (
            "supermask plan mask-",
            {f"mask-{name}" for name in ("criteria", "points", "trajectory", "0-actions", "1-actions", "1-rescaled")},
        ),
        ("supermask plan sig", {"signs.yaml"}),
        (
            "supermask plan mask-criteria train.l",
            {f"train.{key}=" for key in ("lr", "lr_drops", "lr_drop_factor", "label_smoothing", "loss")},
        ),
        ("supermask plan mask-criteria --st", {"--store"}),
        ("supermask plan mask-criteria --scale di", {"digits"}),
        ("supermask table mask-criteria --format pa", {"parquet"}),
        ("supermask run mask-criteria --device cu", {"cuda"}),
        ("supermask run mask-criteria --engine st", {"stacked"}),
        ("supermask report mask-cr", {"mask-criteria"}),
    ],
)
def test_completion(line: str, expected: set[str], tmp_path: Path) -> None:
    write_study(tmp_path, "signs.yaml")
    assert set(complete(line)) == expected


@pytest.mark.slow
def test_completion_can_be_installed(tmp_path: Path) -> None:
    out = call("--help").out
    assert "--install-completion" in out
    script = ["bash", "-c", f"{sys.executable} -m supermask --show-completion; true"]
    ended = subprocess.run(script, capture_output=True, text=True, check=True)
    assert "_SUPERMASK_COMPLETE=complete_bash" in ended.stdout
    assert "--install-completion" in cli_reference.page()


@pytest.mark.parametrize(("given", "near"), [("MNIST", "mnist"), ("Cifar10", "cifar10"), ("L1", "large_final")])
def test_a_name_in_another_case_is_suggested(given: str, near: str) -> None:
    assert did_you_mean(given, ["digits", "mnist", "cifar10", "large_final"]) == f"; did you mean '{near}'?"
