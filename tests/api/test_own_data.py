"""Studies on a user's own data, from the study file to the packed ticket; read without data and code."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import call, refused
from helpers.own_data import own_arrays, write_images, write_npz
from helpers.small_studies import train_plan

from supermask.api import masks, reports, runs, tickets
from supermask.api.data import inspect_dataset
from supermask.cli.app import app, run_command
from supermask.core.errors import UserError
from supermask.datasets import load
from supermask.serve.series import group_series, series_keys
from supermask.store import Store
from supermask.store.files.notes import StatusNotes
from supermask.store.planning import plan_study
from supermask.store.row_files import plan_to_parquet
from supermask.store.rows import store_rows
from supermask.store.tables import to_parquet
from supermask.study import study_from_dict
from supermask.study.plan import make_plan
from supermask.study.plan_inputs import PlanInputs

STUDY: dict[str, Any] = {
    "network": "fc-8",
    "dataset": "npz:own.npz",
    "seeds": 1,
    "train": {"epochs": 2, "evaluate_every": 5, "batch_size": 10},
    "prune": {"levels": 1, "rates": {"hidden": 0.5, "output": 0.3}},
    "treatments": [{"criterion": ["large_final", "random"]}],
    "claims": [
        {
            "id": "better",
            "statement": "large_final beats chance",
            "clauses": [{"treatment": "large_final", "above": "chance"}],
        }
    ],
}
MODULE = """
import numpy as np
from helper_of_mine import SHIFT

CALLS = __file__.replace("mydata.py", "calls")

def load():
    with open(CALLS, "a") as file:
        file.write("x")
    draws = np.random.default_rng(SHIFT)
    x, y = draws.integers(0, 256, (60, 6, 5)).astype(np.uint8), np.arange(60) % 3
    return x[:48], y[:48], x[48:], y[48:]
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SUPERMASK_DATA", raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    for name in ("mydata", "helper_of_mine"):
        sys.modules.pop(name, None)


def write_module(folder: Path, shift: int = 1) -> None:
    (folder / "mydata.py").write_text(MODULE)
    (folder / "helper_of_mine.py").write_text(f"SHIFT = {shift}\n")


def train(study: dict[str, Any] = STUDY, **changes: Any) -> None:
    scheduler = runs.run({**study, **changes}, store="store", workers=1)
    assert set(scheduler.status.values()) == {"finished"}


@pytest.mark.slow
def test_a_table_that_does_not_record_own_data_is_refused_with_the_way_to_get_one(here: Path) -> None:
    write_npz(here / "own.npz")
    plan, rows, _ = runs.study_rows(STUDY, store="store")
    Path("study.yaml").write_text(json.dumps(STUDY))
    for note in ("", "no JSON", '{"study": "other"}', '{"study": "study", "inputs": {"data_spec": {"classes": 0}}}'):
        Path("rows.parquet").write_bytes(to_parquet(rows, note=note))
        message = refused(call("claims", "study.yaml", "--rows", "rows.parquet"))
        assert "rows.parquet: study 'study' is on data of your own" in message
        assert "supermask table STUDY --format parquet" in message
    assert plan.inputs.data_spec is not None


