"""Criteria that a user wrote: their import, their hash, and what is refused."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from pathlib import Path

import pytest
from helpers.study_refusals import labels, refusal

from supermask.core.criteria import CRITERIA
from supermask.core.errors import UserError
from supermask.study.fields import resolve_criterion
from supermask.study.loading import study_from_dict
from supermask.study.plan import make_plan

USER_MODULE = """\
ALPHA = 2

def score(layer, rng):
    return layer.w_final.abs() ** ALPHA

def one(layer): ...
def three(layer, rng, alpha): ...
def named(*, layer, rng): ...
class Thing: ...
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Write a user module with a unique name to the current directory; return the name."""
    name = "own_" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    (tmp_path / f"{name}.py").write_text(USER_MODULE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return name


def test_a_user_criterion_is_imported_from_the_current_folder_with_its_hash(own: str) -> None:
    study = study_from_dict({"treatments": [{"criterion": ["random", f"{own}:score", f"{own}.score"]}]})
    assert labels(study) == ["random", f"{own}:score", f"{own}.score"]
    criterion = resolve_criterion(f"{own}:score")
    assert criterion.function is sys.modules[own].score
    source = inspect.getsource(criterion.function)
    assert criterion.source_sha256 == hashlib.sha256(source.encode()).hexdigest()
    assert criterion.module_sha256 == hashlib.sha256(USER_MODULE.encode()).hexdigest()
    assert resolve_criterion("random").function is CRITERIA["random"]
    assert resolve_criterion("random").source_sha256 is None


def test_unusable_user_criteria_are_refused(own: str) -> None:
    (Path.cwd() / "typo_module_of_mine.py").write_text("def score(layer, rng) return 3\n")
    messages = {
        "typo_module_of_mine:score": "the module 'typo_module_of_mine' cannot be parsed: typo_module_of_mine.py, ",
        f"{own}:scor": f"'{own}:scor': the module '{own}' has no function 'scor'; did you mean 'score'? Its ",
        f"{own}:ALPHA": f"'{own}:ALPHA' is of type int, not a function ALPHA(layer, rng).",
        f"{own}:Thing": f"'{own}:Thing' is of type type, not a function Thing(layer, rng).",
        f"{own}:one": f"'{own}:one' takes (layer): it must take (layer, rng).",
        f"{own}:three": f"'{own}:three' takes (layer, rng, alpha): it must take (layer, rng).",
        f"{own}:named": f"'{own}:named' takes (*, layer, rng): it must take (layer, rng).",
        "math:sqrt": "'math' is a module of Python's standard library, not one of yours: put the function into a file",
        "antigravity:x": "'antigravity' is a module of Python's standard library, not one of yours",
        "__main__:score": "'__main__' is the program that runs, which worker processes cannot import: put the function",
    }
    for name, message in messages.items():
        assert refusal({"treatments": [{"criterion": name}]}).startswith(f"treatments[0].criterion: {message}")
    assert own not in sys.modules, "the module is not imported"


def test_a_module_that_is_not_found_is_refused_by_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("no_such_module_of_mine:score", "no_such_module_of_mine.deep:score"):
        study = study_from_dict({"treatments": [{"criterion": name}]}, name="mine")
        module = name.partition(":")[0]
        message = f"study 'mine': criterion '{name}': there is no module '{module}'; looked in the current directory ("
        with pytest.raises(UserError, match=re.escape(message)):
            make_plan(study)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module_at_all\n", "failed: No module named 'no_such_module_at_all'."),
        ("raise SystemExit(3)\n", "failed: SystemExit: 3."),
        ("score = max\n", "is of type builtin_function_or_method, not a function score(layer, rng)."),
        ("from math import *\n", "has no function 'score'."),
    ],
)
def test_errors_that_only_an_import_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    module = f"imported_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    body = text if "=" in text or "*" in text else f"{text}def score(layer, rng): ...\n"
    (tmp_path / f"{module}.py").write_text(body)
    study_from_dict({"treatments": [{"criterion": f"{module}:score"}]})
    with pytest.raises(UserError, match=re.escape(message)):
        resolve_criterion(f"{module}:score")
