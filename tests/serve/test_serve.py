"""Dashboard: hostile names, code named by a store, and the server."""

from __future__ import annotations

import json
import socket
import sys
import threading
from pathlib import Path

import pytest
from helpers.serving import SUBJECT, client
from helpers.stored_study import RUNS, TEXT, TrainedStudy, train_study

from supermask.core.errors import UserError
from supermask.serve import server
from supermask.serve.studies import Studies
from supermask.store import Store
from supermask.store.files.notes import StatusNotes, note_id
from supermask.study import load_study
from supermask.study.plan import make_plan

# --- hostile names, and code named by a store ---


NAMES = ["<script>alert(1)</script>", "../../x", "\u202eevil", "🎟️ & <b>", "x" * 300]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_shown_as_text(tmp_path: Path, name: str) -> None:
    if not name.isprintable():
        name = "evil"
    text = TEXT.replace(
        "  - {criterion: [large_final, random], mask0: [zero, freeze_init]}",
        f"  - {{name: {json.dumps(name, ensure_ascii=False)}}}",
    ).replace("reference: {criterion: large_final, mask0: zero}", "")
    stored = train_study(tmp_path, text=text.replace("A small study", name[:100].replace('"', "'")))
    note = {"name": name * 40, "study": stored.plan.study.as_data()}
    StatusNotes(stored.store).write("studies", note_id(note), note)
    page = client(stored.store)
    status = page.get("/live.json").json()
    assert status["studies"][0]["total"] == 6
    run_id = next(member.run_id for member in stored.plan.treatment_runs if member.level == 1)
    html = page.get(f"/run/{run_id}").text
    assert "<script>alert" not in html
    assert "<b>" not in html
    figure = page.get("/explore/curves.json", params=SUBJECT).text
    assert "<script" not in figure


def test_code_named_by_a_store_is_not_run(
    tmp_path: Path, trained: TrainedStudy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "never_run.py").write_text("print('RUN')\ndef score(layer, rng):\n    return layer.w_final\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    data = trained.plan.study.as_data()
    data["treatments"][0]["criterion"] = "never_run:score"
    note = {"name": "mine", "study": data}
    store = tmp_path / "store"
    StatusNotes(store).write("studies", note_id(note), note)
    (study,) = client(store).get("/live.json").json()["studies"]
    assert "'never_run:score'" in study["why_not"]
    assert "--import-criteria" in study["why_not"]
    assert "never_run" not in sys.modules
    assert capsys.readouterr().out == ""
    (study,) = client(store, import_criteria=True).get("/live.json").json()["studies"]
    assert study["total"] == RUNS
    assert capsys.readouterr().out == "", "planning reads the source of the code and never runs it"
    assert "never_run" not in sys.modules


def test_invalid_study_has_a_reason(store_copy: Path, trained: TrainedStudy) -> None:
    data = trained.plan.study.as_data() | {"network": "no-such-network"}
    note = {"name": "broken", "study": data}
    StatusNotes(store_copy).write("studies", note_id(note), note)
    studies = {study["name"]: study for study in client(store_copy).get("/live.json").json()["studies"]}
    assert "no-such-network" in studies["broken"]["why_not"]
    assert studies["small"]["total"] == RUNS


@pytest.mark.slow
def test_shipped_studies_are_recognized_without_notes(tmp_path: Path) -> None:
    """One seed of a shipped study that shares runs with other shipped studies."""
    plan = make_plan(load_study("mask-0-actions", ["scale=digits"]))
    store = Store(tmp_path)
    one_seed = [run for run in plan.runs.values() if run.seed == 0]
    studies = Studies()
    assert studies.list({}, store.run_ids()) == []
    (study,) = studies.list({}, {run.id for run in one_seed})
    assert (study.name, study.key) == ("mask-0-actions", "mask-0-actions-digits")
    assert study.plan is not None
    assert study.plan.runs.keys() == plan.runs.keys()
    both = {run.id for run in make_plan(load_study("mask-criteria", ["scale=digits"])).runs.values()}
    assert [study.name for study in studies.list({}, both | plan.runs.keys())] == ["mask-0-actions", "mask-criteria"]


# --- the server ---


def test_missing_store_and_used_port_are_refused_before_serving(tmp_path: Path) -> None:
    addresses: list[str] = []
    with pytest.raises(UserError, match="there is no store at"):
        server.serve(tmp_path / "none", 0, on_ready=addresses.append)
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is used by another program: .*--port \d+\.") as refused:
            server.serve(tmp_path, port, on_ready=addresses.append)
    assert f"--port {port}." not in str(refused.value)
    assert addresses == []


def test_server_listens_on_loopback_only() -> None:
    with server.bind_socket(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_concurrent_requests(store_copy: Path, no_wait: None) -> None:
    page = client(store_copy)
    answers: list[int] = []

    def ask() -> None:
        answers.append(page.get("/live.json").json()["runs"])

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    assert page.get("/live.json").json()["runs"] == RUNS