@pytest.mark.slow
@pytest.mark.parametrize("form", ["npz", "images"])
def test_a_study_on_own_data_is_read_verified_and_packed_without_them(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    if form == "npz":
        path, study = write_npz(here / "own.npz"), STUDY
    else:
        path, study = write_images(here / "own", own_arrays()), {**STUDY, "dataset": "images:own#side=5"}
    planned = runs.plan(study, store="store")
    assert planned.plan.spec.image_shape[0] == 3
    assert (planned.to_do, planned.warnings) == (3, ())
    train(study)
    images = load(study["dataset"])
    facts = Store(here / "store").facts(next(iter(planned.plan.runs)))
    assert facts["data_fingerprint"] == facts["data"]["fingerprint"] == images.fingerprint
    assert facts["data_spec"]["classes"] == 3

    path.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store = here / "store"
    plan, rows, damaged = runs.study_rows(study, store=store)
    assert plan.runs.keys() == planned.plan.runs.keys()
    assert [row["status"] for row in rows] == ["finished"] * 3 and not damaged
    (notice,) = plan.notices
    assert "there is no such" in notice and "Shown as the runs in the store were made" in notice
    assert runs.figures(study, [], "figures", store, formats=["svg"])[0]
    report = reports.build_report_for([(plan, rows, damaged)], Store(store), "command")
    assert report.claims[0].clauses[0].levels[0].reference_mean == pytest.approx(100 / 3)
    # A table records the shapes, so that it is read without store, data and cache.
    Path("study.yaml").write_text(json.dumps(study))
    Path("rows.parquet").write_bytes(plan_to_parquet(plan, rows))
    findings, notices = reports.claims(["study.yaml"], rows=[Path("rows.parquet")])
    assert findings == reports.claims(["study.yaml"], store=store)[0] and notices == []
    assert call("report", "study.yaml", "--rows", "rows.parquet").err == ""
    assert {result.verdict for result in runs.verify(store)} == {"held"}
    assert {row["study"] for row in store_rows(Store(store))[0]} == {"study"}
    run_id = next(row["id"] for row in rows if row["level"] == 1)
    ticket, file = tickets.pack(str(run_id), "ticket.safetensors", store=store)
    assert ticket.spec.image_shape == images.facts.image_shape
    inspection = tickets.inspect_ticket(file)
    assert inspection.passed
    assert masks.analyze_masks([file], out="figures").table
    with pytest.raises(UserError, match="there is no such"):
        tickets.evaluate_ticket(file)
    (tmp_path / "moved").rename(path)
    monkeypatch.chdir(here)
    _, evaluation = tickets.evaluate_ticket(file.absolute() if file.is_absolute() else tmp_path / "elsewhere" / file)
    assert evaluation.same_data and evaluation.accuracy == evaluation.stored
    assert {result.verdict for result in runs.recheck_accuracies(store)} == {"held"}


def test_other_data_under_the_same_locator_are_other_runs(here: Path) -> None:
    write_npz(here / "own.npz")
    train()
    first = set(Store(here / "store").run_ids())
    write_npz(here / "own.npz", **own_arrays(seed=5))
    plan, rows, _ = runs.study_rows(STUDY, store="store")
    assert not plan.runs.keys() & first
    assert {row["status"] for row in rows} == {"to_do"}
    assert "3 runs of this study in the store are on other data" in plan.notices[0]
    train()
    assert len(Store(here / "store").run_ids()) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((60, 6, 5), np.float32)}, "is of type float32"),
        ({"y_train": None}, "it lacks train labels"),
        ({"x_test": None, "y_test": None}, "it has no test split"),
    ],
)
def test_bad_data_end_every_command_with_one_message(
    here: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    write_npz(here / "own.npz", **changes)
    (here / "s.yaml").write_text("dataset: npz:own.npz\ntreatments: [{}]\n")
    for command in ("plan", "run", "status"):
        assert run_command(app, [command, "s.yaml"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("supermask: dataset 'npz:own.npz': own.npz: ") and message in error
        assert error.count("\n") == 1
    assert not (here / "supermask-store").exists()


def test_an_unread_dataset_is_refused_by_make_plan() -> None:
    with pytest.raises(UserError, match=r"the data .npz:own\.npz. have not been read yet"):
        make_plan(study_from_dict(STUDY))


def test_options_are_in_ids_only_where_they_change_something(here: Path) -> None:
    digits = {**STUDY, "dataset": "digits", "claims": []}

    def dense(**changes: Any) -> Any:
        return next(iter(make_plan(study_from_dict({**digits, **changes})).runs.values()))

    usual = dense()
    assert "data_options" not in usual.to_data()
    assert dense(validation=200).id == dense(label_noise=0.0).id == dense(train_images=1237).id == usual.id
    runs_by_key = [dense(train_images=100), dense(label_noise=0.2), dense(validation=100)]
    assert len({run.id for run in [usual, *runs_by_key]}) == 4
    assert [run.recipe.iterations for run in runs_by_key] == [20, 248, 268]
    assert [run.spec.validation_images for run in runs_by_key] == [200, 200, 100]
    for run in runs_by_key:
        assert type(run).from_data(run.to_data()) == run
    with pytest.raises(UserError, match="train_images: 1,238 is more than the 1,237"):
        dense(train_images=1238)


def test_a_study_with_noise_and_a_subset_is_trained_and_verified(here: Path) -> None:
    train({**STUDY, "dataset": "digits"}, train_images=100, label_noise=0.3, validation=50, claims=[])
    assert {result.verdict for result in runs.verify("store")} == {"held"}
    assert {result.verdict for result in runs.recheck_accuracies("store")} == {"held"}
    columns = ("train_images", "label_noise", "validation_images")
    rows, _ = store_rows(Store(here / "store"))
    assert {tuple(row[name] for name in columns) for row in rows} == {(100, 0.3, 50)}


@pytest.mark.slow
def test_runs_on_changed_data_are_series_of_their_own(here: Path) -> None:
    for changes in ({}, {"label_noise": 0.3}):
        train_plan(make_plan(study_from_dict({**STUDY, "dataset": "digits", "claims": [], **changes})), here / "store")
    store = Store(here / "store")
    rows = {str(row["id"]): row for row in store_rows(store)[0]}
    series = group_series(rows, series_keys({run_id: store.facts(run_id) for run_id in rows}))
    assert sorted(len(one.run_ids) for one in series.values()) == [1] * 6
    labels = [one.label for one in series.values()]
    assert len(set(labels)) == 6 and sum("0.3" in label for label in labels) == 3, labels


# ------------------------------------------------------------------------------------------------- module:function


def calls(here: Path) -> int:
    return len((here / "calls").read_text()) if (here / "calls").exists() else 0


def test_a_users_function_is_called_by_training_only(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(here)
    study = {**STUDY, "dataset": "mydata:load"}
    for command in (runs.plan, runs.study_rows):
        with pytest.raises(UserError, match="its function is called by `supermask run` and `supermask data inspect`"):
            command(study, store="store")
    assert calls(here) == 0
    # One worker in this process: those of `run` may have been forked with the cache folder of another test.
    train_plan(plan_study(study_from_dict(study), Store(here / "store"), call_user_code=True), here / "store")
    assert calls(here) == 1, "workers map the arrays that were read once"
    assert "mydata" in sys.modules
    sys.modules.pop("mydata")
    planned = runs.plan(study, store="store")
    assert planned.to_do == 0 and planned.plan.spec.image_shape == (1, 6, 5)
    run = next(iter(planned.plan.runs.values()))
    assert run.data_source is not None and run.data_fingerprint is not None
    assert calls(here) == 1 and "mydata" not in sys.modules

    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(here)])
    plan, rows, _ = runs.study_rows(study, store=here / "store")
    assert plan.runs.keys() == planned.plan.runs.keys() and {row["status"] for row in rows} == {"finished"}
    assert "there is no module 'mydata'" in plan.notices[0]
    assert {result.verdict for result in runs.verify(here / "store")} == {"held"}


def test_a_function_can_be_planned_once_it_was_inspected(here: Path) -> None:
    write_module(here)
    study = {**STUDY, "dataset": "mydata:load"}
    inspection = inspect_dataset("mydata:load")
    assert (inspection.training_counts, inspection.test_counts) == ((16, 16, 16), (4, 4, 4))
    planned = runs.plan(study, store="store")
    assert planned.to_do == 3 and planned.plan.inputs.data_fingerprint == inspection.fingerprint
    assert calls(here) == 1


def test_a_function_is_called_again_under_other_reading_rules(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(here)
    first = inspect_dataset("mydata:load").fingerprint
    monkeypatch.setattr("supermask.study.user_data._READING_RULES", 99)
    with pytest.raises(UserError, match="the data are not known yet"):
        runs.plan({**STUDY, "dataset": "mydata:load"}, store="store")
    assert inspect_dataset("mydata:load").fingerprint == first
    assert calls(here) == 2


def test_the_closure_of_a_users_function_is_in_the_id(here: Path) -> None:
    write_module(here)
    study = {**STUDY, "dataset": "mydata:load"}
    train(study)
    first = set(runs.plan(study, store="store").plan.runs)
    write_module(here, shift=2)
    with pytest.raises(UserError, match="the data are not known yet"):
        runs.plan(study, store="store")
    for name in ("mydata", "helper_of_mine"):
        sys.modules.pop(name)
    train(study)
    assert not set(runs.plan(study, store="store").plan.runs) & first
    assert len(Store(here / "store").run_ids()) == 6


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "the function returned int; expected (x_train, y_train, x_test, y_test)"),
        ("return [1, 2, 3]", "the function returned ['int', 'int', 'int']"),
        ("raise ValueError('no\\ndisk')", "the function failed: ValueError: no disk"),
        ("raise SystemExit(4)", "the function failed: SystemExit: 4"),
        ("return np.zeros((4, 2, 2)), [0, 1, 0, 1], np.zeros((4, 2, 2)), [0, 1, 0, 1]", "is of type float64"),
        ("return dict(x_train=1)", "it lacks train labels, test images, test labels"),
        ("return ([(np.zeros((2, 2), np.uint8), 0)], [])", "the test dataset has 0 images"),
        ("return ([(np.zeros((2, 2), np.uint8), 'a')], [1])", "the label of item 0 of the training dataset is not"),
        ("return ([3], [3])", "item 0 of the training dataset is not (image, label): TypeError"),
        ("return ([(np.full((2, 2), 0.1234), 0)], [1])", "float values that are not pixels / 255"),
    ],
)
def test_other_results_of_a_function_are_refused(here: Path, body: str, message: str) -> None:
    (here / "mydata.py").write_text(f"import numpy as np\n\ndef load():\n    {body}\n")
    with pytest.raises(UserError) as caught:
        runs.run({**STUDY, "dataset": "mydata:load"}, store="store", workers=1)
    assert str(caught.value).startswith("dataset 'mydata:load': ") and message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (here / "store").exists()


