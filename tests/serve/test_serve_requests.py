"""Dashboard over HTTP: refused requests, and the headers of every response."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import SUBJECT, Page, client, every_address
from helpers.stored_study import TrainedStudy

from supermask.serve.http import POLICY

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


def test_a_store_whose_path_is_not_utf8_is_shown(trained: TrainedStudy, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"store \xff")
    shutil.copytree(trained.store, folder)
    page = client(folder)
    (trained_run := folder / "runs" / trained.run_id(1)[:2] / trained.run_id(1) / "run.json").write_text("{}")
    assert trained_run.exists()
    start, live = page.get("/"), page.get("/live.json")
    assert (start.status_code, live.status_code) == (200, 200)
    assert "store \\udcff" in start.text


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


@pytest.mark.slow
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
