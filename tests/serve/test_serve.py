"""Dashboard over HTTP: refused requests, content of the pages, and read-only access to the store."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import shutil
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.forgery import forge
from helpers.serving import Page, client, files, note_curve, note_progress, note_study
from helpers.stored_study import RUNS, TEXT, TrainedStudy, train_study
from PIL import Image

from supermask.core.errors import UserError
from supermask.serve import server
from supermask.serve.http import POLICY
from supermask.serve.studies import Studies
from supermask.store import Store
from supermask.store.files.entry import RunFacts, Tensors
from supermask.store.files.notes import StatusNotes, note_id
from supermask.store.records import decode_curve
from supermask.store.tables import COLUMNS
from supermask.study import load_study
from supermask.study.plan import make_plan


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    stored = train_study(tmp_path_factory.mktemp("serve"))
    note_study(stored.store, stored.plan)
    return stored


@pytest.fixture(scope="module")
def page(trained: TrainedStudy) -> Page:
    return client(trained.store)


@pytest.fixture
def store_copy(trained: TrainedStudy, tmp_path: Path) -> Path:
    """A copy of the store that the test may change."""
    shutil.copytree(trained.store, tmp_path / "store")
    return tmp_path / "store"


SUBJECT = {"network": "fc-8", "dataset": "digits"}


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


# --- refused requests ---


HOSTS = ["127.0.0.1", "127.0.0.1:8080", "localhost", "localhost:1", "LOCALHOST:65535", "[::1]", "[::1]:8080"]
FOREIGN = ["example.org", "127.0.0.1.example.org", "127.0.0.1:8080.example.org", "localhost.", "127.0.0.2", "0.0.0.1"]
FOREIGN += ["", "localhost:", "localhost:123456", "user@localhost", "127.0.0.1, example.org", "2130706433", "[::1"]


@pytest.mark.parametrize("host", HOSTS)
def test_local_hosts_are_accepted(page: Page, host: str) -> None:
    assert page.get("/live.json", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/live.json", "/static/page.js", "/nothing"])
@pytest.mark.parametrize("host", FOREIGN)
def test_foreign_hosts_are_refused(page: Page, host: str, path: str) -> None:
    answer = page.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert answer.text == "This page is served at 127.0.0.1 or localhost only.\n"
    assert answer.headers["content-security-policy"] == POLICY


def test_two_host_headers_are_refused(page: Page) -> None:
    assert page.get("/", headers=[("host", "localhost"), ("host", "localhost")]).status_code == 421


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"])
@pytest.mark.parametrize("path", ["/", "/live.json", "/explore/runs.csv", "/nothing"])
def test_only_get_and_head_are_allowed(page: Page, method: str, path: str) -> None:
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


def test_every_response_has_the_headers_and_head_has_no_body(page: Page, trained: TrainedStudy) -> None:
    for path in [*every_address(trained.run_id(1)), "/nothing", "/run/0", "/static/../app.py", "/explore/runs.json"]:
        answer = page.get(path)
        assert answer.headers["content-security-policy"] == POLICY, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"]
        assert "access-control-allow-origin" not in answer.headers
        head = page.head(path)
        assert (head.status_code, head.content) == (answer.status_code, b"")


def test_policy_allows_only_scripts_of_the_server() -> None:
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert "unsafe-eval" not in POLICY
    assert POLICY.count("unsafe-inline") == 1


@pytest.mark.parametrize("path", ["/", "/explore", "/run/{}", "/run/0"])
def test_no_page_has_an_inline_script_or_an_external_address(page: Page, trained: TrainedStudy, path: str) -> None:
    html = page.get(path.format(trained.run_id(2))).text
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
        "/run/{}/mask/" + "9" * 5000 + ".png",
        "/run/{}/mask/" + "0" * 5000 + ".png",
        "/run/{}/mask/٣.png",
        "/static/nothing.js",
        "/static/..%2fapp.py",
        "/static/%2e%2e",
        "/report/section/nothing.json",
        "/report/section/..%2f..%2fx.json",
        "/report/data/__class__.json",
    ],
)
def test_unknown_addresses_are_404(page: Page, trained: TrainedStudy, path: str) -> None:
    answer = page.get(path.format(trained.run_id(1)))
    assert answer.status_code == 404
    assert "Traceback" not in answer.text


def test_failure_of_the_error_page_has_the_headers(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("supermask.serve.http.StaticAssets.page", fail)
    answer = page.get("/explore")
    assert (answer.status_code, answer.text) == (500, "The server failed; the traceback is in its terminal.\n")
    assert answer.headers["content-security-policy"] == POLICY


def test_unknown_run_has_an_error_page(page: Page) -> None:
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
def test_invalid_queries_are_400_with_a_message(page: Page, name: str, query: dict[str, str]) -> None:
    answer = page.get(f"/explore/{name}", params=query)
    assert answer.status_code == 400
    assert answer.json()["error"].endswith(".")
    assert "script" not in answer.text


# --- content ---


def test_status_of_a_finished_study(page: Page, trained: TrainedStudy) -> None:
    status = page.get("/live.json").json()
    (study,) = status["studies"]
    assert (study["name"], study["title"], study["subject"]) == ("small", "A small study", "fc-8 on digits")
    assert (study["done"], study["total"], status["runs"]) == (RUNS, RUNS, RUNS)
    assert (status["commands"], status["damaged"], status["trouble"], status["reading"]) == ([], [], "", None)


def test_choices_table_and_csv_have_every_run(page: Page, trained: TrainedStudy) -> None:
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
    table_page = page.get("/explore/runs.json", params={**SUBJECT, "sort": "early_stop_test_accuracy"}).json()
    accuracies = [row[5] for row in table_page["rows"]]
    assert table_page["total"] == len(table_page["rows"]) == RUNS
    assert accuracies == sorted(accuracies)
    table = list(csv.DictReader(io.StringIO(page.get("/explore/runs.csv", params=SUBJECT).text)))
    assert list(table[0]) == list(COLUMNS)
    assert {row["id"] for row in table} == trained.open_store().run_ids()
    assert {float(row["early_stop_test_accuracy"]) for row in table} == set(accuracies)


def test_page_of_a_run_shows_the_notes_of_its_certificate(store_copy: Path, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)

    def add_note(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        facts["certificate"]["notes"] = {"biases_train": ["fc1.bias: unchanged <b>"]}

    forge(replace(trained, store=store_copy), run_id, add_note)
    html = client(store_copy).get(f"/run/{run_id}").text
    assert "noted: fc1.bias: unchanged &lt;b&gt;" in html


def test_page_of_a_run_shows_the_stored_facts(page: Page, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    entry = trained.open_store().read(run_id)
    html = page.get(f"/run/{run_id}").text
    assert "<h1>large_final, rewind, zero, level 2, seed 0</h1>" in html
    assert "In study small: large_final + zero" in html
    assert html.count("✓ holds") == len(entry.facts["certificate"]["checks"])
    assert f"supermask pack {run_id[:8]} ticket.safetensors" in html
    for ancestor in (entry.facts["parent"], trained.run_id(0)):
        assert f'href="/run/{ancestor}"' in html
    assert f'href="/run/{run_id}"' in page.get(f"/run/{trained.run_id(1)}").text
    curve = decode_curve(entry.tensors)
    figure = page.get(f"/run/{run_id}/curve.json").json()
    (loss,), (accuracy,) = figure["data"], figure["views"][0]["data"]
    assert loss["x"] == accuracy["x"] == curve.iterations
    assert loss["y"] == curve.validation_loss
    assert np.allclose(accuracy["y"], [100 * value for value in curve.validation_accuracy], rtol=1e-15)


def test_mask_images_show_the_stored_bits(page: Page, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    tensors = trained.open_store().read(run_id).tensors
    mask = np.unpackbits(tensors["mask/fc1.weight"], count=8 * 64).reshape(8, 64).astype(bool)
    picture = np.asarray(Image.open(io.BytesIO(page.get(f"/run/{run_id}/mask/0.png").content)))
    assert np.array_equal(picture.sum(axis=2) < 300, mask)
    share = mask.mean(axis=0).reshape(8, 8)
    pixels = np.asarray(Image.open(io.BytesIO(page.get(f"/run/{run_id}/pixels.png").content))).astype(float)
    darkness = 255 - pixels[..., 0]
    assert np.allclose(darkness / darkness.max(), share / share.max(), atol=0.5 / 245 + 1e-9)


def test_nothing_is_written(trained: TrainedStudy, page: Page) -> None:
    before = files(trained)
    for path in every_address(trained.run_id(2)):
        assert page.get(path).status_code == 200, path
    assert files(trained) == before


def test_pages_of_a_read_only_store(store_copy: Path, trained: TrainedStudy) -> None:
    for path in [store_copy, *store_copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    page = client(store_copy)
    for path in every_address(trained.run_id(2)):
        assert page.get(path).status_code == 200, path


# --- changes of the store ---


def test_new_run_appears_without_a_restart(store_copy: Path, trained: TrainedStudy, no_wait: None) -> None:
    run_id = trained.run_id(2, "random")
    away = store_copy.parent / "away"
    shutil.move(store_copy / "runs" / run_id[:2] / run_id, away)
    page = client(store_copy)
    first = page.get("/live.json").json()
    assert (first["runs"], first["studies"][0]["done"]) == (RUNS - 1, RUNS - 1)
    assert page.get(f"/run/{run_id}").status_code == 404
    shutil.move(away, store_copy / "runs" / run_id[:2] / run_id)
    second = page.get("/live.json").json()
    assert (second["runs"], second["studies"][0]["done"]) == (RUNS, RUNS)
    assert second["revision"] > first["revision"]
    assert page.get(f"/run/{run_id}").status_code == 200


def test_removed_runs_disappear(store_copy: Path, trained: TrainedStudy, no_wait: None) -> None:
    page = client(store_copy)
    assert page.get("/live.json").json()["runs"] == RUNS
    shutil.rmtree(store_copy / "runs")
    assert page.get("/live.json").json()["runs"] == 0
    assert page.get("/explore/choices.json").json()["subjects"] == []
    assert page.get(f"/run/{trained.run_id(1)}").status_code == 404


def test_damage_is_reported_and_the_rest_is_shown(store_copy: Path, trained: TrainedStudy, no_wait: None) -> None:
    sealed, tensors = trained.run_id(1), trained.run_id(1, "random")
    (store_copy / "runs" / sealed[:2] / sealed / "run.json").write_text("{}")
    path = store_copy / "runs" / tensors[:2] / tensors / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    page = client(store_copy)
    status = page.get("/live.json").json()
    assert status["runs"] == RUNS - 1
    assert status["damaged"][0].startswith(f"{sealed} in the store is damaged")
    answer = page.get(f"/run/{sealed}")
    assert answer.status_code == 404
    assert "is damaged: run.json does not match its seal" in answer.text
    answer = page.get(f"/run/{tensors}")
    assert answer.status_code == 200
    assert "tensors.safetensors has" in answer.text
    assert page.get(f"/run/{tensors}/curve.json").status_code == 500
    assert "is damaged" in page.get(f"/run/{tensors}/mask/0.png").json()["error"]
    assert page.get("/explore/runs.json", params=SUBJECT).json()["total"] == RUNS - 1


def test_empty_store(tmp_path: Path) -> None:
    page = client(tmp_path)
    assert page.get("/").status_code == page.get("/explore").status_code == 200
    status = page.get("/live.json").json()
    assert (status["runs"], status["studies"], status["commands"]) == (0, [], [])
    assert page.get("/explore/choices.json").json()["subjects"] == []


def test_unreadable_store_is_reported(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    status = client(tmp_path).get("/live.json").json()
    assert "needs a folder" in status["trouble"]


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request scans the store, including damaged runs."""
    monkeypatch.setattr("supermask.serve.state.REFRESH_SECONDS", 0.0)
    monkeypatch.setattr("supermask.serve.store_cache.RETRY_SECONDS", 0.0)