def test_a_function_that_does_not_exist_is_refused_by_the_study(here: Path) -> None:
    write_module(here)
    with pytest.raises(UserError, match="has no function 'laod'; did you mean 'load'"):
        study_from_dict({**STUDY, "dataset": "mydata:laod"})
    with pytest.raises(UserError, match="there is no module 'nodata'"):
        runs.run({**STUDY, "dataset": "nodata:load"}, store="store")


DATASETS_MODULE = """
import numpy as np
import torch
from torch.utils.data import Dataset

class Items(Dataset):
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        pixels = torch.full((3, 4, 5), index % 256, dtype=torch.uint8)
        return pixels.float() / 255 if FLOAT else pixels, torch.tensor(index % 2)

def load():
    return Items(300), Items(40)
"""


@pytest.mark.parametrize("is_float", [False, True])
def test_a_pair_of_torch_datasets_is_read(here: Path, is_float: bool) -> None:
    from supermask.study.user_data import load_data

    (here / "mydata.py").write_text(f"FLOAT = {is_float}\n{DATASETS_MODULE}")
    images = load_data("mydata:load")
    assert images.train_images.shape == (300, 3, 4, 5)
    assert images.train_images[:, 0, 0, 0].tolist() == [index % 256 for index in range(300)]
    assert images.test_labels.tolist() == [index % 2 for index in range(40)]
    assert images.facts.validation_images == 30


def test_the_note_of_a_study_holds_what_a_page_needs(here: Path) -> None:
    write_npz(here / "own.npz")
    train()
    (note,) = StatusNotes(here / "store").read("studies").values()
    inputs = PlanInputs.from_data(note["inputs"])
    assert inputs.data_spec is not None and inputs.data_spec.name == "npz:own.npz"
    plan = make_plan(study_from_dict(note["study"]), inputs)
    assert plan.runs.keys() == set(Store(here / "store").run_ids())
