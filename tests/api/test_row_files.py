"""Conclusions from tables of runs are those of the store; files that are no tables are refused with one message."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import duckdb
import numpy as np
import pytest
from helpers.command_line import call
from helpers.report_page import read
from helpers.small_studies import train_plan
from helpers.stored_study import TEXT, TrainedStudy, train_study, write_study
from scipy import stats as scipy_stats

import supermask as sm
from supermask.api import reports
from supermask.api.row_files import make_table_finder, read_studies_from_tables
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.reporting.html.study import NO_ITERATIONS
from supermask.store import Store
from supermask.store.row_files import REQUIRED, read_row_files
from supermask.store.rows import plan_rows
from supermask.store.tables import COLUMNS, to_parquet
from supermask.study import load_study
from supermask.study.plan import make_plan

PUBLISHED = Path(__file__).parents[2] / "results" / "mask-criteria-paper.parquet"
CLAIM = """
claims:
  - id: mine
    statement: "It is so."
    clauses:
      - {treatment: random + zero, above: large_final + zero}
      - {treatment: random + zero, above: chance, at: best}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    """Five seeds, and a claim."""
    return train_study(tmp_path_factory.mktemp("row-files"), text=TEXT.replace("seeds: 2", "seeds: 5") + CLAIM)


@pytest.fixture(scope="module")
def table(trained: TrainedStudy) -> Path:
    return write_rows(trained, trained.store.parent / "small.parquet")


def write_rows(trained: TrainedStudy, path: Path, change: Callable[[list[Row]], list[Row]] = list) -> Path:
    path.write_bytes(to_parquet(change(plan_rows(trained.plan, trained.open_store())[0])))
    return path


# --- the same conclusions as from the store ---


