"""The live page asked over HTTP: what it refuses, what it says of a store, and that it writes nothing."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import shutil
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.serving import Page, client, files, note_curve, note_progress, note_study
from helpers.stored_study import RUNS, TEXT, Carried, carried_out
from PIL import Image

from supermask.core.errors import UserError
from supermask.serve import server
from supermask.serve.http import POLICY
from supermask.serve.studies import Studies
from supermask.store import Store
from supermask.store.files.notes import StatusNotes, note_id
from supermask.store.records import decode_curve
from supermask.store.tables import COLUMNS
from supermask.study import load_study
from supermask.study.plan import make_plan


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    made = carried_out(tmp_path_factory.mktemp("serve"))
    note_study(made.store, made.plan)
    return made


@pytest.fixture(scope="module")
def page(carried: Carried) -> Page:
    return client(carried.store)


@pytest.fixture
def own(carried: Carried, tmp_path: Path) -> Path:
    """A copy of the store, to be changed."""
    shutil.copytree(carried.store, tmp_path / "store")
    return tmp_path / "store"


SUBJECT = {"network": "fc-8", "dataset": "digits"}
RUN = "/run/{}"


def every_address(run_id: str) -> list[str]:
    return [
        "/",
        "/live.json",
        "/explore",
        "/explore/choices.json",
        "/explore/runs.json?network=fc-8&dataset=digits",
        "/explore/curves.json?network=fc-8&dataset=digits",
        "/explore/runs.csv?network=fc-8&dataset=digits",
        f"/run/{run_id}",
        f"/run/{run_id}/curve.json",
        f"/run/{run_id}/pixels.png",
        f"/run/{run_id}/mask/0.png",
        "/report/contents.json",
        "/static/page.js",
        "/static/serve.css",
    ]


# --- what is refused ---


HOSTS = ["127.0.0.1", "127.0.0.1:8080", "localhost", "localhost:1", "LOCALHOST:65535", "[::1]", "[::1]:8080"]
FOREIGN = ["example.org", "127.0.0.1.example.org", "127.0.0.1:8080.example.org", "localhost.", "127.0.0.2", "0.0.0.1"]
FOREIGN += ["", "localhost:", "localhost:123456", "user@localhost", "127.0.0.1, example.org", "2130706433", "[::1"]


@pytest.mark.parametrize("host", HOSTS)
def test_this_machine_is_answered(page: Page, host: str) -> None:
    assert page.get("/live.json", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/live.json", "/static/page.js", "/nothing"])
@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_is_told_nothing(page: Page, host: str, path: str) -> None:
    answer = page.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert answer.text == "This page is at 127.0.0.1 or localhost, and under no other name.\n"
    assert answer.headers["content-security-policy"] == POLICY


def test_two_hosts_are_none(page: Page) -> None:
    assert page.get("/", headers=[("host", "localhost"), ("host", "localhost")]).status_code == 421


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"])
@pytest.mark.parametrize("path", ["/", "/live.json", "/explore/runs.csv", "/nothing"])
def test_only_reading_is_allowed(page: Page, method: str, path: str) -> None:
    answer = page.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


def test_websockets_are_refused(page: Page) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(page.app(scope, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_every_answer_is_guarded_and_head_is_get_without_a_body(page: Page, carried: Carried) -> None:
    for path in [*every_address(carried.run_id(1)), "/nothing", "/run/0", "/static/../app.py", "/explore/runs.json"]:
        answer = page.get(path)
        assert answer.headers["content-security-policy"] == POLICY, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"]
        assert "access-control-allow-origin" not in answer.headers
        head = page.head(path)
        assert (head.status_code, head.content) == (answer.status_code, b"")


def test_the_policy_allows_no_script_but_the_pages_own() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert "unsafe-eval" not in POLICY
    assert POLICY.count("unsafe-inline") == 1


@pytest.mark.parametrize("path", ["/", "/explore", "/run/{}", "/run/0"])
def test_no_page_has_an_inline_script_or_an_outside_address(page: Page, carried: Carried, path: str) -> None:
    html = page.get(path.format(carried.run_id(2))).text
    assert html.count("<script") == html.count('<script defer src="/static/')
    assert "://" not in html
    assert " on" + "click" not in html


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/run/",
        "/run/0",
        "/run/" + "0" * 32,
        "/run/" + "F" * 32,
        "/run/../../etc/passwd",
        "/run/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/run/" + "a" * 5000,
        "/run/{}/mask/3.png",
        "/run/{}/mask/-1.png",
        "/run/{}/mask/x.png",
        "/static/nothing.js",
        "/static/..%2fapp.py",
        "/static/%2e%2e",
        "/report/section/nothing.json",
        "/report/section/..%2f..%2fx.json",
        "/report/data/__class__.json",
    ],
)
def test_what_is_not_there_is_not_found(page: Page, carried: Carried, path: str) -> None:
    answer = page.get(path.format(carried.run_id(1)))
    assert answer.status_code == 404
    assert "Traceback" not in answer.text


def test_an_unknown_run_is_told_in_one_sentence(page: Page) -> None:
    assert "<p>There is no such run in this store.</p>" in page.get("/run/" + "0" * 32).text


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("runs.json", {**SUBJECT, "sort": "no_column"}),
        ("runs.json", {**SUBJECT, "order": "sideways"}),
        ("runs.json", {**SUBJECT, "page": "-1"}),
        ("runs.json", {**SUBJECT, "page": "1e3"}),
        ("runs.json", {**SUBJECT, "page": "9" * 40}),
        ("runs.json", {**SUBJECT, "treatment": "../../etc"}),
        ("runs.json", {"network": "fc-8", "dataset": "<script>"}),
        ("runs.json", {}),
        ("runs.csv", {"network": "../x", "dataset": "digits"}),
        ("runs.csv", {**SUBJECT, "treatment": "g" * 12}),
        ("curves.json", {**SUBJECT, "metric": "__class__"}),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(page: Page, name: str, query: dict[str, str]) -> None:
    answer = page.get(f"/explore/{name}", params=query)
    assert answer.status_code == 400
    assert answer.json()["error"].endswith(".")
    assert "script" not in answer.text


# --- what is said ---


def test_news_of_a_finished_study(page: Page, carried: Carried) -> None:
    news = page.get("/live.json").json()
    (study,) = news["studies"]
    assert (study["name"], study["title"], study["subject"]) == ("small", "A small study", "fc-8 on digits")
    assert (study["done"], study["total"], news["runs"]) == (RUNS, RUNS, RUNS)
    assert (news["commands"], news["damaged"], news["trouble"], news["reading"]) == ([], [], "", None)


def test_choices_table_and_csv_have_every_run(page: Page, carried: Carried) -> None:
    (subject,) = page.get("/explore/choices.json").json()["subjects"]
    assert {name: subject[name] for name in SUBJECT} == SUBJECT
    assert subject["runs"] == RUNS
    assert [t["label"] for t in subject["treatments"]] == [
        "dense",
        "large_final, rewind, freeze_init",
        "large_final, rewind, zero",
        "random, rewind, freeze_init",
        "random, rewind, zero",
    ]
    assert [t["runs"] for t in subject["treatments"]] == [2, 4, 4, 4, 4]
    told = page.get("/explore/runs.json", params={**SUBJECT, "sort": "early_stop_test_accuracy"}).json()
    accuracies = [row[5] for row in told["rows"]]
    assert told["total"] == len(told["rows"]) == RUNS
    assert accuracies == sorted(accuracies)
    table = list(csv.DictReader(io.StringIO(page.get("/explore/runs.csv", params=SUBJECT).text)))
    assert list(table[0]) == list(COLUMNS)
    assert {row["id"] for row in table} == carried.opened().run_ids()
    assert {float(row["early_stop_test_accuracy"]) for row in table} == set(accuracies)


def test_the_page_of_a_run_says_what_is_stored(page: Page, carried: Carried) -> None:
    run_id = carried.run_id(2)
    entry = carried.opened().read(run_id)
    html = page.get(f"/run/{run_id}").text
    assert "<h1>large_final, rewind, zero, level 2, seed 0</h1>" in html
    assert "In study small: large_final + zero" in html
    assert html.count("✓ holds") == len(entry.facts["certificate"]["checks"])
    assert f"supermask pack {run_id[:8]} ticket.safetensors" in html
    for each in (entry.facts["parent"], carried.run_id(0)):
        assert f'href="/run/{each}"' in html
    assert f'href="/run/{run_id}"' in page.get(f"/run/{carried.run_id(1)}").text
    curve = decode_curve(entry.tensors)
    figure = page.get(f"/run/{run_id}/curve.json").json()
    (loss,), (accuracy,) = figure["data"], figure["views"][0]["data"]
    assert loss["x"] == accuracy["x"] == curve.iterations
    assert loss["y"] == curve.validation_loss
    assert np.allclose(accuracy["y"], [100 * value for value in curve.validation_accuracy], rtol=1e-15)


def test_masks_are_pictures_of_the_stored_bits(page: Page, carried: Carried) -> None:
    run_id = carried.run_id(2)
    tensors = carried.opened().read(run_id).tensors
    mask = np.unpackbits(tensors["mask/fc1.weight"], count=8 * 64).reshape(8, 64).astype(bool)
    picture = np.asarray(Image.open(io.BytesIO(page.get(f"/run/{run_id}/mask/0.png").content)))
    assert np.array_equal(picture.sum(axis=2) < 300, mask)
    share = mask.mean(axis=0).reshape(8, 8)
    pixels = np.asarray(Image.open(io.BytesIO(page.get(f"/run/{run_id}/pixels.png").content))).astype(float)
    darkness = 255 - pixels[..., 0]
    assert np.allclose(darkness / darkness.max(), share / share.max(), atol=0.5 / 245 + 1e-9)


def test_nothing_is_written(carried: Carried, page: Page) -> None:
    before = files(carried)
    for path in every_address(carried.run_id(2)):
        assert page.get(path).status_code == 200, path
    assert files(carried) == before


def test_the_pages_of_a_store_that_cannot_be_written_to(own: Path, carried: Carried) -> None:
    for path in [own, *own.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    page = client(own)
    for path in every_address(carried.run_id(2)):
        assert page.get(path).status_code == 200, path


# --- a store that changes ---


def test_a_run_that_appears_is_there_without_a_restart(own: Path, carried: Carried, no_wait: None) -> None:
    run_id = carried.run_id(2, "random")
    away = own.parent / "away"
    shutil.move(own / "runs" / run_id[:2] / run_id, away)
    page = client(own)
    first = page.get("/live.json").json()
    assert (first["runs"], first["studies"][0]["done"]) == (RUNS - 1, RUNS - 1)
    assert page.get(f"/run/{run_id}").status_code == 404
    shutil.move(away, own / "runs" / run_id[:2] / run_id)
    second = page.get("/live.json").json()
    assert (second["runs"], second["studies"][0]["done"]) == (RUNS, RUNS)
    assert second["revision"] > first["revision"]
    assert page.get(f"/run/{run_id}").status_code == 200


def test_a_run_that_goes_is_gone(own: Path, carried: Carried, no_wait: None) -> None:
    page = client(own)
    assert page.get("/live.json").json()["runs"] == RUNS
    shutil.rmtree(own / "runs")
    assert page.get("/live.json").json()["runs"] == 0
    assert page.get("/explore/choices.json").json()["subjects"] == []
    assert page.get(f"/run/{carried.run_id(1)}").status_code == 404


def test_damage_is_told_and_the_rest_is_shown(own: Path, carried: Carried, no_wait: None) -> None:
    sealed, tensors = carried.run_id(1), carried.run_id(1, "random")
    (own / "runs" / sealed[:2] / sealed / "run.json").write_text("{}")
    path = own / "runs" / tensors[:2] / tensors / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    page = client(own)
    news = page.get("/live.json").json()
    assert news["runs"] == RUNS - 1
    assert news["damaged"][0].startswith(f"{sealed} in the store is damaged")
    answer = page.get(f"/run/{sealed}")
    assert answer.status_code == 404
    assert "is damaged: run.json does not match its seal" in answer.text
    answer = page.get(f"/run/{tensors}")
    assert answer.status_code == 200
    assert "tensors.safetensors has" in answer.text
    assert page.get(f"/run/{tensors}/curve.json").status_code == 500
    assert "is damaged" in page.get(f"/run/{tensors}/mask/0.png").json()["error"]
    assert page.get("/explore/runs.json", params=SUBJECT).json()["total"] == RUNS - 1


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    page = client(tmp_path)
    assert page.get("/").status_code == page.get("/explore").status_code == 200
    news = page.get("/live.json").json()
    assert (news["runs"], news["studies"], news["commands"]) == (0, [], [])
    assert page.get("/explore/choices.json").json()["subjects"] == []


def test_a_store_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    news = client(tmp_path).get("/live.json").json()
    assert "needs a folder" in news["trouble"]


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request looks at the store anew, damaged runs included."""
    monkeypatch.setattr("supermask.serve.state.REFRESH_SECONDS", 0.0)
    monkeypatch.setattr("supermask.serve.store_cache.RETRY_SECONDS", 0.0)


