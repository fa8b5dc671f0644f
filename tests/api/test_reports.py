"""`supermask claims` and `supermask reproduce`: from the words that are typed to verdicts and a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command_line import call

from supermask.api.reports import builtin_plans, claims, reproduce
from supermask.core.errors import UserError
from supermask.execution.run import RunOptions
from supermask.store import Store
from supermask.study import builtin_studies
from supermask.study.plan import merge_plans


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of one shipped study, and its report."""
    folder = tmp_path_factory.mktemp("reproduced")
    made = reproduce("digits", ["mask-points"], RunOptions(folder / "store", 2, "reference"), folder / "report.html")
    assert set(made.schedule.status.values()) == {"finished"}
    assert [claim.number for claim in made.report.claims] == [14]
    return folder


def test_the_report_is_there_and_says_how_it_is_made_again(reproduced: Path) -> None:
    page = (reproduced / "report.html").read_text(encoding="utf-8")
    assert "supermask reproduce --scale digits --only mask-points" in page
    assert "Masks from the weights of lowest validation loss are not better" in page


def test_a_second_time_trains_nothing_and_writes_the_same_bytes(reproduced: Path) -> None:
    before = Store(reproduced / "store").run_ids()
    made = reproduce("digits", ["mask-points"], RunOptions(reproduced / "store"), reproduced / "again.html")
    assert Store(reproduced / "store").run_ids() == before
    assert made.schedule.tasks_left == 0
    assert (reproduced / "again.html").read_bytes() == (reproduced / "report.html").read_bytes()


def test_the_command_says_the_claims_and_where_the_report_is(reproduced: Path) -> None:
    out = reproduced / "told.html"
    command = ["reproduce", "--only", "mask-points", "--store", str(reproduced / "store"), "--out", str(out)]
    done = call(*command)
    assert done.status == 0, done.err
    assert "reproduce: 51 runs: 51 finished." in done.out
    assert " 14. Masks from the weights of lowest validation loss" in done.out
    assert f"{out}  " in done.out
    assert out.is_file()


def test_claims_of_one_study_and_of_all(reproduced: Path) -> None:
    one, _ = claims(["mask-points"], ["scale=digits"], reproduced / "store")
    every, _ = claims([], ["scale=digits"], reproduced / "store")
    assert [claim.number for claim in every] == list(range(1, 16))
    assert [claim for claim in every if claim.number == 14] == one
    assert all(claim.verdict == "not enough data" for claim in every if claim.number != 14)
    done = call("claims", "mask-points", "scale=digits", "--format", "json", "--store", str(reproduced / "store"))
    assert json.loads(done.out)[0]["sentence"] == one[0].sentence


def test_what_cannot_be_done_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    at = ["--store", str(tmp_path / "store")]
    for command, message in [
        (["reproduce", "--scale", "digit", *at], "'digit' is not a scale; did you mean 'digits'?"),
        (["reproduce", "--only", "mask-criteri", *at], "is not a study that ships; did you mean 'mask-criteria'?"),
        (["reproduce", "--out", str(tmp_path), *at], "is a folder: give --out the name of a file"),
        (["claims", *at], "there is no store at"),
    ]:
        done = call(*command)
        assert done.status == 2
        assert message in done.err
        assert "Traceback" not in done.err
    assert not (tmp_path / "store").exists()


def test_a_study_of_which_nothing_is_claimed(tmp_path: Path) -> None:
    study = tmp_path / "own.yaml"
    study.write_text("treatments: [{criterion: random}]\n")
    with pytest.raises(UserError, match=r"nothing is claimed of 'own': give a study of heuristic|nothing is claimed"):
        claims([str(study)], [], tmp_path)


def test_all_shipped_studies_are_one_plan_in_which_every_run_is_once() -> None:
    for scale in ("digits", "laptop"):
        plans = builtin_plans(scale)
        names = [plan.study.name for plan in plans]
        assert names[:4] == ["mask-criteria", "mask-1-actions", "mask-0-actions", "heuristic-supermasks"]
        assert sorted(names) == [study.name for study in builtin_studies()]
        asked = sum(len(plan.runs) for plan in plans)
        assert len(merge_plans(plans).runs) < asked
