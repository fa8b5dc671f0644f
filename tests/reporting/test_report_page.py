"""Page of the report: structure, provenance, hostile names, content security policy, reproducible bytes."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.hostile_names import NAMES, SCRIPT, train_hostile_study
from helpers.report_page import Element, blocks, read, rows_of
from helpers.small_studies import small_plan, train_plan
from helpers.stored_study import TrainedStudy, train_study

from supermask.analysis.claims import ClaimFinding, ClauseFinding, Effect, LevelFinding, Verdict
from supermask.api import runs as api_runs
from supermask.core.errors import sanitize
from supermask.core.text import Row
from supermask.reporting.html import (
    Report,
    build_report,
    plot_data,
    render_report,
    sections,
    table_data,
    table_of_contents,
)
from supermask.reporting.html.page import SCRIPTS, escape_inline_script, plotly_script, read_asset
from supermask.reporting.html.paper import PAPER, PAPER_DEVIATIONS, SUPERMASK
from supermask.reporting.html.provenance import collect_provenance
from supermask.reporting.html.study import build_study_section
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study import study_from_dict
from supermask.study.plan import make_plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def report(trained: TrainedStudy) -> Report:
    return make_report(trained)


def make_report(trained: TrainedStudy, *overrides: str, claims: list[ClaimFinding] | None = None) -> Report:
    found = api_runs.study_rows(str(trained.study), overrides, trained.store)
    return build_report([found], claims or [], Store(trained.store), "supermask report small.yaml")


def level_finding(**changes: Any) -> LevelFinding:
    usual: dict[str, Any] = {
        "level": 1,
        "remaining": 50.0,
        "n": 2,
        "test": "paired t",
        "mean": 90.0,
        "reference_mean": 91.5,
        "difference": -1.5,
        "interval95": (-2.0, -1.0),
        "hedges_g": -1.25,
        "p": 0.0004,
        "p_holm": 1.0,
        "p_opposite_holm": 0.0008,
        "p_sign_flip": 0.5,
        "outcome": "opposite",
    }
    return LevelFinding(**(usual | changes))


def claim(verdict: Verdict = "supported", study: str = "small", figure: str = "accuracy", **more: Any) -> ClaimFinding:
    levels = (level_finding(), level_finding(level=2, p=None, p_holm=None, outcome="untested", note="no variance"))
    clause = ClauseFinding(
        "random + zero",
        "at_least",
        "large_final + zero",
        0.5,
        verdict,
        "It comes down to this.",
        levels,
        ("3 runs",),
        9,
        effect=Effect(2, "paired t", 90.0, 91.5, -1.5, (-2.0, -1.0), 0.5, 0.7, 0.0009, "opposite", error_ratio=1.18),
    )
    usual: dict[str, Any] = {"id": "c", "number": 3, "statement": "A statement.", "source": "Zhou et al. 2019"}
    return ClaimFinding(
        study=study,
        figure=figure,
        verdict=verdict,
        sentence="So it is.",
        clauses=(clause,),
        **(usual | more),
    )


# --- content ---


def test_the_order_and_the_headings(report: Report) -> None:
    tree = read(render_report(report))
    assert list(sections(report)) == ["summary", "claims", "study-small", "provenance"]
    assert [each.attributes["id"] for each in tree.all("section")] == list(sections(report))
    assert [each.text for each in tree.all("h1")] == ["A small study"]
    assert [each.text for each in tree.all("h2")] == ["Claims", "A small study", "Provenance"]
    linked = [each.attributes["href"] for each in read(table_of_contents(report)).all("a")]
    assert linked == ["#summary", "#claims", "#study-small", "#provenance"]
    ids = [each.attributes["id"] for each in elements(tree) if "id" in each.attributes]
    assert len(ids) == len(set(ids))


def elements(tree: Element) -> list[Element]:
    return [each for child in tree.inside for each in (child, *elements(child))]


def test_verdicts_are_words_and_numbers_and_not_only_colors(trained: TrainedStudy) -> None:
    report = make_report(
        trained, claims=[claim("supported"), claim("contradicted", number=None), claim("not supported")]
    )
    tree = read(render_report(report))
    (summary, claims) = tree.all("section")[:2]
    assert summary.all("p")[0].text.startswith(
        "Of 3 claims, 1 supported, 1 not supported and 1 contradicted. 1 study of fc-8 on digits; n = 2 seeds; 18 runs."
    )
    assert [each.text for each in summary.all("li")] == [
        "✓ 1 supported",
        "○ 1 not supported",
        "✕ 1 contradicted",
        "? 0 not enough data",
    ]
    articles = claims.all("article")
    assert [each.all("h3")[0].text for each in articles] == [
        "✓ supported 3. A statement.",
        "✕ contradicted A statement.",
        "○ not supported 3. A statement.",
    ]
    first = articles[0]
    assert first.all("a")[0].attributes["href"] == "#study-small-accuracy"
    assert "random + zero at least large_final + zero (margin 0.5 points)" in first.all("h4")[0].text
    cells = [[cell.text for cell in elements(row) if cell.tag in ("th", "td")] for row in first.all("tr")[1:]]
    assert cells[0][:7] == ["✕ opposite", "50.00", "2", "90.00", "91.50", "−1.50", "[−2.00, −1.00]"]
    assert cells[0][7:] == ["−1.25", "< 0.001", "< 0.001", "0.50"]
    assert cells[1][0] == "? untested: no variance"
    assert "−1.50 points [−2.00, −1.00], n = 2; error rate × 1.18; p 0.70, p, flips –" in first.text
    assert "Missing: 3 runs." in first.text and "9 seeds would be needed" in first.text


@pytest.mark.parametrize(
    ("study", "figure", "href"),
    [("small", "", "#study-small"), ("small", "heuristic", "#study-small"), ("other", "accuracy", None)],
)
def test_a_claim_links_to_its_figure_or_study(trained: TrainedStudy, study: str, figure: str, href: str | None) -> None:
    report = make_report(trained, claims=[claim(study=study, figure=figure)])
    (article,) = read(sections(report)["claims"]).all("article")
    assert [each.attributes["href"] for each in article.all("a")] == ([] if href is None else [href])


def test_a_section_names_the_networks_of_all_treatments() -> None:
    treatments = [{"network": ["conv2", "fc-8"]}]
    plan = make_plan(study_from_dict({"treatments": treatments, "prune": {"levels": 1}, "seeds": 1}))
    assert build_study_section("study-1", plan, [], None).subject == "conv2, fc-8 on digits"


def test_sections_have_the_figures_and_tables_of_the_data(report: Report) -> None:
    tree = read("".join(sections(report).values()))
    assert {each.attributes["data-plot"] for each in elements(tree) if "data-plot" in each.attributes} == set(
        plot_data(report)
    )
    tables = [each for each in elements(tree) if "data-table" in each.attributes]
    assert {each.attributes["data-table"] for each in tables} == set(table_data(report))
    for each in tables:
        data = table_data(report)[each.attributes["data-table"]]
        heads = each.all("thead")[0].all("th")
        assert [head.text for head in heads] == [shown["title"] for shown in data["shown"]]
        assert all(head.attributes["aria-sort"] == "none" and len(head.all("button")) == 1 for head in heads)
        wanted = {name for shown in data["shown"] for name in (shown["column"], *(shown["interval"] or ()))}
        assert wanted <= set(data["columns"])
        assert each.all("caption")[0].text == each.all("h3")[0].text


def test_provenance(trained: TrainedStudy, report: Report) -> None:
    text = read(sections(report)["provenance"]).text
    seconds = sum(Store(trained.store).facts(run)["seconds"] for run in trained.plan.runs)
    assert report.provenance.costs[0].minutes == pytest.approx(seconds / 60)
    assert "supermask report small.yaml" in text
    assert "18 certificates checked: 18 held, 0 failed" in text
    assert "None: no run diverged, none is to do, no entry of the store is damaged." in text
    for fact in Store(trained.store).facts(trained.run_id(1))["environment"].values():
        assert isinstance(fact, dict) or str(fact) in text
    assert all(each.supermask in text for each in PAPER_DEVIATIONS)
    assert PAPER.title in text and SUPERMASK.title in text


def test_runs_of_shared_stacks_are_not_called_bit_identical(trained: TrainedStudy, report: Report) -> None:
    shared = replace(report.provenance.environments[0], facts=(("engine", "stacked"), ("stack", "shared")))
    stacked = replace(report, provenance=replace(report.provenance, environments=(shared,)))
    assert "except runs with a shared stack" in read(sections(stacked)["provenance"]).text
    assert "except runs with a shared stack" not in read(sections(report)["provenance"]).text


def test_the_settings_are_a_study_file(report: Report) -> None:
    (part,) = report.studies
    assert study_from_dict(blocks(read(render_report(report)))["study-small-file"], name="small").as_data() == part.file
    assert ("train.evaluate_every", "4") in part.settings


def test_a_run_that_two_studies_share_counts_once(trained: TrainedStudy) -> None:
    found = api_runs.study_rows(str(trained.study), (), trained.store)
    once, twice = (build_report([found] * n, [], Store(trained.store), "") for n in (1, 2))
    assert once.provenance == twice.provenance
    assert [part.id for part in twice.studies] == ["study-small", "study-small-2"]


# --- texts that are also in the docs ---


def test_paper_deviations_equal_those_of_the_docs() -> None:
    text = (ROOT / "docs" / "paper.md").read_text()
    section = text.split("## Where this project differs, on purpose")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    plain = [tuple(" ".join(cell.replace("`", "").split()) for cell in row) for row in rows]
    assert plain == [tuple(each) for each in PAPER_DEVIATIONS]


def test_citations_equal_those_of_citation_cff() -> None:
    from ruamel.yaml import YAML

    file = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert (SUPERMASK.title, list(SUPERMASK.authors)) == (file["title"], [each["name"] for each in file["authors"]])
    assert SUPERMASK.venue == f"Version {file['version']}"
    assert str(SUPERMASK.year) == str(file["date-released"])[:4]
    (paper,) = file["references"]
    names = [f"{each['family-names']}, {each['given-names']}" for each in paper["authors"]]
    assert (PAPER.title, list(PAPER.authors), PAPER.year) == (paper["title"], names, paper["year"])
    assert (PAPER.venue, PAPER.url) == (paper["collection-title"], paper["url"])
    for each in (PAPER, SUPERMASK):
        assert each.title in each.bibtex and str(each.year) in each.bibtex


# --- missing runs ---


def test_an_unfinished_study_lists_its_runs_to_do(trained: TrainedStudy) -> None:
    report = make_report(trained, "scale=more")
    assert report.provenance.to_do == (("small", 8),)
    text = read(render_report(report)).text
    assert "18 runs finished, 8 to do" in text
    assert "8 runs to do: small 8." in text
    assert "8 still to do" in report.studies[0].plots[0].caption


def test_a_study_without_a_finished_run_has_a_note(tmp_path: Path) -> None:
    plan = small_plan()
    rows, _ = plan_rows(plan, Store(tmp_path / "none"))
    report = build_report([(plan, rows, [])], [], Store(tmp_path / "none"), "")
    tree = read(render_report(report))
    assert "No run of this study has finished yet" in tree.text
    assert plot_data(report) == {} and list(table_data(report)) == ["study-study-runs"]
    assert "No run has ended." in tree.text


def test_one_seed_has_no_test_and_no_band(tmp_path: Path) -> None:
    plan = small_plan({"criterion": "large_final"}, {"criterion": "random"})
    train_plan(plan, tmp_path)
    report = build_report([(plan, plan_rows(plan, Store(tmp_path))[0], [])], [], Store(tmp_path), "")
    assert "n = 1 seed, so no test and no interval" in read(render_report(report)).text
    figure = plot_data(report)["study-study-accuracy"]
    assert not [trace for trace in figure["data"] if trace.get("fill")]


def test_only_dense_runs(trained: TrainedStudy) -> None:
    plan, rows, _ = api_runs.study_rows(str(trained.study), (), trained.store)
    undone = [row if row["level"] == 0 else not_finished(row, "to_do") for row in rows]
    report = build_report([(plan, undone, [])], [], Store(trained.store), "")
    assert [plot.name for plot in report.studies[0].plots] == ["accuracy"]
    assert "the length of the training and not a speed" in report.studies[0].no_early_stop
    assert render_report(report)


def not_finished(row: Row, status: str) -> Row:
    gone = {name: None for name in row if name.startswith(("early_stop", "final", "initial"))}
    return {**row, **gone, "status": status}


def test_diverged_and_refused_runs_are_counted_and_listed(trained: TrainedStudy) -> None:
    plan, rows, _ = api_runs.study_rows(str(trained.study), (), trained.store)
    bad = {"random + zero": "diverged", "random + freeze_init": "certificate_failed"}
    changed = [
        not_finished(row, bad[str(row["treatment"])]) | {"diverged_at": 7}
        if row["treatment"] in bad and row["level"] == 2 and row["seed"] == 1
        else row
        for row in rows
    ]
    changed = [{**r, "certificate": "failed"} if r["status"] == "certificate_failed" else r for r in changed]
    damaged = ["abc in the store is damaged: run.json is missing."]
    report = build_report([(plan, changed, damaged)], [], Store(trained.store), "")
    (diverged,), (failed,) = report.provenance.diverged, report.provenance.failed
    assert (diverged.treatment, diverged.level, diverged.seed) == ("random + zero", 2, 1)
    assert failed.treatment == "random + freeze_init"
    text = read(sections(report)["provenance"]).text
    assert "17 held, 1 failed" in text and "1 run diverged." in text and "loss not finite at iteration 7" in text
    assert damaged[0] in text


def test_descendants_of_a_refused_run_are_counted_apart(trained: TrainedStudy) -> None:
    plan, rows, _ = api_runs.study_rows(str(trained.study), (), trained.store)
    status = {1: "certificate_failed", 2: "ancestor_certificate_failed"}
    changed = [
        not_finished(row, status[int(row["level"] or 0)]) | {"certificate": "failed" if row["level"] == 1 else None}
        if (row["treatment"], row["seed"]) == ("random + zero", 1)
        else row
        for row in rows
    ]
    report = build_report([(plan, changed, [])], [], Store(trained.store), "")
    assert (report.provenance.blocked, report.provenance.blocked_by_failed) == (0, 1)
    text = read(sections(report)["provenance"]).text
    assert "1 run could not start because the certificate of an ancestor does not hold." in text
    assert "0 runs diverged." in text and "None: no run diverged" not in text
    caption = report.studies[0].plots[0].caption
    assert "1 not started because an ancestor failed the certificate (random + zero 1)" in caption


def test_failed_checks_are_listed(trained: TrainedStudy) -> None:
    _, rows, _ = api_runs.study_rows(str(trained.study), (), trained.store)

    class Failing(Store):
        def facts(self, run_id: str) -> dict[str, Any]:
            facts = super().facts(run_id)
            return {**facts, "certificate": {"held": False, "checks": {"kept_count": ["fc1"], "biases_train": []}}}

    changed = [{**row, "certificate": "failed"} for row in rows]
    assert {each.why for each in collect_provenance([changed], [], Failing(trained.store), "").failed} == {"kept_count"}


# --- hostile names ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [SCRIPT, "../x", "y" * 10_000, "\u202e\u05d0\x00\udcff"], ids=["script", "up", "10 kB", "rtl"]
)
def test_hostile_names_do_not_change_the_page(tmp_path: Path, trained: TrainedStudy, name: str) -> None:
    title = "</title><script>alert(2)</script>"[:200]
    plan = train_hostile_study(tmp_path, name, title)
    rows, _ = plan_rows(plan, Store(tmp_path))
    claims = [claim("supported", study=plan.study.name, statement=SCRIPT, source=SCRIPT, id=SCRIPT)]
    report = build_report([(plan, rows, [f"{name} is damaged"])], claims, Store(tmp_path), f"supermask report {name}")
    text = render_report(report)
    tree = read(text)
    scripts = [each for each in tree.all("script") if each.attributes.get("type") != "application/json"]
    assert len(scripts) == 2 and not any("src" in each.attributes for each in scripts)
    assert not [key for each in elements(tree) for key in each.attributes if key.startswith("on")]
    harmless = read(render_report(make_report(trained, "scale=more", claims=[claim()])))
    assert {each.tag for each in elements(tree)} <= {each.tag for each in elements(harmless)}
    assert tree.all("h1")[0].text == tree.all("title")[0].text == title
    data = blocks(tree)
    (runs,) = (rows_of(table) for key, table in data.items() if key.endswith("-runs"))
    assert {run["treatment"] for run in runs} == {"dense", *NAMES}
    assert {run["study"] for run in runs} == {sanitize(name)}
    (accuracy,) = (figure for key, figure in data.items() if key.endswith("-accuracy"))
    assert {trace["name"] for trace in accuracy["data"] if "name" in trace} == {*NAMES, "dense network"}
    assert any(each.text == sanitize(name) for each in tree.all("bdi")) or not sanitize(name).strip()
    assert re.fullmatch(r"study-[a-z0-9-]{1,60}", report.studies[0].id)
    for figure in plot_data(report).values():
        for said in hover_texts(figure):
            assert not re.search(r"<(?!/?b>|br>)|[$]", said), said


def hover_texts(figure: dict[str, Any]) -> list[str]:
    """Texts that Plotly displays: hovers, ticks, titles."""
    found: list[str] = []
    for view in (figure, *figure["views"]):
        for trace in view["data"]:
            texts = trace.get("hovertext", [])
            found += [each for row in texts for each in (row if isinstance(row, list) else [row])]
        for axis in (view["layout"]["xaxis"], view["layout"]["yaxis"]):
            found += [axis.get("title", {}).get("text", ""), *axis.get("ticktext", [])]
    return found


# --- no requests ---


def test_the_page_makes_no_request(trained: TrainedStudy) -> None:
    tree = read(render_report(make_report(trained, claims=[claim()])))
    addresses = [
        each.attributes[key] for each in elements(tree) for key in ("src", "href", "action") if key in each.attributes
    ]
    outside = [address for address in addresses if not address.startswith(("#", "data:,"))]
    assert outside == [PAPER.url]
    assert all(each.tag == "a" for each in elements(tree) if each.attributes.get("href") == PAPER.url)
    assert "url(" not in read_asset("report.css") and "@import" not in read_asset("report.css")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", "".join(read_asset(name) for name in SCRIPTS))


def test_the_policy_allows_only_its_own_scripts(report: Report) -> None:
    tree = read(render_report(report, extra_script="console.log('</script>')"))
    (policy,) = (e.attributes["content"] for e in tree.all("meta") if e.attributes.get("http-equiv"))
    scripts = ["".join(e.parts) for e in tree.all("script") if e.attributes.get("type") != "application/json"]
    assert len(scripts) == 3
    allowed = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert set(rules.pop("script-src").split()) == allowed
    assert rules == {"default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data: blob:"}


def test_with_an_address_of_assets_nothing_is_inline(report: Report) -> None:
    tree = read(render_report(report, extra_head='<meta name="x" content="y">', assets="/static/"))
    assert [each.attributes for each in tree.all("script")] == [
        {"src": "/static/plotly.min.js"},
        {"src": "/static/report.js"},
    ]
    assert not tree.all("style")
    assert {"name": "x", "content": "y"} in [each.attributes for each in tree.all("meta")]


def test_scripts_cannot_end_their_element() -> None:
    assert "</script" not in escape_inline_script("a = '</script>'; b = '<!--'") and "<!--" not in escape_inline_script(
        "'<!--'"
    )
    assert len(plotly_script()) > 3_000_000


def test_the_same_store_gives_byte_identical_pages_without_a_date(trained: TrainedStudy, report: Report) -> None:
    assert render_report(report) == render_report(make_report(trained))
    text = "".join(sections(report).values())
    assert not re.search(r"20\d\d-\d\d-\d\d", text)
    assert len(render_report(report)) < 6_000_000


def test_font_sizes_are_at_least_twelve_pixels() -> None:
    style = read_asset("report.css")
    for size in re.findall(r"font-size: ([0-9.]+)rem", style):
        assert float(size) * 16 >= 12
    assert not re.findall(r"font-size: [0-9.]+px", style)