# --- what is going on ---


def test_a_command_at_work(own: Path, carried: Carried, no_wait: None) -> None:
    key = note_study(own, carried.plan)
    run_id = carried.run_id(2)
    flight = [{"run": run_id, "since": 0.0}, {"run": "f" * 32, "since": 0.0}]
    failures = [{"run": carried.run_id(1), "status": "diverged", "message": "<b>loss</b> is not finite"}]
    note_progress(own, key, in_flight=flight, failures=failures)
    note_curve(own, run_id)
    page = client(own)
    (command,) = page.get("/live.json").json()["commands"]
    assert (command["state"], command["names"]) == ("running", ["small"])
    assert (command["tasks"], command["left"], command["time_left"]) == (18, 5, "42 s")
    first, second = command["in_flight"]
    assert (first["label"], first["level"], first["seed"]) == ("large_final + zero", 2, 0)
    assert first["curve"]["iterations"] == [0, 4, 8, 12]
    assert (second["label"], second["level"], second["curve"]) == ("", None, None)
    (failure,) = command["failures"]
    assert failure["message"] == "<b>loss</b> is not finite"
    assert failure["stored"]


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"updated": 1e9}, "interrupted"),
        ({"pid": 2**22 + 7}, "interrupted"),
        ({"pid": 10**30}, "interrupted"),
        ({"pid": -1}, "interrupted"),
        ({"pid": 2**22 + 7, "host": "elsewhere"}, "running"),
        ({"state": "stopped"}, "stopped"),
        ({"state": "failed", "message": "the disk is full"}, "failed"),
        ({"state": "ended"}, None),
        ({"state": "no such state"}, "failed"),
    ],
)
def test_the_state_of_a_command(own: Path, carried: Carried, changes: dict[str, Any], state: str | None) -> None:
    note_progress(own, note_study(own, carried.plan), in_flight=[{"run": "0" * 32, "since": 0.0}], **changes)
    found = client(own).get("/live.json").json()["commands"]
    assert [each["state"] for each in found] == ([] if state is None else [state])
    if found and state != "running":
        assert found[0]["in_flight"] == []
        assert found[0]["time_left"] == ""


