"""The report in a browser, opened from disk: no request, no console message."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from helpers.accessibility import serious_violations
from helpers.browsers import LoggedPage, needs_browser, open_browser, open_page
from helpers.command_line import call
from helpers.hostile_names import NAMES, SCRIPT, train_hostile_study
from helpers.mask_studies import TABLE_ONE, done
from helpers.small_studies import small_plan, train_plan
from helpers.stored_study import RUNS, TrainedStudy, train_study

from supermask.api import reports
from supermask.reporting.figures.labels import escape_invisible
from supermask.reporting.figures.table_one import COLUMNS, PAPER_VALUES
from supermask.reporting.html import build_report, render_report
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study import load_study
from supermask.study.plan import make_plan

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, needs_browser]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(trained: TrainedStudy) -> Path:
    """The report of the small study."""
    return reports.report([str(trained.study)], out=trained.store.parent / "r.html", store=trained.store)


@contextmanager
def visit(browser: Browser, file: Path, width: int, scheme: Literal["light", "dark"]) -> Iterator[Page]:
    """Open the page; at the end check that it logged nothing and requested nothing but itself."""
    with open_page(browser, width, scheme, height=800) as log:
        log.page.goto(file.as_uri())
        yield log.page
    assert (log.messages, log.addresses) == ([], [file.as_uri()])


@pytest.fixture(scope="module")
def loaded(browser: Browser, file: Path) -> Iterator[LoggedPage]:
    """The report at 1280 pixels in the light theme, loaded once."""
    with open_page(browser, height=800) as log:
        log.page.goto(file.as_uri())
        yield log


@pytest.fixture
def opened(loaded: LoggedPage, file: Path) -> Iterator[Page]:
    """The loaded report, scrolled to its top. Each test leaves other parts of it as they were."""
    loaded.page.evaluate("scrollTo(0, 0)")
    yield loaded.page
    assert (loaded.messages, loaded.addresses) == ([], [file.as_uri()])


def scroll_to(page: Page, selector: str) -> Any:
    found = page.locator(selector).first
    found.scroll_into_view_if_needed()
    return found


SMALL = """() => [...document.querySelectorAll('body *')].filter(each => each.getClientRects().length
    && [...each.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
    && parseFloat(getComputedStyle(each).fontSize) < 12).map(each => each.tagName + ': ' + each.textContent)"""


def assert_fits(page: Page) -> None:
    """Check a page at its current width, with everything unfolded and drawn."""
    page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
    page.evaluate("drawEmbedded()")
    assert page.locator("[data-plot] .main-svg").count() >= page.locator("[data-plot]").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.evaluate(SMALL) == []


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1920, "light")])
def test_the_page_fits_every_window_with_readable_text(
    browser: Browser, file: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    with visit(browser, file, width, scheme) as page:
        assert_fits(page)


def test_a_hidden_treatment_stays_hidden_in_another_view(opened: Page) -> None:
    scroll_to(opened, "#study-small-accuracy .plot")
    lines = "#study-small-accuracy .scatterlayer .trace .lines path"
    opened.wait_for_selector(lines)
    name = "random + zero"
    visible = f"""() => document.querySelector('#study-small-accuracy .canvas').data
        .filter(each => each.legendgroup === {name!r}).map(each => each.visible)"""
    assert set(opened.evaluate(visible)) == {True}
    button = opened.locator("#study-small-accuracy .legend button", has_text=name)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert set(opened.evaluate(visible)) == {False}
    view = opened.locator("#study-small-accuracy .views button", has_text="Difference")
    view.click()
    assert view.get_attribute("aria-pressed") == "true"
    assert set(opened.evaluate(visible)) == {False}
    opened.locator("#study-small-accuracy .legend button", has_text="All").click()
    assert set(opened.evaluate(visible)) == {True}
    opened.locator("#study-small-accuracy .views button").first.click()


def test_hover_text_describes_the_point(opened: Page) -> None:
    scroll_to(opened, "#study-small-overview .plot")
    opened.wait_for_selector("#study-small-overview .heatmaplayer image")
    box = opened.locator("#study-small-overview .nsewdrag").bounding_box()
    assert box
    opened.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.9 * box["height"])
    said = opened.locator("#study-small-overview .hoverlayer").text_content()
    assert said is not None and "random + freeze_init" in said and "n = 2" in said and "against large_final" in said


def test_tables_sort_by_click_and_by_keyboard(opened: Page) -> None:
    table = scroll_to(opened, "[data-table=study-small-summary]")
    head = table.locator("th", has_text="Accuracy")

    def column() -> list[float]:
        return [float(text.split()[0]) for text in table.locator("tbody tr td:nth-child(5)").all_inner_texts()]

    as_made = column()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(as_made)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column() == sorted(as_made, reverse=True)
    head.locator("button").press("Enter")
    assert head.get_attribute("aria-sort") == "none"
    assert column() == as_made


def test_the_table_of_runs_opens_and_downloads_as_the_printed_table(opened: Page, trained: TrainedStudy) -> None:
    table = opened.locator("[data-table=study-small-runs]")
    assert table.locator("tbody tr").count() == 0
    opened.locator("details.lazy summary").click()
    table.locator("tbody tr").first.wait_for()
    assert table.locator("tbody tr").count() == RUNS
    with opened.expect_download() as download:
        table.locator(".csv").click()
    assert download.value.suggested_filename == "small-runs.csv"
    with Path(download.value.path()).open(newline="") as file:
        found = list(csv.reader(file))
    printed = list(csv.reader(call("table", *trained.args)[1].splitlines()))
    assert found[0] == printed[0]
    assert [list(map(number, row)) for row in found] == [list(map(number, row)) for row in printed]


def number(field: str) -> float | str:
    """Parse a field if it is a number, because JavaScript writes 0.0 as 0."""
    try:
        return float(field)
    except ValueError:
        return field


def test_the_theme_button_switches_to_dark_and_back(opened: Page) -> None:
    def shade() -> str:
        return str(opened.evaluate("getComputedStyle(document.body).backgroundColor"))

    before = shade()
    opened.locator("#theme").click()
    assert shade() != before
    opened.locator("#theme").click()
    assert shade() == before


def test_the_papers_values_are_bold_where_they_are_confirmed(browser: Browser, tmp_path: Path) -> None:
    found = done(tmp_path / "store", *TABLE_ONE, levels=1)
    rows, _ = plan_rows(found.plan, found.open_store())
    rows = [{**row, "network": "fc-300-100", "dataset": "mnist"} for row in rows]
    file = tmp_path / "r.html"
    file.write_text(render_report(build_report([(found.plan, rows, [])], [], found.open_store(), "")), encoding="utf-8")
    with visit(browser, file, 1280, "light") as opened:
        lines = scroll_to(opened, "[data-table$=table-one]").locator("tbody tr")
        assert lines.count() == len(COLUMNS)
        for line, wanted in zip(lines.all(), PAPER_VALUES["fc-300-100", "mnist"].values(), strict=True):
            cells = line.locator("td").all_inner_texts()
            assert cells[3:5] == [wanted.shown, "yes" if wanted.confirmed else "no"]
            assert line.locator("bdi.bold").count() == wanted.confirmed


def test_the_ranking_has_one_view_per_level(opened: Page) -> None:
    scroll_to(opened, "#study-small-ranking .plot")
    views = opened.locator("#study-small-ranking .views button")
    views.first.wait_for()
    assert views.first.inner_text() == "All levels" and views.count() == 3
    views.last.press("Enter")
    assert views.last.get_attribute("aria-pressed") == "true"
    shown = opened.evaluate("document.querySelector('#study-small-ranking .canvas').layout.xaxis.title.text")
    assert shown == f"Mean rank at {views.last.inner_text()} (1 is best)"


def test_hostile_names_are_displayed_literally(browser: Browser, tmp_path: Path) -> None:
    plan = train_hostile_study(tmp_path / "store", SCRIPT, SCRIPT)
    found = (plan, *plan_rows(plan, Store(tmp_path / "store")))
    file = tmp_path / "r.html"
    file.write_text(render_report(build_report([found], [], Store(tmp_path / "store"), SCRIPT)), encoding="utf-8")
    with visit(browser, file, 1280, "light") as opened:
        opened.evaluate("drawEmbedded()")
        assert opened.title() == SCRIPT
        legend = opened.locator("[data-plot$=accuracy] .legend bdi").all_text_contents()
        assert legend == [*NAMES, "dense network"]
        ticks = opened.locator("[data-plot$=overview] .ytick text").all_text_contents()
        assert ticks[:6] == NAMES[:6]
        cells = opened.locator("[data-table$=summary] tbody td:first-child").all_text_contents()
        assert set(cells) == {*NAMES, "dense"}


def test_shortened_and_escaped_names_stay_distinct(opened: Page) -> None:
    """Narrow windows shorten axis labels in the middle; invisible characters are written as escapes."""
    names = [f"{'x' * 20}{letter}{'y' * 20}" for letter in "abc"] + ["a &lt;b&gt;", "&amp;".join("abcdefghijkl")]
    assert opened.evaluate("names => shortened(names)", names) == [
        "xxxxxxxxx…yyyyyyyy",
        "xxxxxxx…yyyyyy (2)",
        "xxxxxxx…yyyyyy (3)",
        "a &lt;b&gt;",
        "a&amp;b&amp;c&amp;d&amp;e…&amp;i&amp;j&amp;k&amp;l",
    ]
    for text in ("a\u200b", "\u202eabc", "x\u00a0y", "\U000e0001", "plain \u05d0 \u7814"):
        assert opened.evaluate("text => visibleText(text)", text) == escape_invisible(text)


def test_no_two_labels_of_a_narrow_page_are_equal(browser: Browser, tmp_path: Path) -> None:
    names = [f"lab {'x' * 60}{letter}{'y' * 60}" for letter in "ab"] + ["lab a  b", "lab a b"]
    criteria = ("large_final", "random", "small_final", "movement")
    treatments = [{"name": name, "criterion": each} for name, each in zip(names, criteria, strict=True)]
    plan = small_plan(*treatments, network="fc-8", levels=1, seeds=2)
    train_plan(plan, tmp_path / "store")
    found = (plan, *plan_rows(plan, Store(tmp_path / "store")))
    file = tmp_path / "r.html"
    file.write_text(render_report(build_report([found], [], Store(tmp_path / "store"), "")), encoding="utf-8")
    with visit(browser, file, 390, "light") as opened:
        opened.evaluate("drawEmbedded()")
        ticks = opened.locator("[data-plot$=overview] .ytick text").all_text_contents()
        assert len(set(ticks)) == len(ticks) == len(names)
        for selector in ("[data-plot$=accuracy] .legend bdi", "[data-table$=summary] tbody td:first-child bdi"):
            shown = opened.locator(selector).all_inner_texts()
            assert {text for text in shown if text.startswith("lab")} == set(names)


MANY = """
title: Nine criteria
network: fc-8
seeds: 3
train: {epochs: 0.6, evaluate_every: 4}
prune: {levels: 1, rates: {hidden: 0.5, output: 0.3}}
treatments:
  - criterion: [random, small_final, large_init, small_init, movement, large_init_large_final, large_final, snip, grad]
reference: {criterion: large_final}
claims:
  - id: small
    statement: Small weights are worse.
    clauses: [{treatment: {criterion: small_final}, below: {criterion: large_final}}]
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study with nine treatments."""
    folder = tmp_path_factory.mktemp("many")
    study = folder / "many.yaml"
    study.write_text(MANY)
    train_plan(make_plan(load_study(study)), folder / "store")
    return reports.report([str(study)], out=folder / "r.html", store=folder / "store")


@pytest.fixture(scope="module", params=["light", "dark"])
def many_page(browser: Browser, many: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """That report at 1280 pixels, loaded once per theme."""
    with visit(browser, many, 1280, request.param) as page:
        yield page


@pytest.fixture(scope="module")
def drawn(many_page: Page) -> Page:
    """The same page, with everything unfolded and drawn."""
    many_page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
    many_page.evaluate("drawEmbedded()")
    return many_page


def shown_lines(page: Page) -> list[str]:
    script = """() => document.querySelector('#study-many-accuracy .canvas').data
        .filter(each => each.visible && each.name && !(each.meta && each.meta.ink)).map(each => each.name)"""
    names: list[str] = page.evaluate(script)
    return names


def test_printing_draws_every_figure(many_page: Page) -> None:
    drawn, plots = many_page.locator("[data-plot] .canvas:has(.main-svg)"), many_page.locator("[data-plot]")
    assert drawn.count() < plots.count()
    many_page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert drawn.count() == plots.count()
    many_page.evaluate("dispatchEvent(new Event('afterprint'))")


def test_six_treatments_are_drawn_at_first_and_the_rest_with_one_click(many_page: Page) -> None:
    scroll_to(many_page, "#study-many-accuracy .plot")
    many_page.wait_for_selector("#study-many-accuracy .scatterlayer .trace")
    first = shown_lines(many_page)
    assert len(first) == 6 and "large_final" in first
    button = many_page.locator("#study-many-accuracy .legend .all", has_text="All (3 more)")
    button.focus()
    many_page.keyboard.press("Enter")
    assert len(shown_lines(many_page)) == 9
    assert many_page.evaluate("document.activeElement.textContent") == "All"


def test_the_report_fits_1280_pixels(drawn: Page) -> None:
    assert_fits(drawn)


CONTRASTS = """() => [...document.querySelectorAll('.canvas')].flatMap(canvas => canvas.data
    .filter(trace => trace.line && trace.line.color && trace.mode && trace.mode.includes('lines') && !trace.opacity)
    .map(trace => contrast(trace.line.color.match(/[\\d.]+/g).map(Number).slice(0, 3), pageLook().paper)))"""


def test_lines_have_a_contrast_of_three_to_one(drawn: Page) -> None:
    contrasts = drawn.evaluate(CONTRASTS)
    assert len(contrasts) > 9
    assert min(contrasts) >= 3


def test_the_report_has_no_serious_violation(drawn: Page) -> None:
    assert serious_violations(drawn) == []


def test_every_drawing_is_an_image_with_its_takeaway(drawn: Page) -> None:
    labels = drawn.locator(".canvas svg[role=img]").evaluate_all("all => all.map(each => each.ariaLabel)")
    assert len(labels) == drawn.locator("[data-plot]").count() > 2
    assert any(re.match(r"Test accuracy\. With \d+.*% of the weights, ", label) for label in labels)


def test_outcomes_are_first_and_no_table_is_cut_off_at_1280_pixels(drawn: Page) -> None:
    table = drawn.locator(".clause table").first
    assert table.locator("thead th").first.inner_text() == "Outcome"
    drawn.locator("[data-table] tbody tr").first.wait_for()
    wide = drawn.locator(".scroll").evaluate_all(
        "all => all.filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.ariaLabel)"
    )
    assert wide == []
    folded = table.locator("thead th.rare").first
    assert not folded.is_visible()
    button = drawn.locator(".clause .unfold").first
    button.focus()
    drawn.keyboard.press("Enter")
    assert folded.is_visible()
    assert button.get_attribute("aria-pressed") == "true"