# --- running commands ---


def test_running_command(store_copy: Path, trained: TrainedStudy, no_wait: None) -> None:
    key = note_study(store_copy, trained.plan)
    run_id = trained.run_id(2)
    flight = [{"run": run_id, "since": 0.0}, {"run": "f" * 32, "since": 0.0}]
    failures = [{"run": trained.run_id(1), "status": "diverged", "message": "<b>loss</b> is not finite"}]
    note_progress(store_copy, key, in_flight=flight, failures=failures)
    note_curve(store_copy, run_id)
    page = client(store_copy)
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
def test_state_of_a_command(
    store_copy: Path, trained: TrainedStudy, changes: dict[str, Any], state: str | None
) -> None:
    note_progress(
        store_copy, note_study(store_copy, trained.plan), in_flight=[{"run": "0" * 32, "since": 0.0}], **changes
    )
    commands = client(store_copy).get("/live.json").json()["commands"]
    assert [command["state"] for command in commands] == ([] if state is None else [state])
    if commands and state != "running":
        assert commands[0]["in_flight"] == []
        assert commands[0]["time_left"] == ""


def test_only_the_latest_command_of_a_study_is_shown(store_copy: Path, trained: TrainedStudy) -> None:
    key = note_study(store_copy, trained.plan)
    note_progress(store_copy, key, "1" * 32, state="stopped", updated=1000.0)
    note_progress(store_copy, key, "2" * 32, left=3)
    (command,) = client(store_copy).get("/live.json").json()["commands"]
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
def test_malformed_notes_are_ignored(store_copy: Path, trained: TrainedStudy, changes: dict[str, Any]) -> None:
    note_progress(store_copy, note_study(store_copy, trained.plan), **changes)
    answer = client(store_copy).get("/live.json")
    assert answer.status_code == 200
    assert answer.json()["commands"] == []


