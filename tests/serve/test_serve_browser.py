"""Dashboard in a real browser, which `helpers.browsers` finds."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from helpers.accessibility import serious_violations
from helpers.browsers import WAIT, LoggedPage, needs_browser, open_browser, open_page
from helpers.hostile_names import NAMES, SCRIPT, train_hostile_study
from helpers.serving import note_curve, note_progress, note_study
from helpers.stored_study import RUNS, TrainedStudy, train_study
from playwright.sync_api import Browser, Page, Route, expect

from supermask.serve.app import make_app
from supermask.serve.connections import LimitedServer, limits
from supermask.serve.server import bind_socket

pytestmark = [pytest.mark.browser, needs_browser]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@dataclass
class Site:
    """A server on a finished study from which one run was removed."""

    url: str
    store: Path
    trained: TrainedStudy
    missing: str

    def restore_run(self) -> None:
        """Restore the removed run as a commit does: by one rename."""
        (self.store.parent / "away").rename(self.store / "runs" / self.missing[:2] / self.missing)

    def check(self, log: LoggedPage) -> None:
        """Assert that a page logged nothing and that all its requests went to the server."""
        assert log.messages == []
        assert log.addresses
        assert [url for url in log.addresses if not url.startswith(self.url)] == []


@contextmanager
def serving(folder: Path) -> Iterator[Site]:
    """Serve such a study from a thread of this process."""
    trained = train_study(folder)
    note_study(trained.store, trained.plan)
    missing = trained.run_id(2, "random", "freeze_init", seed=1)
    (trained.store / "runs" / missing[:2] / missing).rename(folder / "away")
    listening = bind_socket(0)
    settings = uvicorn.Config(make_app(trained.store), ws="none", log_level="error", **limits())
    server = LimitedServer(settings)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield Site(f"http://127.0.0.1:{listening.getsockname()[1]}/", trained.store, trained, missing)
    server.force_exit = server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server on a store that the test changes."""
    with serving(tmp_path) as site:
        yield site


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server on a store that no test changes. A command with a message that is longer than a window runs on it."""
    with serving(tmp_path_factory.mktemp("site")) as site:
        note_progress(site.store, note_study(site.store, site.trained.plan), message="x" * 500)
        yield site


@pytest.fixture
def log(browser: Browser) -> Iterator[LoggedPage]:
    with open_page(browser) as log:
        yield log


def visible_treatments(page: Page, plot: str) -> set[str]:
    """Names of the treatments that a figure shows."""
    script = "(canvas) => canvas.data.filter((trace) => trace.visible && trace.name).map((trace) => trace.name)"
    return set(page.locator(f"[data-plot='{plot}'] .canvas").evaluate(script))


def test_report_follows_a_growing_study(site: Site, log: LoggedPage) -> None:
    page = log.page
    page.goto(site.url)
    expect(page.locator("#studies")).to_contain_text(f"{RUNS - 1} of {RUNS}", timeout=WAIT)
    expect(page.locator("h2", has_text="A small study")).to_be_visible(timeout=WAIT)
    plot = page.locator("[data-plot='study-small-accuracy']")
    plot.scroll_into_view_if_needed()
    expect(plot.locator(".scatterlayer .trace").first).to_be_attached(timeout=WAIT)
    before = visible_treatments(page, "study-small-accuracy")
    assert {"random + zero", "random + freeze_init"} < before

    # Hide a treatment ...
    button = plot.get_by_role("button", name="random + zero", exact=True)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    assert visible_treatments(page, "study-small-accuracy") == before - {"random + zero"}
    # ... and sort a table.
    table = page.locator("[data-table='study-small-summary']")
    table.locator("thead button", has_text="ccuracy, %").click()
    plot.locator(".canvas").evaluate("(canvas) => { canvas.marked = true; }")
    facts = page.locator("#study-small .facts")
    expect(facts).to_contain_text(f"{RUNS - 1} runs finished")

    site.restore_run()
    expect(page.locator("#studies")).to_contain_text(f"{RUNS} of {RUNS}", timeout=WAIT)
    expect(facts).to_contain_text(f"{RUNS} runs finished", timeout=WAIT)
    # The figure element is kept, the treatment stays hidden, the table stays sorted.
    assert plot.locator(".canvas").evaluate("(canvas) => canvas.marked")
    assert visible_treatments(page, "study-small-accuracy") == before - {"random + zero"}
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(table.locator("thead th[aria-sort=ascending]")).to_contain_text("ccuracy, %")
    row = table.locator("tbody tr", has_text="random + freeze_init").filter(
        has=page.locator("td:nth-child(2)", has_text="2")
    )
    expect(row.locator("td").nth(3)).to_have_text("2", timeout=WAIT)
    button.click()
    assert visible_treatments(page, "study-small-accuracy") == before
    site.check(log)


def test_running_command_that_is_killed(site: Site, log: LoggedPage) -> None:
    key = note_study(site.store, site.trained.plan)
    flight = [{"run": site.missing, "since": time.time() - 5}]
    failures = [{"run": site.trained.run_id(1), "status": "diverged", "message": "<img src=x onerror=alert(1)>"}]
    note_progress(site.store, key, in_flight=flight, failures=failures)
    note_curve(site.store, site.missing, points=2)
    page = log.page
    page.goto(site.url)
    command = page.locator(".going-on")
    expect(command).to_contain_text("small running", timeout=WAIT)
    expect(command).to_contain_text("13 of 18 trainings · 42 s left · 2 workers")
    expect(command).to_contain_text("random + freeze_init, level 2, seed 1")
    expect(command).to_contain_text("iteration 4 of 12")
    expect(command.locator("svg.sparkline polyline")).to_have_count(2)
    expect(command.locator(".failures")).to_contain_text("diverged: <img src=x onerror=alert(1)>")
    note_curve(site.store, site.missing, points=3)
    expect(command).to_contain_text("iteration 8 of 12", timeout=WAIT)
    note_progress(site.store, key, pid=2**22 + 7, in_flight=flight)
    expect(command).to_contain_text("interrupted", timeout=WAIT)
    expect(command.locator("svg.sparkline")).to_have_count(0)
    site.check(log)


def test_explorer_and_page_of_a_run(site: Site, log: LoggedPage) -> None:
    page = log.page
    page.goto(site.url + "explore")
    expect(page.locator("#chosen")).to_have_text("5 of 5 selected", timeout=WAIT)
    expect(page.locator("[data-plot=curves] .scatterlayer .trace").first).to_be_attached(timeout=WAIT)
    expect(page.locator("#count")).to_have_text(f"{RUNS - 1} runs of the selected treatments")
    page.locator("#filter").fill("random zero")
    page.locator("#treatments input").uncheck()
    expect(page.locator("#count")).to_have_text(f"{RUNS - 5} runs of the selected treatments")
    page.locator("#metric").select_option("early_stop_iteration")
    expect(page.locator("[data-plot=curves]")).to_contain_text("Iteration of early stopping")
    page.get_by_role("button", name="level").click()
    page.get_by_role("button", name="level").click()
    expect(page.locator("th[aria-sort=descending]")).to_have_text("level")
    expect(page.locator("#runs tbody tr").first.locator("td").nth(1)).to_have_text("2")
    address = page.url
    with page.expect_download() as download:
        page.locator("#csv").click()
    assert len(download.value.path().read_text().splitlines()) == RUNS - 5 + 1

    page.locator("#runs tbody a").first.click()
    expect(page.locator("h1")).to_contain_text("level 2")
    expect(page.locator("[data-plot=curve] .scatterlayer .trace").first).to_be_attached(timeout=WAIT)
    page.get_by_role("button", name="Validation accuracy").click()
    expect(page.locator("[data-plot=curve]")).to_contain_text("Validation accuracy (%)")
    widths = page.locator(".pictures img").evaluate_all("images => images.map((image) => image.naturalWidth)")
    assert widths == [8, 64, 8]
    page.locator(".chain a").first.click()
    expect(page.locator("h1")).to_contain_text("level 1")
    # The address restores the selection.
    page.goto(address)
    expect(page.locator("#chosen")).to_have_text("4 of 5 selected", timeout=WAIT)
    expect(page.locator("#metric")).to_have_value("early_stop_iteration")
    site.check(log)


def test_an_answer_that_comes_late_does_not_replace_a_later_one(site: Site, log: LoggedPage) -> None:
    page, late = log.page, list[Route]()
    page.goto(site.url + "explore")
    expect(page.locator("#count")).to_have_text(f"{RUNS - 1} runs of the selected treatments", timeout=WAIT)
    page.route(re.compile("runs.json.*sort=level&order=ascending"), lambda route: late.append(route))
    for _ in range(2):
        page.get_by_role("button", name="level").click()
    level = page.locator("#runs tbody tr").first.locator("td").nth(1)
    expect(level).to_have_text("2", timeout=WAIT)
    with page.expect_response(re.compile("order=ascending")) as answer:
        late[0].continue_()
    answer.value.finished()
    # Two frames: the page has handled the answer by then.
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    expect(level).to_have_text("2")
    site.check(log)


def test_hostile_names_are_shown_as_text(site: Site, log: LoggedPage) -> None:
    plan = train_hostile_study(site.store, SCRIPT, "</script><img src=x onerror=alert(1)>")
    key = note_study(site.store, plan)
    note_progress(site.store, key, message=SCRIPT, in_flight=[{"run": plan.treatment_runs[-1].run_id, "since": 0.0}])
    page = log.page
    page.on("dialog", lambda dialog: log.messages.append(dialog.message))
    page.goto(site.url)
    expect(page.locator("#studies")).to_contain_text(f"{SCRIPT} </script><img src=x onerror=alert(1)>", timeout=WAIT)
    expect(page.locator(".going-on .message")).to_have_text(SCRIPT)
    part = page.locator(".study", has=page.locator("h2", has_text="<img src=x"))
    expect(part).to_be_visible(timeout=WAIT)
    # The study's first figure is at the top of the page.
    plot = page.locator("[data-plot='study-script-alert-1-script-accuracy']")
    plot.scroll_into_view_if_needed()
    for name in NAMES[:6]:
        expect(plot.get_by_role("button", name=name, exact=True)).to_be_visible(timeout=WAIT)
    run = next(member for member in plan.treatment_runs if member.treatment == NAMES[2] and member.level == 1)
    page.goto(f"{site.url}run/{run.run_id}")
    expect(page.locator("main")).to_contain_text(f"In study {SCRIPT}: {NAMES[2]}")
    page.goto(f"{site.url}explore?network=%3Cscript%3E&treatment=%22%3E%3Cimg%20src=x%20onerror=alert(1)%3E")
    expect(page.locator("#chosen")).to_contain_text("selected", timeout=WAIT)
    site.check(log)


PAGES = {"": "[data-plot] .main-svg", "explore": "#runs tbody tr", "run": "h1", "run/0": "h1"}
"""Address -> element that shows that the page is complete. `run` is a run of the study."""


@pytest.mark.parametrize("address", PAGES)
def test_every_page_fits_the_window_and_has_no_serious_violation(
    unchanged: Site, browser: Browser, address: str
) -> None:
    """In the dark theme only colors differ."""
    path = f"run/{unchanged.trained.run_id(2)}" if address == "run" else address
    with open_page(browser) as log:
        page = log.page
        page.goto(unchanged.url + path)
        page.locator(PAGES[address]).first.wait_for(state="attached", timeout=WAIT)
        assert serious_violations(page) == []
        page.emulate_media(color_scheme="dark")
        assert serious_violations(page) == []
        for width in (1280, 1920, 390):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(500)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, width


def test_ctrl_c_ends_the_server_without_output(tmp_path: Path, log: LoggedPage) -> None:
    """With a server process, whose pages then say that it does not answer."""
    store = train_study(tmp_path).store
    command = [sys.executable, "-m", "supermask", "serve", "--store", str(store), "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = re.match(r"(http://127\.0\.0\.1:\d+/)  ", line)
            assert url, line
            log.page.goto(url[1])
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=15) == 0
            assert process.stdout.read() == ""
        finally:
            process.kill()
    expect(log.page.locator("#notice")).to_contain_text("The server does not answer", timeout=WAIT)