@pytest.mark.slow
@pytest.mark.parametrize("is_demo", [True, False])
def test_claims_from_a_table_equal_those_from_the_store(
    trained: TrainedStudy, table: Path, is_demo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supermask.analysis.claims.evaluate.is_demonstration", lambda _: is_demo)
    from_store, _ = reports.claims([str(trained.study)], store=trained.store)
    from_rows, notices = reports.claims([str(trained.study)], rows=[table])
    assert from_rows == from_store and notices == []
    assert (from_rows[0].verdict == "no verdict") == is_demo


def test_rows_are_those_of_the_store(trained: TrainedStudy, table: Path) -> None:
    (published,) = read_studies_from_tables([table], [str(trained.study)])
    expected, _ = plan_rows(trained.plan, trained.open_store())
    assert [{name: row.get(name) for name in COLUMNS} for row in published.rows] == [
        {name: row.get(name) for name in COLUMNS} for row in expected
    ]
    assert published.plan.runs.keys() == trained.plan.runs.keys()


@pytest.mark.slow
def test_several_files_count_as_one_table(trained: TrainedStudy, table: Path, tmp_path: Path) -> None:
    first = write_rows(trained, tmp_path / "a.parquet", lambda rows: [row for row in rows if int(row["seed"] or 0) < 3])
    # A run that is to do in one file and finished in the other is finished.
    second = write_rows(trained, tmp_path / "b[*].parquet", lambda rows: [to_do(row) for row in rows])
    whole = call("claims", str(trained.study), "--rows", str(table), "--format", "json")
    third = write_rows(
        trained, tmp_path / "c.parquet", lambda rows: [row for row in rows if int(row["seed"] or 0) >= 3]
    )
    for command in (
        ["--rows", str(first), "--rows", str(second), "--rows", str(third)],
        ["--rows", str(first), str(second), str(third)],  # as the shell expands --rows *.parquet
    ):
        parts = call("claims", str(trained.study), *command, "--format", "json")
        assert (parts.status, parts.out) == (0, whole.out)


def to_do(row: Row) -> Row:
    kept = {name: row[name] for name in ("id", "parent", "study", "network", "dataset", "seed", "level", "treatment")}
    return {**kept, "iterations": row["iterations"], "density": row["density"], "status": "to_do"}


@pytest.mark.slow
def test_a_run_that_two_studies_share_counts_in_both(table: Path, tmp_path: Path) -> None:
    text = TEXT.replace("[large_final, random], mask0: [zero, freeze_init]", "[large_final, small_final], mask0: zero")
    study = write_study(tmp_path, "other.yaml", text.replace("reference: {criterion: large_final, mask0: zero}", ""))
    plan = make_plan(load_study(study))
    train_plan(plan, tmp_path / "store")
    rows, _ = plan_rows(plan, Store(tmp_path / "store"))
    own = tmp_path / "own.parquet"
    own.write_bytes(to_parquet([row for row in rows if row["treatment"] == "small_final"]))
    (alone,) = read_studies_from_tables([own], [str(study)])
    (shared,) = read_studies_from_tables([own, table], [str(study)])
    assert {row["treatment"] for row in alone.rows if row["status"] == "to_do"} == {"dense", "large_final"}
    assert [(row["study"], row["treatment"], row["status"]) for row in shared.rows] == [
        (row["study"], row["treatment"], "finished") for row in rows
    ]
    accuracies = [(row["id"], row["early_stop_test_accuracy"]) for row in rows]
    assert [(row["id"], row["early_stop_test_accuracy"]) for row in shared.rows] == accuracies


def test_only_the_seeds_of_the_table_are_planned(trained: TrainedStudy, tmp_path: Path) -> None:
    path = write_rows(trained, tmp_path / "a.parquet", lambda rows: [row for row in rows if row["seed"] in (2, 4)])
    (published,) = read_studies_from_tables([path], [str(trained.study)])
    assert published.plan.study.seeds == (2, 4)
    (published,) = read_studies_from_tables([path], [str(trained.study)], ["seeds=5"])
    assert published.plan.study.seeds == (0, 1, 2, 3, 4)
    assert {row["status"] for row in published.rows if row["seed"] == 0} == {"to_do"}


@pytest.mark.slow
def test_the_report_from_a_table_has_its_figures_and_claims(trained: TrainedStudy, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    done = call("report", str(trained.study), "--rows", str(table), "--out", str(out))
    assert (done.status, done.err) == (0, "")
    page = read(out.read_text(encoding="utf-8")).all("main")[0]
    from_store = tmp_path / "s.html"
    assert call("report", *trained.args, "--out", str(from_store)).status == 0
    stored = read(from_store.read_text(encoding="utf-8")).all("main")[0]
    sections = {each.attributes["id"]: each.text for each in page.all("section")}
    expected = {each.attributes["id"]: each.text for each in stored.all("section")}
    assert sections.keys() == expected.keys()
    assert all(sections[name] == expected[name] for name in sections if name != "provenance")
    assert "--rows small.parquet --out r.html" in sections["provenance"]
    assert "minutes for" in sections["provenance"] and "core-minutes" not in sections["provenance"]


@pytest.mark.slow
def test_figures_from_a_table_equal_those_from_the_store(trained: TrainedStudy, table: Path, tmp_path: Path) -> None:
    for name, source in (("table", ["--rows", str(table)]), ("store", ["--store", str(trained.store)])):
        done = call("figure", str(trained.study), *source, "--out", str(tmp_path / name), "--format", "svg")
        assert (done.status, done.err) == (0, "")
    written = {path.name: path.read_bytes() for path in (tmp_path / "table").iterdir() if path.suffix != ".svg"}
    assert written == {p.name: p.read_bytes() for p in (tmp_path / "store").iterdir() if p.suffix != ".svg"}
    assert any(name.endswith("accuracy.csv") for name in written)
    drawn = sm.figure(trained.study, "accuracy", rows=table)
    assert drawn.data == sm.figure(trained.study, "accuracy", store=trained.store).data


@pytest.mark.slow
def test_a_figure_of_the_paper_comes_from_published_tables(tmp_path: Path) -> None:
    """Figure 4 with one panel per network: other tables may have the other networks."""
    files = [PUBLISHED.with_name(f"{name}.parquet") for name in ("mask-1-actions-paper", "resnet20-laptop")]
    plan, rows = make_table_finder(files)(load_study("mask-1-actions", ["scale=paper"])) or (None, [])
    assert plan is not None and len(rows) == len(plan.runs)
    assert make_table_finder(files)(load_study("mask-1-actions", ["scale=paper-conv2"])) is None
    assert make_table_finder(files)(load_study("mask-0-actions", ["scale=paper"])) is None
    words = (
        "figure",
        "mask-1-actions",
        "scale=paper",
        "--rows",
        *map(str, files),
        "--only",
        "figure-4",
        "--format",
        "md",
    )
    done = call(*words, "--format", "svg", "--out", str(tmp_path))
    assert done.status == 0
    assert "FC on MNIST: in the mean from 20% to 1% of the weights, against rewind, reinit, reshuffle" in done.out


@pytest.mark.slow
def test_the_order_of_the_tables_does_not_matter() -> None:
    """`large_final` as a ticket is in two other tables, from two environments; most other rows are of the second."""
    names = ("supermask-questions-paper", "mask-criteria-paper", "mask-1-actions-paper")
    files = [PUBLISHED.with_name(f"{name}.parquet") for name in names]
    first, *others = (read_studies_from_tables(order, ["supermask-questions"]) for order in permutations(files))
    assert all([part.rows for part in other] == [part.rows for part in first] for other in others)
    environments = {
        row["environment"]
        for row in first[0].rows
        # Deeper levels are in one table only.
        if row["treatment"] == "ticket, large_final" and row["seed"] in (0, 1, 2) and 0 < int(row["level"] or 0) <= 20
    }
    assert environments == {"ce82093602f225c6"}


@pytest.mark.slow
def test_the_report_of_rows_without_iterations_says_so(trained: TrainedStudy, tmp_path: Path) -> None:
    """A table made from published figures has accuracies alone."""
    table = write_rows(
        trained, tmp_path / "a.parquet", lambda rows: [row | {"early_stop_iteration": None} for row in rows]
    )
    out = tmp_path / "r.html"
    done = call("report", str(trained.study), "--rows", str(table), "--out", str(out))
    assert (done.status, done.err) == (0, "")
    page = out.read_text(encoding="utf-8")
    assert NO_ITERATIONS in page and '"early-stop"' not in page


@pytest.mark.slow
def test_the_published_tables_have_a_report(tmp_path: Path) -> None:
    """The command of results/README.md."""
    published = sorted(PUBLISHED.parent.glob("*.parquet"))
    out = tmp_path / "report.html"
    done = call("report", *(text for path in published for text in ("--rows", str(path))), "--out", str(out))
    assert (done.status, done.err) == (0, "")
    studies = {str(row["study"]) for row in read_row_files(published)}
    page = out.read_text(encoding="utf-8")
    assert all(f'<section id="study-{study}"' in page for study in studies)


@pytest.mark.slow
def test_a_published_table_decides_the_paper_s_claims() -> None:
    """Claim 1 from the file itself, with DuckDB, NumPy and scipy alone."""
    findings, _ = reports.claims([], rows=[PUBLISHED])
    found = {finding.name: finding for finding in findings}
    assert [found[name].study for name in ("1a", "4a")] == ["mask-criteria", "mask-1-actions"]
    assert found["4a"].verdict == "not enough data" and "supermask run mask-1-actions" in found["4a"].sentence
    lines = duckdb.execute(
        "SELECT seed, level, density, early_stop_test_accuracy FROM read_parquet(?) "
        "WHERE status = 'finished' AND list_contains(string_split(treatment, ' | '), ?)",
        [str(PUBLISHED), "large_final"],
    ).fetchall()
    dense = dict(
        duckdb.execute(
            "SELECT seed, early_stop_test_accuracy FROM read_parquet(?) WHERE level = 0 AND status = 'finished'",
            [str(PUBLISHED)],
        ).fetchall()
    )
    in_band = [(seed, level, value) for seed, level, density, value in lines if 0.049 <= density <= 0.204]
    levels = {level for _, level, _ in in_band}
    seeds = [seed for seed in sorted(dense) if sum(each[0] == seed for each in in_band) == len(levels)]
    apart = np.array([np.mean([v for s, _, v in in_band if s == seed]) - dense[seed] for seed in seeds]) * 100
    effect = found["1a"].clauses[0].effect
    assert effect is not None and effect.n == len(seeds) >= 5
    assert effect.difference == pytest.approx(apart.mean(), rel=1e-9)
    assert effect.p == pytest.approx(scipy_stats.ttest_1samp(apart, -0.2, alternative="greater").pvalue, rel=1e-9)


@pytest.mark.slow
def test_rows_of_a_run_are_taken_for_what_their_id_says(trained: TrainedStudy, tmp_path: Path) -> None:
    """Labels are the study's: a table cannot move a run to another treatment."""

    def swap(rows: list[Row]) -> list[Row]:
        names = {"random + zero": "large_final + zero", "large_final + zero": "random + zero"}
        return [{**row, "treatment": names.get(str(row["treatment"]), row["treatment"])} for row in rows]

    swapped, _ = reports.claims([str(trained.study)], rows=[write_rows(trained, tmp_path / "a.parquet", swap)])
    assert swapped == reports.claims([str(trained.study)], store=trained.store)[0]


# --- files that are refused ---


def changed(**values: object) -> Callable[[list[Row]], list[Row]]:
    """The last row, a finished one, with other values."""
    return lambda rows: [*rows[:-1], {**rows[-1], **values}]  # type: ignore[dict-item]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(early_stop_test_accuracy=98.1), "row 45: early_stop_test_accuracy is 98.1; it must be in [0, 1]"),
        (changed(early_stop_test_accuracy=None), "the run has finished, and early_stop_test_accuracy is empty"),
        (changed(density=0.9), "has density 0.9 in the table, and "),
        (changed(density=-0.5), "density is -0.5; it must be in [0, 1]"),
        (changed(status="done"), "'done' is not a status; allowed: finished, diverged"),
        (changed(level=-1), "level is -1; it must be at least 0"),
        (changed(seed=None), "row 45: seed is empty"),
        (changed(seed=0), "has seed 0 in the table, and 4 by its id: the table was changed"),
        (changed(network="fc-9"), "has network 'fc-9' in the table, and 'fc-8' by its id"),
        (changed(id="../../etc/passwd"), "'../../etc/passwd' is not the id of a run"),
        (changed(id="0" * 32), "1 of 45 rows of study 'small' (run 00000000000000000000000000000000: fc-8 on digits"),
        (changed(study="other\x1b[31m"), "study 'other\\x1b[31m'"),
        (lambda rows: [], "there is no row."),
    ],
)
def test_values_that_no_run_has_are_refused(
    trained: TrainedStudy, tmp_path: Path, change: Callable[[list[Row]], list[Row]], message: str
) -> None:
    path = write_rows(trained, tmp_path / "t.parquet", change)
    arguments = [] if "study 'other" in message else [str(trained.study)]
    if not arguments:
        path.write_bytes(to_parquet([{**row, "study": "other\x1b[31m"} for row in read_row_files([path])]))
    for command in ("claims", "report"):
        check_refused([command, *arguments, "--rows", str(path)], message)


