"""Studies without a result: the commands say so and do not end with status 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command_line import call

from supermask.api import notebook, reports
from supermask.execution.run import RunOptions

DIVERGING = {
    "seeds": 2,
    "train": {"optimizer": "sgd", "lr": 1e30, "epochs": 1},
    "prune": {"levels": 1},
    "treatments": [{"name": "a"}],
}

COUNTS = "4 runs: 2 diverged, 2 "


def test_run_of_a_study_in_which_every_run_diverges(tmp_path: Path) -> None:
    study = tmp_path / "diverging.yaml"
    study.write_text(json.dumps(DIVERGING), encoding="utf-8")
    for _ in range(2):  # trained, and read from the store
        status, out, err = call("run", study, "--store", tmp_path / "store", "--workers", "1")
        assert status == 1
        assert out.splitlines()[-1].startswith(f"diverging: {COUNTS}")
        assert f"\nsupermask: no run of this study has finished: {COUNTS}" in err  # after the warnings of the plan
        assert err.endswith("Lower train.lr, or look for values that are not finite.\n")
    lines = call("plan", study, "--store", tmp_path / "store").out.splitlines()
    assert lines[4:7] == [
        "done       2",
        "to do      0",
        "blocked    2 cannot be trained: a run before them diverged, or its certificate failed",
    ]
    assert lines[7].startswith("estimated  0 s ")


def test_run_warns_of_settings_without_effect_before_it_trains(tmp_path: Path) -> None:
    study = tmp_path / "spared.yaml"
    text = {"network": "fc-8", "seeds": 1, "train": {"epochs": 0.1}, "prune": {"levels": 1, "exclude": ["*"]}}
    study.write_text(json.dumps({**text, "treatments": [{}]}), encoding="utf-8")
    ended = call("run", study, "--store", tmp_path / "store", "--workers", "1")
    assert ended.status == 0
    planned = call("plan", study, "--store", tmp_path / "store")
    assert ended.err == planned.err and "or change prune.only and prune.exclude" in ended.err


def test_notebook_warns_if_every_run_diverges(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no run of this study has finished: 4 runs: 2 diverged"):
        status = notebook.run(DIVERGING, store=tmp_path / "store", workers=1)
    assert "finished" not in status.status.values()


@pytest.mark.slow
def test_reproduce_names_the_studies_without_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reports._load_plan
    monkeypatch.setattr(
        reports,
        "_load_plan",
        lambda name, overrides, *rest: real(name, [*overrides, "train.lr=1e30", "train.optimizer=sgd"], *rest),
    )
    options = RunOptions(tmp_path / "store", 1, "reference")
    result = reports.reproduce("digits", ["mask-points"], options, tmp_path / "report.html")
    (message,) = result.without_result
    assert message.startswith("no run of study 'mask-points' has finished: 51 runs: ")
    store = ("--store", tmp_path / "store", "--out", tmp_path / "report.html")
    status, _, err = call("reproduce", "--only", "mask-points", *store)
    assert status == 1
    assert err.splitlines()[-1] == f"supermask: {message}"