def test_of_one_study_the_last_command_counts(own: Path, carried: Carried) -> None:
    key = note_study(own, carried.plan)
    note_progress(own, key, "1" * 32, state="stopped", updated=1000.0)
    note_progress(own, key, "2" * 32, left=3)
    (command,) = client(own).get("/live.json").json()["commands"]
    assert (command["state"], command["left"]) == ("running", 3)


HOSTILE: list[Any] = [
    {},
    {"studies": 7},
    {"state": ["running"]},
    {"tasks": -1},
    {"updated": "now"},
    {"in_flight": [{"run": "../../x", "since": 0}]},
    {"failures": [{"run": "<script>", "status": "x"}]},
]


@pytest.mark.parametrize("changes", HOSTILE[1:])
def test_notes_that_are_none_are_passed_over(own: Path, carried: Carried, changes: dict[str, Any]) -> None:
    note_progress(own, note_study(own, carried.plan), **changes)
    answer = client(own).get("/live.json")
    assert answer.status_code == 200
    assert answer.json()["commands"] == []


def test_files_that_are_no_notes_are_passed_over(own: Path) -> None:
    for kind in ("progress", "curves", "studies"):
        (own / "notes" / kind).mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(["", "[]", "{", "{}", '{"run": NaN}', '{"of": 1e999}', "null", '"x"']):
            (own / "notes" / kind / f"{number:032d}.json").write_text(text)
    answer = client(own).get("/live.json")
    assert answer.status_code == 200
    assert answer.json()["commands"] == []
    shown = [study for study in answer.json()["studies"] if not study["why_not"]]
    assert [study["name"] for study in shown] == ["small"]