def check_refused(arguments: list[str], message: str) -> None:
    done = call(*arguments)
    assert done.status == 2 and done.out == ""
    assert message in done.err and "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1


def parquet_of(sql: str) -> Callable[[Path, Path], None]:
    def write(table: Path, out: Path) -> None:
        duckdb.execute(f"COPY ({sql.format(table=table)}) TO '{out}' (FORMAT parquet)")

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda table, out: None, "there is no file "),
        (lambda table, out: out.mkdir(), " is a folder: give Parquet files."),
        (lambda table, out: out.write_text("id,seed\n1,2\n"), " is not a Parquet file."),
        (lambda table, out: out.write_bytes(b""), " is not a Parquet file."),
        (lambda table, out: out.write_bytes(table.read_bytes()[:-500]), " is damaged, or not a Parquet file: "),
        (lambda table, out: out.write_bytes(b"PAR1" * 100), " is damaged, or not a Parquet file: "),
        (parquet_of("SELECT 1 AS a, 'x' AS b"), "it lacks 15 columns (id, study, network, "),
        (parquet_of("SELECT * EXCLUDE (seed) FROM '{table}'"), "is not a table of runs: it lacks 1 column (seed)"),
        (
            parquet_of("SELECT * REPLACE ('a' || seed AS seed) FROM '{table}'"),
            "column seed has the type 'VARCHAR', and BIGINT is needed",
        ),
        (parquet_of("SELECT * REPLACE ([seed] AS seed) FROM '{table}'"), "column seed has the type 'BIGINT[]'"),
    ],
)
def test_files_that_are_no_tables_of_runs_are_refused(
    trained: TrainedStudy, table: Path, tmp_path: Path, write: Callable[[Path, Path], None], message: str
) -> None:
    out = tmp_path / "t.parquet"
    write(table, out)
    check_refused(["claims", str(trained.study), "--rows", str(out)], message)


