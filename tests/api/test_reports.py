"""Commands `claims` and `reproduce`, and their functions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command_line import call

from supermask.api.reports import builtin_plans, claims, reproduce
from supermask.core.errors import SystemFailure, UserError
from supermask.execution.run import RunOptions
from supermask.store import Store
from supermask.study.loading import builtin_studies, paper_studies
from supermask.study.plan import merge_plans


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the store of one shipped study and its report."""
    folder = tmp_path_factory.mktemp("reproduced")
    result = reproduce("digits", ["mask-points"], RunOptions(folder / "store", 2, "reference"), folder / "report.html")
    assert set(result.scheduler.status.values()) == {"finished"}
    assert [claim.number for claim in result.report.claims] == [14]
    return folder


@pytest.mark.slow
def test_report_quotes_its_command(reproduced: Path) -> None:
    page = (reproduced / "report.html").read_text(encoding="utf-8")
    assert "supermask reproduce --scale digits --only mask-points" in page
    assert "masks from the weights of lowest validation loss are not better" in page


def test_second_call_trains_nothing_and_writes_the_same_bytes(reproduced: Path) -> None:
    before = Store(reproduced / "store").run_ids()
    result = reproduce("digits", ["mask-points"], RunOptions(reproduced / "store"), reproduced / "again.html")
    assert Store(reproduced / "store").run_ids() == before
    assert result.scheduler.tasks_left == 0
    assert (reproduced / "again.html").read_bytes() == (reproduced / "report.html").read_bytes()


def test_command_prints_claims_and_the_report_file(reproduced: Path) -> None:
    out = reproduced / "second.html"
    command = ["reproduce", "--only", "mask-points", "--store", str(reproduced / "store"), "--out", str(out)]
    done = call(*command)
    assert done.status == 0, done.err
    assert "reproduce: 51 runs: 51 finished." in done.out
    assert " 14. FC on MNIST: masks from the weights of lowest validation loss" in done.out
    assert f"{out}  " in done.out
    assert out.is_file()


@pytest.mark.slow
def test_claims_of_one_study_and_of_all_studies(reproduced: Path) -> None:
    single, _ = claims(["mask-points"], ["scale=digits"], reproduced / "store")
    every, _ = claims([], ["scale=digits"], reproduced / "store")
    # FC's parts of each claim; of other networks, a demonstration says nothing, and claim 15 is about ResNet-20.
    assert list(dict.fromkeys(claim.number for claim in every)) == list(range(1, 15))
    assert [claim for claim in every if claim.number == 14] == single
    assert {claim.verdict for claim in every} == {"no verdict"}
    done = call("claims", "mask-points", "scale=digits", "--format", "json", "--store", str(reproduced / "store"))
    assert json.loads(done.out)[0]["sentence"] == single[0].sentence


@pytest.mark.slow
def test_invalid_input_is_refused_before_training(tmp_path: Path) -> None:
    store = ["--store", str(tmp_path / "store")]
    for command, message in [
        (["reproduce", "--scale", "digit", *store], "'digit' is not a scale; did you mean 'digits'?"),
        (["reproduce", "--only", "mask-criteri", *store], "is not a shipped study; did you mean 'mask-criteria'?"),
        (["reproduce", "--out", str(tmp_path), *store], "is a folder: give --out the name of a file"),
        (["claims", *store], "there is no store at"),
    ]:
        done = call(*command)
        assert done.status == 2
        assert message in done.err
        assert "Traceback" not in done.err
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="writes into /proc, where nobody can")
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supermask.api.reports.run_plans", None)
    with pytest.raises(SystemFailure, match="the report cannot be written to /proc"):
        reproduce("digits", ["mask-points"], RunOptions(tmp_path / "store"), Path("/proc/report.html"))


def test_study_without_claims_is_refused(tmp_path: Path) -> None:
    study = tmp_path / "own.yaml"
    study.write_text("treatments: [{criterion: random}]\n")
    with pytest.raises(UserError, match=r"there is no claim about 'own': give a study of "):
        claims([str(study)], [], tmp_path)


@pytest.mark.slow
def test_shipped_studies_share_runs_in_one_plan() -> None:
    for scale in ("digits", "laptop"):
        plans = builtin_plans(scale)
        names = [plan.study.name for plan in plans]
        assert names[:4] == ["mask-criteria", "mask-1-actions", "mask-0-actions", "heuristic-supermasks"]
        # The demonstration shows a residual network too; at other scales its study takes hours.
        every_study = builtin_studies() if scale == "digits" else paper_studies()
        assert sorted(names) == [study.name for study in every_study]
        total = sum(len(plan.runs) for plan in plans)
        assert len(merge_plans(plans).runs) < total