def test_malformed_note_files_are_ignored(store_copy: Path) -> None:
    for kind in ("progress", "curves", "studies"):
        (store_copy / "notes" / kind).mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(["", "[]", "{", "{}", '{"run": NaN}', '{"of": 1e999}', "null", '"x"']):
            (store_copy / "notes" / kind / f"{number:032d}.json").write_text(text)
    answer = client(store_copy).get("/live.json")
    assert answer.status_code == 200
    assert answer.json()["commands"] == []
    shown = [study for study in answer.json()["studies"] if not study["why_not"]]
    assert [study["name"] for study in shown] == ["small"]


def test_curve_with_nan_is_ignored(store_copy: Path, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    note_progress(store_copy, note_study(store_copy, trained.plan), in_flight=[{"run": run_id, "since": 0.0}])
    path = store_copy / "notes" / "curves" / f"{run_id}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'{{"run": "{run_id}", "of": 9, "iterations": [0], "validation_loss": [NaN], "validation_accuracy": [0.5]}}'
    )
    (command,) = client(store_copy).get("/live.json").json()["commands"]
    assert command["in_flight"][0]["curve"] is None


def test_long_curves_are_thinned_and_keep_their_last_point(store_copy: Path, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    note_progress(store_copy, note_study(store_copy, trained.plan), in_flight=[{"run": run_id, "since": 0.0}])
    note_curve(store_copy, run_id, points=5001, of=20_000)
    (command,) = client(store_copy).get("/live.json").json()["commands"]
    curve = command["in_flight"][0]["curve"]
    assert len(curve["iterations"]) <= 240
    assert curve["iterations"][-1] == 20_000
    assert len(curve["validation_loss"]) == len(curve["validation_accuracy"]) == len(curve["iterations"])


def test_interrupted_study_without_runs(tmp_path: Path, trained: TrainedStudy) -> None:
    key = note_study(tmp_path, trained.plan)
    note_progress(tmp_path, key, pid=2**22 + 7)
    status = client(tmp_path).get("/live.json").json()
    assert (status["studies"][0]["done"], status["studies"][0]["total"]) == (0, RUNS)
    assert status["commands"][0]["state"] == "interrupted"


# --- hostile names, and code named by a store ---


NAMES = ["<script>alert(1)</script>", "../../x", "\u202eevil", "🎟️ & <b>", "x" * 300]


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
