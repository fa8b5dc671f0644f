"""A folder of tickets with an index: building it, searching in it, and expressions that are refused."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import duckdb
import pytest
from helpers.command_line import call, refused
from helpers.golden_store import write_entry
from helpers.small_studies import small_plan, train_plan
from helpers.ticket_runs import Runs, ticket_runs

from supermask import UserError, load_ticket, pack_run
from supermask.api.tickets import build_tickets, find_tickets
from supermask.export.folder_lock import lock_folder
from supermask.export.tickets.files import encode_ticket
from supermask.export.tickets.registry import INDEX, INDEX_COLUMNS, PackedWeights
from supermask.export.tickets.search import find_rows
from supermask.store import Store
from supermask.store.rows import store_rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return ticket_runs(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def registry(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name has DuckDB's patterns; it is not changed."""
    folder = tmp_path_factory.mktemp("built") / "tickets [a*]?"
    build_tickets(folder, runs.folder)
    return folder


@pytest.mark.slow
def test_every_finished_run_is_a_ticket_with_a_row(runs: Runs, registry: Path) -> None:
    rows, _ = store_rows(runs.store)
    found = {row["id"]: row for row in find_rows(registry)}
    assert found.keys() == {row["id"] for row in rows} == set(runs.plan.runs)
    for row in rows:
        data = encode_ticket(pack_run(runs.store, str(row["id"]), "start"))
        indexed = found[row["id"]]
        path = Path(str(indexed["file"]))
        assert path.read_bytes() == data
        assert (indexed["bytes"], indexed["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert indexed["accuracy"] == row["final_test_accuracy"]
        assert (indexed["snapshot"], indexed["certificate"]) == ("start", "held")
        assert {name: indexed[name] for name in row} == row
    files = [path for path in registry.rglob("*") if path.is_file()]
    assert len(files) == len(rows) + 1


def test_index_is_parquet_that_other_programs_read(runs: Runs, registry: Path, tmp_path: Path) -> None:
    shutil.copy(registry / INDEX, tmp_path / INDEX)
    table = duckdb.connect().execute(f"SELECT * FROM read_parquet('{tmp_path / INDEX}')").fetchall()  # noqa: S608
    assert len(table) == len(runs.plan.runs)
    files = duckdb.connect().execute(f"SELECT file FROM read_parquet('{tmp_path / INDEX}')").fetchall()  # noqa: S608
    assert all((registry / file).is_file() and not Path(file).is_absolute() for (file,) in files)


@pytest.mark.slow
def test_final_weights(runs: Runs, tmp_path: Path) -> None:
    summary = build_tickets(tmp_path / "out", runs.folder, weights="final")
    assert (summary.packed, summary.known, summary.left_out) == (len(runs.plan.runs), 0, {})
    row = find_rows(tmp_path / "out", "level = 2 and criterion = 'large_final'")[0]
    assert row["snapshot"] == "final"
    assert load_ticket(str(row["file"])).facts["accuracy"]["test"] == row["accuracy"]
    with pytest.raises(UserError, match="did you mean 'final'"):
        build_tickets(tmp_path / "out", runs.folder, weights="finl")  # type: ignore[arg-type]


def test_tickets_without_training_and_of_learned_masks_are_named_by_their_weights(tmp_path: Path) -> None:
    learn = {"lr": 20, "batch_size": 60, "epochs": 0.6, "evaluate_every": 8, "samples": 2, "hardened_at": []}
    untrained = {"trained": False, "schedule": "one_shot", "criterion": "random"}
    plan = small_plan({"criterion": "large_final"}, {"supermask": {}}, untrained, levels=1, learn=learn)
    train_plan(plan, tmp_path / "store")
    for weights in get_args(PackedWeights):
        build_tickets(tmp_path / weights, tmp_path / "store", weights)
        rows = find_rows(tmp_path / weights)
        for row in rows:
            expected = "final" if row["supermask"] else weights if row["trained"] else "start"
            assert row["snapshot"] == load_ticket(str(row["file"])).facts["weights"] == expected
        assert len({(bool(row["supermask"]), row["trained"]) for row in rows}) == 3


@pytest.mark.slow
def test_building_again_adds_what_is_new_and_repairs_what_is_damaged(runs: Runs, tmp_path: Path) -> None:
    part, out = tmp_path / "part", tmp_path / "out"
    shutil.copytree(runs.folder, part)
    for run_id in (run.id for run in runs.plan.runs.values() if run.level == 2):
        shutil.rmtree(part / "runs" / run_id[:2] / run_id)
    first = build_tickets(out, part)
    second = build_tickets(out, runs.folder)
    total = len(runs.plan.runs)
    assert 0 < first.packed < total
    assert (second.packed, second.known) == (total - first.packed, first.packed)
    content = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    Path(str(find_rows(out)[3]["file"])).write_bytes(b"damaged")
    Path(str(find_rows(out)[4]["file"])).unlink()
    assert build_tickets(out, runs.folder).packed == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == content
    # Another store, of which the folder has more than it: nothing is lost.
    assert build_tickets(out, part).packed == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == content


@pytest.mark.slow
def test_a_ticket_of_another_result_keeps_its_own_row(tmp_path: Path) -> None:
    """Two machines trained the same runs: equal ids, other results."""
    plan = small_plan()
    stores = {engine: tmp_path / engine for engine in ("reference", "sparse")}
    for engine, folder in stores.items():
        train_plan(plan, folder, engine=engine)
    out = tmp_path / "out"
    build_tickets(out, stores["reference"])
    before = find_rows(out)
    ended = call("tickets", "build", "--store", stores["sparse"], "--out", out)
    assert ended.status == 0 and "0 tickets packed, 0 here already" in ended.out
    assert f"{len(before)} runs: a ticket of another result is in the folder and is kept; remove it" in ended.err
    assert find_rows(out) == before, "rows and tickets are of one result"
    assert len(build_tickets(out, stores["sparse"], weights="final").other_results) == len(before)
    assert find_rows(out) == before, "other weights of another result do not replace it either"
    ended = call("tickets", "build", "--store", stores["reference"], "--out", out)
    assert f"0 tickets packed, {len(before)} here already" in ended.out


@pytest.mark.slow
def test_an_equal_result_of_another_version_is_here_already(runs: Runs, tmp_path: Path) -> None:
    """The environment of a run has another fingerprint with each version of the program."""
    out, other = tmp_path / "out", tmp_path / "other"
    build_tickets(out, runs.folder)
    before = find_rows(out)
    shutil.copytree(runs.folder, other)
    for run_id in Store(other).run_ids():
        entry = Store(other).read(run_id)
        environment = {**entry.facts["environment"], "supermask": "9.9"}
        entry.facts["environment"] = {**environment, "fingerprint": "0123456789abcdef"}
        write_entry("run", run_id, other / "runs" / run_id[:2] / run_id, entry)
    again = build_tickets(out, other)
    assert (again.packed, again.known, again.other_results) == (0, len(before), [])
    assert find_rows(out) == before


def test_text_that_is_not_unicode_is_refused(registry: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the expression has bytes that are not UTF-8, at character 14"):
        find_tickets(registry, "criterion = '\udcff'")
    folder = tmp_path / os.fsdecode(b"tickets\xff")
    shutil.copytree(registry, folder)
    with pytest.raises(UserError, match="the folder's path has bytes that are not UTF-8"):
        find_tickets(folder)


def test_one_command_at_a_time_writes_a_folder(runs: Runs, tmp_path: Path) -> None:
    with lock_folder(tmp_path / "out", "the tickets"):
        message = refused(call("tickets", "build", "--store", runs.folder, "--out", tmp_path / "out"))
        assert "another command is writing to" in message
    assert list((tmp_path / "out").iterdir()) == [], "the lock leaves no file"


@pytest.mark.slow
def test_damaged_and_unfinished_runs_are_named(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.folder, tmp_path / "store")
    run_id = runs.id("rewound")
    (tmp_path / "store" / "runs" / run_id[:2] / run_id / "run.json").write_text("{}")
    ended = call("tickets", "build", "--store", tmp_path / "store", "--out", tmp_path / "out")
    assert ended.status == 0
    assert f"run {run_id}" in ended.err or run_id in ended.err
    assert run_id not in {row["id"] for row in find_rows(tmp_path / "out")}


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_folders_that_cannot_be_used(runs: Runs, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        build_tickets(tmp_path / name, runs.folder)
    with pytest.raises(UserError, match=r"is a store: give --out another folder"):
        build_tickets(runs.folder, runs.folder)
    with pytest.raises(UserError, match=r"has no readable index\.parquet"):
        find_tickets(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"PAR1 not", b"id,file\n1,2\n"])
def test_files_that_are_no_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(UserError, match="is not an index of tickets"):
        find_tickets(tmp_path)


def test_index_of_others_names_no_file_outside(registry: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    source = tmp_path / "source.parquet"
    shutil.copy(registry / INDEX, source)
    for column in ("id", "file"):
        replaced = f"SELECT * REPLACE ('../../etc/passwd' AS {column}) FROM read_parquet('{source}')"  # noqa: S608
        duckdb.connect().execute(f"COPY ({replaced}) TO '{tmp_path / 'out' / INDEX}' (FORMAT parquet)")
        if column == "id":
            with pytest.raises(UserError, match="is not the id of a run"):
                find_rows(tmp_path / "out")
        else:
            root = str(tmp_path / "out" / "tickets")
            assert all(str(row["file"]).startswith(root) for row in find_rows(tmp_path / "out"))


# --- expressions ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (
            "criterion = 'large_final' and density < 0.3",
            lambda r: r["criterion"] == "large_final" and r["density"] < 0.3,
        ),
        ("level in (0, 2)", lambda r: r["level"] in (0, 2)),
        ("NOT level = 1", lambda r: r["level"] != 1),
        ("criterion is null", lambda r: r["criterion"] is None),
        (
            "mask1 like 'r%' or mask0 ilike 'FREEZE%'",
            lambda r: str(r["mask1"])[0] == "r" or "freeze" in str(r["mask0"]),
        ),
        ("100 * density between 20 and 40", lambda r: 20 <= 100 * r["density"] <= 40),
        ("case when level = 2 then true else false end", lambda r: r["level"] == 2),
        ("level = 2.0 -- a comment", lambda r: r["level"] == 2),
        ("rescaled", lambda r: r["rescaled"]),
        ("starts_with(upper(mask0), 'FREEZE')", lambda r: "freeze" in str(r["mask0"])),
        ('"level" = 1', lambda r: r["level"] == 1),
        ("LEVEL = 1", lambda r: r["level"] == 1),
        ("true", lambda r: True),
        ("level = 99", lambda r: False),
    ],
)
def test_expressions(registry: Path, where: str, expected: Any) -> None:
    rows = find_rows(registry)
    assert find_rows(registry, where) == [row for row in rows if expected(row)]


HOSTILE = {
    "": "is empty",
    "1=1; DROP TABLE runs": "is not an expression",
    "true) UNION SELECT * FROM runs WHERE (true": "is not one expression",
    "true) ORDER BY (id": "is not one expression",
    "true) LIMIT (1": "is not one expression",
    "true) GROUP BY ALL HAVING (true": "is not one expression",
    "true) QUALIFY (true": "is not one expression",
    "true) -- ": "is not an expression",
    "true) /*": "is not an expression",
    "(select 1) = 1": "holds no subquery",
    "exists(from runs)": "holds no subquery",
    "level in (select level from runs)": "holds no subquery",
    "level = any(select 1)": "holds no subquery",
    "exists(select * from read_csv('/etc/passwd'))": "holds no subquery",
    "read_text('/etc/passwd') = ''": "'read_text' is not a function",
    "read_csv('/etc/passwd') is not null": "'read_csv' is not a function",
    "getenv('HOME') = ''": "'getenv' is not a function",
    "current_setting('threads') = '1'": "'current_setting' is not a function",
    "repeat('x', 1000000000) = ''": "'repeat' is not a function",
    "main.abs(1) = 1": "'abs' is not a function",
    "level ** 9 = 1": "is not a function",
    "[x for x in [1]] = [1]": "is not a function",
    "list_value(1) = [1]": "is not a function",
    "count(*) > 1": "'count_star' is not a function",
    "sum(level) filter (where true) > 1": "'sum' is not a function",
    "count(*) over () > 1": "holds no window",
    "* = 1": "holds no star",
    "columns(*) > 1": "holds no star",
    "x -> 1": "holds no lambda",
    "$1 = 1": "holds no parameter",
    "? = 1": "holds no parameter",
    "runs.level = 1": "'runs.level' is not a column",
    "densty < 1": "did you mean 'density'?",
    'criterion = "large_final"': "Text needs single quotes",
    "density": "is neither true nor false, but a value (DOUBLE)",
    "'yes'": "is neither true nor false",
    "density < ": "is not an expression",
    "level = 'x'": "cannot be evaluated",
    "SELECT 1": "holds no subquery",
    "attach 'x.db'": "holds no",
    "level::varchar = '1'": "holds no",
    "cast(level as varchar) = '1'": "holds no",
    "x" * 10_001: "has 10,001 characters",
    "(" * 4000 + "true" + ")" * 4000: "",
    "level = 1\x00": "",
}


@pytest.mark.slow
@pytest.mark.parametrize("where", HOSTILE, ids=lambda text: text[:30])
def test_anything_but_a_condition_is_refused(registry: Path, where: str) -> None:
    with pytest.raises(UserError) as error:
        find_rows(registry, where)
    assert HOSTILE[where] in str(error.value)
    assert "\n" not in str(error.value)


# --- commands ---


@pytest.mark.slow
def test_find_on_the_command_line(registry: Path) -> None:
    where = "level = 2 and criterion = 'large_final'"
    rows = find_rows(registry, where)
    ended = call("tickets", "find", registry, where, "--format", "paths")
    assert ended.out.splitlines() == [row["file"] for row in rows]
    ended = call("tickets", "find", registry, where, "--format", "json", "--limit", 2)
    assert [row["id"] for row in json.loads(ended.out)] == [row["id"] for row in rows[:2]]
    ended = call("tickets", "find", registry, where, "--format", "csv")
    lines = list(csv.DictReader(StringIO(ended.out)))
    assert [line["sha256"] for line in lines] == [row["sha256"] for row in rows]
    ended = call("tickets", "find", registry, where, "--limit", 2)
    assert ended.out.splitlines()[-1] == f"2 of {len(rows)} tickets"
    assert call("tickets", "find", registry, "level = 99").out.strip() == "0 tickets"
    assert "is not a column" in refused(call("tickets", "find", registry, "levl = 1"))


def test_find_in_python(registry: Path) -> None:
    found = find_tickets(str(registry), "level = 2")
    assert found.columns == list(INDEX_COLUMNS)
    path = found.project("file").fetchall()[0][0]
    assert load_ticket(path).facts["run"]["level"] == 2


def test_a_folder_is_written_where_the_file_system_has_no_locks(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("supermask.export.folder_lock.fcntl.flock", refuse)
    assert build_tickets(tmp_path / "out", runs.folder).packed == len(runs.plan.runs)
