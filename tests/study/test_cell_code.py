"""Criteria given as functions of a script or cell: their module, its hash, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supermask.core.errors import UserError
from supermask.study import study_from_dict
from supermask.study.cell_code import import_path

SCRIPT = '''
from math import sqrt
import torch
import supermask as sm

EPS = {eps}

def size(x: torch.Tensor) -> torch.Tensor:
    return x.abs()

def score(layer: sm.Layer, rng: object) -> torch.Tensor:
    """Relative size. """
    return size(layer.w_final) / (size(layer.w_init) + EPS) + sqrt(0)  {comment}

study = sm.Study("tiny", network="fc-8", dataset="digits", seeds=1, train={{"epochs": 0.6, "evaluate_every": 4}},
                 prune={{"levels": 1}}, treatments=[{{"criterion": [score]}}])
print(sm.make_plan(study).treatment_runs[-1].run_id)
print(study.user_criteria[0])
if {trains}:
    print(sm.run(study, workers=1))
'''


def run_script(folder: Path, eps: str = "1e-3", comment: str = "", trains: bool = False) -> list[str]:
    (folder / "script.py").write_text(SCRIPT.format(eps=eps, comment=comment, trains=trains))
    command = [sys.executable, "script.py"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.slow
def test_function_of_a_script_is_trained_by_workers_and_its_source_is_in_the_id(tmp_path: Path) -> None:
    run_id, name, *_, result = run_script(tmp_path, trains=True)
    assert result.startswith("tiny: 2 runs: 2 finished")
    assert run_script(tmp_path, comment="# a comment") == [run_id, name]
    other_id, other_name = run_script(tmp_path, eps="1e-2")
    assert other_id != run_id and other_name != name


def test_function_of_a_module_is_named_by_its_path() -> None:
    from helpers import small_studies

    assert import_path(small_studies.small_plan) == "helpers.small_studies:small_plan"


def in_main(source: str) -> Any:
    """Return the function `score` of code that has no module of its own, as a notebook cell has none."""
    import linecache

    name = f"<cell {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    values: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), values)  # noqa: S102 (source of this test)
    return values["score"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import torch\nx = torch.ones(3)\ndef score(layer, rng):\n    return x",
            "uses 'x', a Tensor of this session",
        ),
        ("x = float('nan')\ndef score(layer, rng):\n    return x", "uses 'x', a float of this session"),
        ("class A: pass\ndef score(layer, rng):\n    return A", "uses 'A', a type of this session"),
        (
            "def f():\n    k = 1\n    def g(layer, rng):\n        return k\n    return g\nscore = f()",
            "uses 'k' of the function",
        ),
        ("score = lambda layer, rng: layer.w_final", "a function with a name, not '<lambda>'"),
        ("def score(layer, rng, k=3):\n    return k", "has a decorator or default values"),
        ("from functools import cache\n@cache\ndef score(layer, rng):\n    return 1", "is not a plain function"),
        ("score = print", "is not a plain function"),
    ],
)
def test_functions_whose_source_does_not_say_all_are_refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        study_from_dict({"treatments": [{"criterion": in_main(source)}]})
    assert "\n" not in str(error.value)


def test_parameters_are_checked_as_those_of_a_file() -> None:
    with pytest.raises(UserError, match=r"it must take \(layer, rng\)"):
        study_from_dict({"treatments": [{"criterion": in_main("def score(layer):\n    return layer.w_final")}]})


def test_module_has_what_the_function_uses_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path))
    source = "import torch as t\nK, L = 2, 'x'\ndef other(): pass\ndef half(x):\n    return x / K\n"
    score = in_main(source + "def score(layer, rng):\n    # why\n    return half(t.abs(layer.w_final))\n")
    name = import_path(score)
    text = (tmp_path / "cells" / f"{name.partition(':')[0]}.py").read_text()
    expected = "import torch as t\nK = 2\n\ndef half(x):\n    return x / K\n\ndef score(layer, rng):\n"
    assert text == expected + "    return half(t.abs(layer.w_final))\n"
    # A second definition of the same source is the same module.
    assert import_path(in_main(source + "def score(layer, rng):\n    return half(t.abs(layer.w_final))\n")) == name


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("def round(x):\n    return 2 * x\n", "def round(x):\n    return 2 * x\n\n"),
        ("from torch import round\n", "from torch import round as round\n\n"),
        ("round = 2.5\n", "round = 2.5\n\n"),
        ("from builtins import round\n", ""),
        ("", ""),
    ],
)
def test_a_replaced_builtin_is_that_of_the_cell(
    cell: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path))
    body = "def score(layer, rng):\n    return (round, __name__)\n"
    name = import_path(in_main(cell + body))
    assert (tmp_path / "cells" / f"{name.partition(':')[0]}.py").read_text() == text + body


def test_a_builtin_that_ipython_replaces_is_the_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from IPython.core.interactiveshell import _modified_open

    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path))
    body = "def score(layer, rng):\n    return open\n"
    score = in_main(body)
    score.__globals__["open"] = _modified_open
    name = import_path(score)
    assert (tmp_path / "cells" / f"{name.partition(':')[0]}.py").read_text() == body


def test_clusters_are_refused(tmp_path: Path) -> None:
    from supermask.api import runs

    study = study_from_dict(
        {"treatments": [{"criterion": in_main("def score(layer, rng):\n    return layer.w_final")}]}
    )
    with pytest.raises(UserError, match="'score' was given as a function of this session"):
        runs.run(study, store=tmp_path, cluster="local")
