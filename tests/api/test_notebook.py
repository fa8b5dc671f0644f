"""Notebook functions: keyword settings, tables, figures, training from scripts."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.command_line import call
from helpers.stored_study import RUNS, TEXT, TrainedStudy, train_study

from supermask.api import notebook
from supermask.api import runs as api_runs
from supermask.core.errors import UserError
from supermask.execution.local import StudyInterrupted
from supermask.reporting.figures.catalog import study_figures
from supermask.store.tables import COLUMNS
from supermask.study import load_study, study_from_dict
from supermask.study.plan import make_plan
from supermask.study.yaml import parse_yaml, to_python

EXAMPLE = Path(__file__).parents[2] / "examples" / "lottery_tickets.py"

TINY: dict[str, Any] = {
    "network": "fc-8",
    "seeds": 1,
    "train": {"epochs": 0.6, "evaluate_every": 4},
    "prune": {"levels": 1},
    "treatments": [{"criterion": ["large_final", "random"]}],
    "scales": {"more": {"prune.levels": 2}},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("notebook"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPERMASK_STORE", raising=False)


def study(trained: TrainedStudy) -> dict[str, Any]:
    """The study as a dict; its name is then `study`."""
    return dict(to_python(parse_yaml(TEXT, "text")))


# --- settings ---


@pytest.mark.parametrize(
    "settings",
    [
        {"train": {"lr": 1e-3, "epochs": 2}, "seeds": [3, 5], "scale": "more"},
        {"train.lr": 1e-3, "train.epochs": np.int64(2), "seeds": (3, 5), "prune.levels": 3},
        {"train.lr": np.float64(1e-3), "train": {"epochs": 2}, "seeds": range(3, 6, 2), "prune": {"levels": 3}},
    ],
)
def test_settings_equal_overrides_of_the_command_line(trained: TrainedStudy, settings: dict[str, Any]) -> None:
    expected = load_study(trained.study, ["train.lr=1e-3", "train.epochs=2", "seeds=[3,5]", "prune.levels=3"])
    assert load_study(trained.study, notebook.settings_to_overrides(settings)) == expected


@pytest.mark.parametrize("title", ["a: b, {c}", 'quo"te \\ #', "yes", "1e-3", "null", "ünïcode 🎟️", "<b>", " x"])
def test_strings_stay_strings(trained: TrainedStudy, title: str) -> None:
    assert load_study(trained.study, notebook.settings_to_overrides({"title": title})).title == title


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), date(2020, 1, 1), b"x", [lambda: 0]])
def test_values_that_are_not_plain_data_are_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"setting 'seeds': .* is not a number, a string"):
        notebook.table("mask-criteria", seeds=value)


@pytest.mark.slow
def test_study_as_name_path_dict_or_object(trained: TrainedStudy) -> None:
    loaded = load_study(trained.study)
    named = study_from_dict(study(trained), name="small")
    assert (
        len({str(notebook.table(given, store=trained.store).fetchall()) for given in (str(trained.study), loaded)}) == 1
    )
    assert make_plan(named).runs == trained.plan.runs
    assert notebook.table(trained.study, store=str(trained.store)).shape == (RUNS, len(COLUMNS))
    assert notebook.table(study(trained), store=trained.store, scale="more").shape == (26, len(COLUMNS))
    with pytest.raises(UserError, match="'seeds=1' cannot be set: a Study is complete"):
        notebook.table(loaded, seeds=1)
    with pytest.raises(UserError, match="did you mean 'mask-criteria'"):
        notebook.run("mask-criteri")


# --- tables ---


def test_table_is_a_typed_relation_with_the_rows_of_the_command(trained: TrainedStudy) -> None:
    runs = notebook.table(trained.study, store=trained.store)
    assert runs.columns == list(COLUMNS)
    assert [str(kind) for kind in runs.types] == [column.type for column in COLUMNS.values()]
    _, rows, _ = api_runs.study_rows(str(trained.study), (), trained.store)
    assert runs.fetchall() == [tuple(row.get(name) for name in COLUMNS) for row in rows]
    frame = runs.df()
    assert frame["early_stop_test_accuracy"].dtype == np.float64 and len(frame) == RUNS


@pytest.mark.slow
def test_relations_outlive_their_table(trained: TrainedStudy) -> None:
    first = notebook.table(trained.study, store=trained.store)
    second = notebook.table(trained.study, store=trained.store, scale="more")
    deep = first.filter("level = 2").project("id, level")
    counts = first.query("runs", "SELECT level, count(*) FROM runs GROUP BY ALL ORDER BY ALL")
    del first
    gc.collect()
    assert (deep.shape, second.shape[0], counts.fetchall()) == ((8, 2), 26, [(0, 2), (1, 8), (2, 8)])


def test_damage_is_a_warning(trained: TrainedStudy, tmp_path: Path) -> None:
    shutil.copytree(trained.store, tmp_path / "store")
    run_id = trained.run_id(1)
    (tmp_path / "store" / "runs" / run_id[:2] / run_id / "run.json").write_text("{}")
    with pytest.warns(UserWarning, match=f"{run_id} in the store is damaged"):
        runs = notebook.table(trained.study, store=tmp_path / "store")
    assert runs.filter("status = 'finished'").shape[0] == RUNS - 1


# --- figures ---


@pytest.mark.slow
def test_figure_is_displayed_and_saved(trained: TrainedStudy, tmp_path: Path) -> None:
    shown = notebook.figure(trained.study, "accuracy", store=trained.store)
    assert shown._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"
    html = shown._repr_html_()
    assert html.startswith("<img ") and "data:image/png;base64," in html and "n = 2 seeds" in html
    paths = shown.save(tmp_path / "figures")
    assert [path.name for path in paths] == [
        f"small-accuracy.{suffix}" for suffix in ("pdf", "svg", "png", "csv", "txt")
    ]
    assert paths[2].read_bytes() == shown._repr_png_()
    assert {row["treatment"] for row in shown.data} >= {"large_final + zero", "random + freeze_init"}
    assert repr(shown).startswith("small-accuracy: Network fc-8 on digits")


@pytest.mark.slow
def test_all_figures_are_displayed(trained: TrainedStudy, tmp_path: Path) -> None:
    shown = notebook.figure(trained.study, store=trained.store)
    plan, rows, _ = api_runs.study_rows(trained.study, (), trained.store)
    assert list(shown) == list(study_figures(plan, rows, trained.open_store()))
    assert {"accuracy", "early-stop"} <= shown.keys()
    assert shown._repr_html_().count("<img ") == len(shown)
    assert all(figure.caption in repr(shown) for figure in shown.values())
    few = notebook.Figures({name: shown[name] for name in ("accuracy", "early-stop")})
    assert len({path.name for path in few.save(tmp_path / "figures")}) == 5 * len(few)


def test_captions_are_escaped(trained: TrainedStudy) -> None:
    hostile = study(trained) | {
        "treatments": [{"name": '"><script>alert(1)</script>', "criterion": "large_final"}],
        "reference": {"criterion": "large_final"},
    }
    html = notebook.figure(hostile, "accuracy", store=trained.store)._repr_html_()
    assert "<script" not in html and html.count("<") == 1


@pytest.mark.slow
def test_unknown_figure_and_missing_runs_are_errors(trained: TrainedStudy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'acuracy' is not a figure; did you mean 'accuracy'"):
        notebook.figure(trained.study, "acuracy", store=trained.store)
    with pytest.raises(UserError, match=r"study 'small' has no figure table-one .*; it has: accuracy, "):
        notebook.figure(trained.study, "table-one", store=trained.store)
    with pytest.raises(UserError, match=r"no run of study 'small' with these settings is in .*: `run` it first"):
        notebook.figure(trained.study, "accuracy", store=tmp_path / "nowhere")


# --- runs ---


@pytest.mark.slow
def test_run_trains_missing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = notebook.run(TINY, workers=1)
    assert repr(status) == f"study: 3 runs: 3 finished. Store: {tmp_path / 'supermask-store'}"
    assert set(status.status.values()) == {"finished"} and len(status.status) == 3
    assert capsys.readouterr().out.count("study  ") == 3
    assert "OMP_NUM_THREADS" in os.environ
    more = notebook.run(TINY, workers=1, scale="more")
    assert more.status.keys() > status.status.keys()
    assert capsys.readouterr().out.count("study  ") == 2
    assert repr(notebook.run(TINY)) == repr(status)
    assert capsys.readouterr().out == ""
    assert call("verify", "--store", status.store)[:2] == (0, "5 held\n")


def test_only_workers_get_the_thread_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    seen: list[str | None] = []

    def run(*given: object) -> Any:
        seen.append(os.environ.get("OMP_NUM_THREADS"))
        raise StudyInterrupted(7)

    monkeypatch.setattr(api_runs, "run", run)
    with pytest.raises(KeyboardInterrupt, match="7 runs are left; the same call resumes"):
        notebook.run(TINY)
    assert seen == ["1"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_notebook_shows_one_line_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        shown.append(data["text/plain"])
        return SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    assert notebook._in_notebook()
    notebook.run(TINY, workers=1)
    assert shown[0] == "starting"
    assert shown[-1].startswith("study  3/3  ")
    shown.clear()
    notebook.run(TINY, workers=1)
    assert shown == []


def test_pytest_is_not_a_notebook() -> None:
    assert not notebook._in_notebook()


@pytest.mark.slow
@pytest.mark.parametrize(
    "before", ["from supermask import Run; sm.Run", "from supermask.study.run import Run; import supermask.study.run"]
)
def test_run_is_the_function_after_any_import(before: str) -> None:
    """Importing a submodule sets an attribute of the same name, which must not hide the function."""
    program = f"import supermask as sm; {before}; assert callable(sm.run); {before}; assert callable(sm.run)"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- scripts ---

SCRIPT = """
from pathlib import Path
with Path("times").open("a") as file:
    file.write("x")
import supermask as notebook
study = {tiny!r}
print(notebook.run(study, workers=2))
print(notebook.table(study).shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["file", "stdin"])
def test_script_without_main_guard_runs_once(tmp_path: Path, how: str) -> None:
    text = SCRIPT.format(tiny=TINY)
    (tmp_path / "script.py").write_text(text)
    command = [sys.executable, "script.py"] if how == "file" else [sys.executable, "-"]
    ended = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-2:] == [
        f"study: 3 runs: 3 finished. Store: {tmp_path / 'supermask-store'}",
        f"(3, {len(COLUMNS)})",
    ]
    assert (tmp_path / "times").read_text() == "x"


def test_example_consists_of_cells() -> None:
    """Format py:percent: text in comments, and no line before the first cell."""
    text = EXAMPLE.read_text()
    assert text.startswith("# %% [markdown]\n")
    for cell in text.split("# %% [markdown]\n")[1:]:
        head = cell.split("# %%\n")[0].strip()
        assert head and all(line.startswith("#") for line in head.splitlines())
