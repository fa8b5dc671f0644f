"""First compilation of kernels: noticed once per machine, in `run` and in the estimate of `plan`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from helpers.command_line import call, supermask
from helpers.small_studies import small_plan
from helpers.stored_study import write_study
from rich.console import Console

from supermask.api import runs
from supermask.execution import compilation
from supermask.execution.progress import progress_listener

PLAN = small_plan(levels=1)
LEARNED = small_plan({"name": "learned", "supermask": {}})
CONV = small_plan(network="conv2", levels=1)


@pytest.fixture(autouse=True)
def new_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUPERMASK_STORE", raising=False)


@pytest.mark.parametrize(("plan", "kind"), [(PLAN, "sparse"), (LEARNED, "sparse_masks"), (CONV, "sparse_convolutions")])
def test_each_kind_is_compiled_once(plan: object, kind: str) -> None:
    graph = plan.runs.values()  # type: ignore[attr-defined]
    assert compilation.kernel_kind(graph, "auto", "cpu") == kind
    assert compilation.compile_seconds(graph, "auto") == compilation.COMPILE_SECONDS[kind]
    compilation.mark_compiled(kind)
    assert compilation.compile_seconds(graph, "auto") == 0
    assert compilation.compilation_note(graph, "auto") == ""


def test_other_engines_compile_nothing() -> None:
    assert compilation.kernel_kind(PLAN.runs.values(), "reference", "cpu") is None
    assert compilation.compilation_note(PLAN.runs.values(), "reference") == ""


def test_without_a_cache_folder_it_is_said_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "cache_folder", lambda: None)
    compilation.mark_compiled("sparse")
    assert not compilation.is_compiled("sparse")


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    compilation.mark_compiled("sparse")
    assert not compilation.is_compiled("sparse")


def test_plan_adds_it_to_the_estimate(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    before = runs.plan(str(study))
    assert before.compile_seconds == compilation.COMPILE_SECONDS["sparse"]
    shown = call("plan", study, "--workers", 1)[1]
    assert "16 s of it to compile kernels, once on this machine)" in shown
    compilation.mark_compiled("sparse")
    assert runs.plan(str(study)).compile_seconds == 0
    assert "compile" not in call("plan", study, "--workers", 1)[1]


@pytest.mark.slow
def test_the_first_run_says_it_and_the_second_does_not(tmp_path: Path) -> None:
    study = write_study(tmp_path)

    options = ("--workers", "1", "prune.levels=1")
    # In a process of its own: a fork server that earlier tests left has imported the kernels already.
    first = supermask("run", study, *options, "seeds=[0]")
    assert "small  compiling kernels, once on this machine (about 16 s)" in first.out.splitlines()
    assert compilation.is_compiled("sparse")
    second = call("run", study, *options, "seeds=[1]")
    assert second.status == 0 and "compiling" not in second.out


def test_a_terminal_shows_the_note_and_the_seconds() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None, soft_wrap=True)
    with progress_listener("study", console, {}, 3, compilation.compilation_note(PLAN.runs.values(), "auto")):
        pass
    assert "compiling kernels, once on this machine (about 16 s), 0 s" in text.getvalue()
