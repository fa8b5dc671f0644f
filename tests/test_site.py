"""Documentation site: no network, every public name, every option, tutorials with their outputs, accessibility."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import cli_reference
from helpers.accessibility import serious_violations
from helpers.browsers import needs_browser, open_browser, open_page
from helpers.command_line import call
from helpers.harness import IS_FULL

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
PAGES = (
    "index",
    "concepts",
    "tutorials/own_study",
    "cli",
    "findings",
    *(("studies", "contributing") if IS_FULL else ()),
)
"""All but the longest of one kind: each kind of content is on one of these."""
TUTORIALS = re.findall(r"tutorials/(\w+)\.md", (ROOT / "mkdocs.yml").read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site that SUPERMASK_SITE names, as `make docs` left it, or one that is built now."""
    if "SUPERMASK_SITE" in os.environ:
        return Path(os.environ["SUPERMASK_SITE"])
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


def load_docs_module(name: str) -> Any:
    """Import a module of the docs folder, which is not on the path."""
    spec = spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_option_of_help_is_in_the_reference() -> None:
    page = cli_reference.page()
    for name in cli_reference.commands():
        status, out, _ = call(*name.split(), "--help")
        assert status == 0
        shown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", out.split("Options")[1])) - {"--help"}
        section = page.split(f"## supermask {name}")[1].partition("\n## ")[0]
        flags = {
            flag
            for cell in re.findall(r"^\| `(--[^`]+)`", section, flags=re.M)
            for flag in re.findall(r"--[\w-]+", cell)
        }
        assert flags == {flag for flag in shown if re.search(rf"^[^a-z]*{flag}\b", out, flags=re.M)}, name


@pytest.mark.slow
def test_the_reference_shows_no_python_names_and_no_default_that_is_none() -> None:
    page = cli_reference.page()
    assert "--import-criteria" in page
    assert not re.search(r"--\w+_\w+", page)
    assert "None" not in page


@pytest.mark.slow
def test_every_public_name_is_documented() -> None:
    hooks = load_docs_module("site_hooks")
    entries = re.findall(r"^::: supermask\.(\S+)", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert sorted(entries) == sorted({*hooks.public_names()} | {"api"})
    assert hooks.undocumented_names() == []


@pytest.mark.slow
def test_a_name_without_a_docstring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = load_docs_module("site_hooks")
    monkeypatch.setattr(hooks, "public_names", lambda: {"core.types.PrunableTensor"})
    assert hooks.undocumented_names() == [f"core.types.PrunableTensor.{name}" for name in ("name", "shape", "kind")]


def test_cells_of_a_tutorial_are_run_as_a_notebook_runs_them() -> None:
    cells = load_docs_module("tutorial_cells")
    parsed = cells.parse_cells(
        "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 2\nprint(x)\nx + 1\n\n# %%\nx = 3\n"
    )
    assert parsed == [("markdown", "# Title\n\nText."), ("code", "x = 2\nprint(x)\nx + 1"), ("code", "x = 3")]
    names: dict[str, Any] = {}
    assert cells.run_cell(parsed[1][1], names) == {"text": "2\n3\n"}
    assert cells.run_cell(parsed[2][1], names) == {"text": ""}
    assert names["x"] == 3
    assert cells.shorten("\n".join(map(str, range(100)))).splitlines()[7:10] == ["7", "... 85 lines ...", "93"]


def text_of(page: Path) -> str:
    """Return the text of a page without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@pytest.mark.slow
def test_tutorials_show_their_outputs(site: Path) -> None:
    assert len(TUTORIALS) >= 3
    cells = load_docs_module("tutorial_cells")
    for name in TUTORIALS:
        kinds = [kind for kind, _ in cells.parse_cells((ROOT / "examples" / f"{name}.py").read_text())]
        blocks = (site / "tutorials" / f"{name}.html").read_text().count('<div class="highlight">')
        assert blocks >= kinds.count("code") + 3, name
    first = (site / "tutorials" / "lottery_tickets.html").read_text()
    assert "mask-criteria: 111 runs: 111 finished." in first and first.count("my_criterion:relative") > 2
    texts = {name: text_of(site / "tutorials" / f"{name}.html") for name in ("own_data", "own_network")}
    assert texts["own_data"].count("finished. Store:") >= 3  # Long outputs are shortened.
    assert "finished. Store:" in texts["own_network"]
    assert "stem.weight                 54 of    54 kept" in texts["own_network"]
    for image in ("own_study-1", "lottery_tickets-1", "lottery_tickets-2"):
        assert (site / "tutorials" / f"{image}.png").stat().st_size > 10_000
    assert "0 pruned weights moved" in (site / "tutorials" / "ticket_elsewhere.html").read_text()


@pytest.mark.slow
def test_no_page_refers_to_a_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        tags = re.findall(r"<(?:script|link|img|iframe|source|video)\b[^>]*>", page.read_text())
        assert not [tag for tag in tags if re.search(r"(?:src|srcset|href)=[\"']?(?:https?:)?//", tag)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize(
    ("scheme", "pages"), [("light", PAGES), ("dark", PAGES if IS_FULL else ("tutorials/own_study",))]
)
def test_pages_open_from_disk_without_requests_and_serious_violations(
    site: Path, browser: Browser, scheme: Any, pages: Sequence[str]
) -> None:
    """In the dark theme only colors differ."""
    with open_page(browser, scheme=scheme) as log:
        page = log.page
        page.set_default_timeout(120_000)
        page.emulate_media(reduced_motion="reduce")
        for name in pages:
            page.set_viewport_size({"width": 1280, "height": 800})
            page.goto((site / f"{name}.html").as_uri())
            page.wait_for_timeout(300)
            assert log.messages == [], name
            assert serious_violations(page) == [], name
            for width in (1280, 1920):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert log.messages == []
    assert not [url for url in log.addresses if not url.startswith("file:")]


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_search_works_from_disk(site: Path, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto((site / "index.html").as_uri())
    page.locator("[data-md-component=search-query]").fill("certificate")
    page.locator(".md-search-result__link").first.wait_for(timeout=20_000)
    assert "certificate" in page.locator(".md-search-result__list").inner_text().lower()
    page.close()


@pytest.mark.slow
@pytest.mark.browser
@needs_browser
def test_no_page_is_wider_than_a_narrow_window(site: Path, browser: Browser) -> None:
    """Pages that fit this window fit wider ones, but for what is drawn at other widths only."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_default_timeout(120_000)
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
    page.close()
