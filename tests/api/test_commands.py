"""Functions of the commands for notebooks: results, short reprs, help, public names, studies from keywords."""

from __future__ import annotations

import inspect
import pydoc
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers import cli_reference
from helpers.command_line import call
from helpers.forgery import folder_of
from helpers.stored_study import RUNS, TEXT, TrainedStudy, train_study

import supermask as sm
from supermask.store.rows import plan_rows
from supermask.store.tables import to_parquet
from supermask.study.loading import STUDY_KEYS
from supermask.study.yaml import parse_yaml, to_python


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("commands"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPERMASK_STORE", raising=False)


FUNCTIONS = {
    "plan": sm.plan,
    "run": sm.run,
    "reproduce": sm.reproduce,
    "status": sm.status,
    "table": sm.table,
    "figure": sm.figure,
    "export": sm.export_run,
    "verify": sm.verify,
    "query": sm.query,
    "claims": sm.claims,
    "compare": sm.compare,
    "report": sm.report,
    "pack": sm.pack,
    "push": sm.push,
    "inspect": sm.inspect_ticket,
    "eval": sm.evaluate_ticket,
    "masks": sm.analyze_masks,
    "tickets build": sm.build_tickets,
    "tickets find": sm.find_tickets,
    "export-tracker": sm.export_tracker,
    "merge": sm.merge,
    "studies": sm.studies,
    "data list": sm.list_datasets,
    "data get": sm.get_dataset,
    "data inspect": sm.inspect_dataset,
}


def test_every_command_but_serve_has_a_function() -> None:
    assert FUNCTIONS.keys() == cli_reference.commands().keys() - {"serve"}


@pytest.mark.parametrize("name", [name for name in sm.__all__ if inspect.isfunction(getattr(sm, name))])
def test_help_of_a_function_fits_a_screen(name: str) -> None:
    text = pydoc.plain(pydoc.render_doc(getattr(sm, name)))
    assert len(text.splitlines()) <= 24
    assert inspect.getdoc(getattr(sm, name))


def test_dir_lists_public_names_alone() -> None:
    assert dir(sm) == sorted(sm.__all__)
    assert dir(sm.api) == sorted(sm.api.__all__)
    assert not [name for name in dir(sm.load_study("mask-criteria")) if name.startswith("_") or "schema" in name]


@pytest.mark.slow
def test_results_are_those_of_the_commands(trained: TrainedStudy, tmp_path: Path) -> None:
    study, store = str(trained.study), str(trained.store)
    planned = sm.plan(study, store=store, cores=2)
    assert (planned.unique, planned.done, planned.to_do) == (RUNS, RUNS, 0)
    assert repr(planned).startswith("small: ") and repr(planned).endswith(f"{RUNS} runs, {RUNS} done, 0 to do")
    assert repr(sm.status(Path(study), store=Path(store))).startswith(f"small: {RUNS} runs: {RUNS} finished")
    assert sm.status(study, store=tmp_path / "empty").status.keys() == planned.plan.runs.keys()
    more = sm.plan(study, store=store, scale="more")
    assert more.unique > RUNS
    verified = sm.verify(store)
    assert {result.key for result in verified} == set(planned.plan.runs)
    assert repr(verified) == f"{RUNS} held"
    answer = sm.query("SELECT level, count(*) AS n FROM runs GROUP BY ALL ORDER BY ALL", store=store)
    assert repr(answer).split() == ["level", "n", "-----", "-", "0", "2", "1", "8", "2", "8"]
    run_id = trained.run_id(1)
    assert [path.name for path in sm.export_run(run_id[:10], "out", store=store)] == ["run.json", "tensors.safetensors"]
    assert repr(sm.merge(store, tmp_path / "merged")) == f"{RUNS} copied, 0 equal, 0 different"
    ticket, path = sm.pack(run_id, "t.safetensors", store=store)
    assert repr(sm.inspect_ticket(path)).splitlines()[0].startswith(repr(ticket))
    path = sm.report(study, out="r.html", store=store)
    assert path == Path("r.html") and path.read_text().startswith("<!doctype html>")


def test_merging_counts_what_is_left_out(trained: TrainedStudy, tmp_path: Path) -> None:
    shutil.copytree(trained.store, tmp_path / "source")
    run_id = trained.run_id(2)
    (folder_of(tmp_path / "source", run_id) / "run.json").write_text("{}")
    results = sm.merge(tmp_path / "source", tmp_path / "merged")
    assert repr(results).splitlines()[0] == f"{RUNS - 1} copied, 0 equal, 0 different, 1 damaged"


def test_claims_of_a_study(trained: TrainedStudy) -> None:
    data = dict(to_python(parse_yaml(TEXT, "text")))
    with pytest.raises(sm.UserError, match="there is no claim about 'small'"):
        sm.claims(trained.study, store=trained.store)
    assert data["dataset"] == "digits"
    shipped = sm.studies()
    assert "mask-criteria" in {study.name for study in shipped}
    assert repr(shipped).splitlines()[0] == f"{len(shipped)} studies"


def test_long_results_are_cut() -> None:
    results = sm.api.commands.Results(range(100), "100 numbers", list(map(str, range(100))))
    lines = repr(results).splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("100 numbers", "... and 80 more", 22)
    assert (results[5], len(results), list(results[1:3])) == (5, 100, [1, 2])


def test_warnings_name_the_line_of_the_user(trained: TrainedStudy) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sm.plan(trained.study, store=trained.store, **{"learn.lr": 1.0})
    assert all(warning.filename == __file__ for warning in caught)


@pytest.mark.slow
def test_reprs_are_short(trained: TrainedStudy) -> None:
    study = sm.load_study(trained.study)
    plan = sm.make_plan(study)
    masks = sm.load_masks([trained.run_id(1)], sm.Store(trained.store))
    analysis = sm.analyze_masks([trained.run_id(1)], trained.store, "figures", "density")
    for value in (study, plan, *masks, sm.plan(trained.study, store=trained.store)):
        assert len(repr(value)) < 160 and "\n" not in repr(value)
    assert len(repr(analysis).splitlines()) < 12
    assert repr(plan) == f"Plan({study!r}, {RUNS} runs)"


# --- Study from keywords ---


def test_study_from_keywords_is_that_of_a_file() -> None:
    data = dict(to_python(parse_yaml(TEXT, "text")))
    for scale in (None, "more"):
        settings = [] if scale is None else [f"scale={scale}"]
        assert sm.Study("small", scale=scale, **data) == sm.study_from_dict(data, settings, name="small")
    study = sm.Study("small", **data)
    assert isinstance(sm.study_from_dict(data), sm.Study)
    assert sm.make_plan(study).runs == sm.make_plan(sm.study_from_dict(data)).runs
    assert study.model_copy(update={"title": "other"}).title == "other"


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"seedz": 1, "treatments": [{}]},
        {"treatments": [{"criterion": "large"}]},
        {"train": {"lr": -1}, "treatments": [{}]},
    ],
)
def test_errors_of_keywords_are_those_of_a_file(keys: dict[str, Any]) -> None:
    with pytest.raises(sm.UserError) as expected:
        sm.study_from_dict(keys, name="mine")
    with pytest.raises(sm.UserError) as error:
        sm.Study("mine", **keys)
    assert str(error.value) == str(expected.value)


def test_keys_are_completed() -> None:
    """IPython completes the keywords of a call from its signature."""
    assert set(inspect.signature(sm.Study).parameters) == {"name", "scale", *STUDY_KEYS}


def test_functions_and_commands_agree(trained: TrainedStudy) -> None:
    status, out, _ = call("query", "SELECT count(*) FROM runs", "--store", trained.store, "--format", "csv")
    assert status == 0
    assert int(out.splitlines()[1]) == sm.query("SELECT count(*) FROM runs", store=trained.store).rows[0][0]


@pytest.mark.slow
def test_one_table_or_name_needs_no_list(trained: TrainedStudy, tmp_path: Path) -> None:
    """A string is a sequence of its characters, so it has to be recognized."""
    table = tmp_path / "a.parquet"
    table.write_bytes(to_parquet(plan_rows(trained.plan, trained.open_store())[0]))
    study, expected = str(trained.study), tmp_path / "r.html"
    for rows in (table, str(table), [table]):
        assert sm.report(study, out=expected, rows=rows) == expected
    with pytest.raises(sm.UserError, match="mask-critera"):
        sm.reproduce("digits", only="mask-critera", store=tmp_path)