def test_a_curve_with_numbers_that_json_has_not(own: Path, carried: Carried) -> None:
    run_id = carried.run_id(2)
    note_progress(own, note_study(own, carried.plan), in_flight=[{"run": run_id, "since": 0.0}])
    path = own / "notes" / "curves" / f"{run_id}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'{{"run": "{run_id}", "of": 9, "iterations": [0], "validation_loss": [NaN], "validation_accuracy": [0.5]}}'
    )
    (command,) = client(own).get("/live.json").json()["commands"]
    assert command["in_flight"][0]["curve"] is None


def test_long_curves_are_thinned_and_keep_their_end(own: Path, carried: Carried) -> None:
    run_id = carried.run_id(2)
    note_progress(own, note_study(own, carried.plan), in_flight=[{"run": run_id, "since": 0.0}])
    note_curve(own, run_id, points=5001, of=20_000)
    (command,) = client(own).get("/live.json").json()["commands"]
    curve = command["in_flight"][0]["curve"]
    assert len(curve["iterations"]) <= 240
    assert curve["iterations"][-1] == 20_000
    assert len(curve["validation_loss"]) == len(curve["validation_accuracy"]) == len(curve["iterations"])


def test_an_interrupted_study_counts_what_is_there(tmp_path: Path, carried: Carried) -> None:
    key = note_study(tmp_path, carried.plan)
    note_progress(tmp_path, key, pid=2**22 + 7)
    news = client(tmp_path).get("/live.json").json()
    assert (news["studies"][0]["done"], news["studies"][0]["total"]) == (0, RUNS)
    assert news["commands"][0]["state"] == "interrupted"