@pytest.mark.slow
def test_further_and_empty_columns_are_accepted(trained: TrainedStudy, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    parquet_of("SELECT * REPLACE (NULL::INTEGER AS hardened), 1 AS further FROM '{table}'")(table, out)
    assert read_row_files([out]) == read_row_files([table])
    rest = ", ".join(name for name in COLUMNS if name not in REQUIRED)
    parquet_of("SELECT * EXCLUDE (" + rest + ") FROM '{table}'")(table, out)  # noqa: S608
    ours, _ = reports.claims([str(trained.study)], rows=[out])
    assert ours == reports.claims([str(trained.study)], rows=[table])[0]


def test_two_results_of_one_run_are_refused(trained: TrainedStudy, table: Path, tmp_path: Path) -> None:
    other = write_rows(trained, tmp_path / "other.parquet", changed(early_stop_test_accuracy=0.5))
    check_refused(
        ["claims", str(trained.study), "--rows", str(table), "--rows", str(other)], "have different results of run "
    )


@pytest.mark.slow
def test_tables_and_settings_that_do_not_match_are_refused(trained: TrainedStudy, table: Path, tmp_path: Path) -> None:
    for arguments, message in [
        (["claims", "mask-criteria", "--rows", str(table)], "small.parquet: there is no row of study 'mask-criteria'"),
        (["claims", "--rows", str(table)], "study 'small' is not shipped; give its file"),
        (["claims", str(trained.study), "train.lr=0.5", "--rows", str(table)], "are not of train.lr=0.5. Give the"),
        (["claims", *trained.args, "--rows", str(table)], "give either a store or tables of runs"),
        (["report", *trained.args, "--rows", str(table)], "give either a store or tables of runs"),
        (["figure", *trained.args, "--rows", str(table)], "give either a store or tables of runs"),
        (["claims", "scale=laptop", "--rows", str(PUBLISHED)], "are not of scale=laptop."),
    ]:
        check_refused(arguments, message)


@pytest.mark.slow
def test_settings_select_among_the_rows(trained: TrainedStudy, tmp_path: Path) -> None:
    """A table of two settings of one study: without a scale both are read, with one that one, and the rest is named."""
    (tmp_path / "more").mkdir()
    more = train_study(tmp_path / "more", text=TEXT.replace("seeds: 2", "seeds: 1").replace("levels: 2", "levels: 3"))
    rows = [*plan_rows(trained.plan, trained.open_store())[0], *plan_rows(more.plan, more.open_store())[0]]
    distinct = list({str(row["id"]): row for row in rows}.values())
    path = tmp_path / "t.parquet"
    path.write_bytes(to_parquet(distinct))
    (published,) = read_studies_from_tables([path], [str(trained.study)], ["prune.levels=2"])
    assert len(published.rows) == len(trained.plan.runs)
    assert "rows of study 'small' (run " in published.notices[0] and "of other settings" in published.notices[0]
    with pytest.raises(UserError, match="are not of its scales"):
        read_studies_from_tables([path], [str(trained.study)])


def test_every_required_column_is_one_of_the_table() -> None:
    assert set(REQUIRED) <= set(COLUMNS)


def test_a_study_on_own_data_is_sent_to_its_store(table: Path, tmp_path: Path) -> None:
    study = tmp_path / "small.yaml"  # the name of the study in the table
    study.write_text("dataset: npz:own.npz\ntreatments: [{}]\n")
    ended = call("claims", str(study), "--rows", str(table))
    assert ended.status == 2 and "'npz:own.npz'" in ended.err and "--store" in ended.err
