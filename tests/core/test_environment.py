"""Whether a new Python process needs the current folder to find the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import supermask
from supermask.core.environment import needs_current_folder

ROOT = Path(supermask.__file__).parents[1]


@pytest.mark.parametrize(
    ("current", "path", "needed"),
    [
        # `python -m supermask` in a clone that is not installed, and in one that is.
        (ROOT, [str(ROOT), "/lib"], True),
        (ROOT, [str(ROOT), "/lib", str(ROOT)], False),
        # The command, in the clone and elsewhere.
        (ROOT, ["/bin", "/lib", str(ROOT)], False),
        (Path("/"), ["/bin", "/lib", str(ROOT)], False),
        # A notebook, whose first entry is the current folder.
        (ROOT, ["", "/lib"], True),
        (ROOT.parent, ["", "/lib", str(ROOT)], False),
    ],
)
def test_only_a_clone_that_is_not_installed_needs_the_current_folder(
    current: Path, path: list[str], needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(current)
    monkeypatch.setattr(sys, "path", path)
    assert needs_current_folder() == needed