# --- names, and code that a store names ---


NAMES = ["<script>alert(1)</script>", "../../x", "\u202eevil", "🎟️ & <b>", "x" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_are_shown_as_text(tmp_path: Path, name: str) -> None:
    if not name.isprintable():
        name = "evil"
    text = TEXT.replace(
        "  - {criterion: [large_final, random], mask0: [zero, freeze_init]}",
        f"  - {{name: {json.dumps(name, ensure_ascii=False)}}}",
    ).replace("reference: {criterion: large_final, mask0: zero}", "")
    made = carried_out(tmp_path, text=text.replace("A small study", name[:100].replace('"', "'")))
    note = {"name": name * 40, "study": made.plan.study.as_data()}
    StatusNotes(made.store).write("studies", note_id(note), note)
    page = client(made.store)
    news = page.get("/live.json").json()
    assert news["studies"][0]["total"] == 6
    run_id = next(member.run_id for member in made.plan.treatment_runs if member.level == 1)
    html = page.get(f"/run/{run_id}").text
    assert "<script>alert" not in html
    assert "<b>" not in html
    figure = page.get("/explore/curves.json", params=SUBJECT).text
    assert "<script" not in figure


def test_code_that_a_store_names_is_not_run(
    tmp_path: Path, carried: Carried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "never_run.py").write_text("print('RUN')\ndef score(layer, rng):\n    return layer.w_final\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    data = carried.plan.study.as_data()
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
    assert capsys.readouterr().out == "RUN\n"
    sys.modules.pop("never_run")


def test_a_study_that_cannot_be_planned_says_why(own: Path, carried: Carried) -> None:
    data = carried.plan.study.as_data() | {"network": "no-such-network"}
    note = {"name": "broken", "study": data}
    StatusNotes(own).write("studies", note_id(note), note)
    found = {study["name"]: study for study in client(own).get("/live.json").json()["studies"]}
    assert "no-such-network" in found["broken"]["why_not"]
    assert found["small"]["total"] == RUNS


def test_without_a_note_the_shipped_study_that_was_run_is_known(tmp_path: Path) -> None:
    """One seed of a shipped study, of which other shipped studies share some runs."""
    study = load_study("mask-0-actions", ["scale=digits"])
    plan = make_plan(study)
    store = Store(tmp_path)
    taken = [run for run in plan.runs.values() if run.seed == 0]
    studies = Studies()
    assert studies.list({}, store.run_ids()) == []
    (found,) = studies.list({}, {run.id for run in taken})
    assert (found.name, found.key) == ("mask-0-actions", "mask-0-actions-digits")
    assert found.plan is not None
    assert found.plan.runs.keys() == plan.runs.keys()
    both = {run.id for run in make_plan(load_study("mask-criteria", ["scale=digits"])).runs.values()}
    assert [each.name for each in studies.list({}, both | plan.runs.keys())] == ["mask-0-actions", "mask-criteria"]


# --- the server ---


def test_a_missing_store_and_a_taken_port_are_told_before_anything_is_served(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match="there is no store at"):
        server.serve(tmp_path / "none", 0, on_ready=said.append)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is taken by another program: .*--port \d+\.") as refused:
            server.serve(tmp_path, port, on_ready=said.append)
    assert f"--port {port}." not in str(refused.value)
    assert said == []


def test_only_this_machine_is_listened_to() -> None:
    with server.bind_socket(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_many_requests_at_once(own: Path, no_wait: None) -> None:
    page = client(own)
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
