"""What the README and the docs show is what happens: their study, their criterion, their commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.command_line import call
from helpers.tiny import six
from typer.main import get_command

from supermask import cli
from supermask.core.rng import random_stream

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def block(language: str, start: str = "") -> str:
    """The first fenced block of a language that begins with `start`."""
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return next(text for text in found if text.startswith(start))


def test_the_study_of_ten_lines_is_planned_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "signs.yaml").write_text(block("yaml", "# signs.yaml"))
    status, out, _ = call("plan", "signs.yaml", "--workers", 2)
    assert status == 0
    shown = block("console", "$ supermask plan signs.yaml").splitlines()
    counts = [line for line in out.splitlines() if not line.startswith("estimated")]
    assert shown[1 : len(counts) + 1] == counts


def test_the_criterion_shown_scores_a_layer() -> None:
    names: dict[str, object] = {}
    exec(block("python", "def score"), names)  # noqa: S102 (our own README)
    layer = six()
    scores = names["score"](layer, random_stream(0, "score"))  # type: ignore[operator]
    assert scores.shape == layer.w_final.shape


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_exists(page: Path) -> None:
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    shown = re.findall(r"^\$ supermask (\S+)", page.read_text(), flags=re.MULTILINE)
    assert {name for name in shown if not name.startswith("-")} <= set(commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_linked_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_the_map_of_the_house_names_every_room() -> None:
    package = ROOT / "supermask"
    rooms = {p.name for p in package.iterdir() if p.suffix == ".py" and not p.name.startswith("__")}
    rooms |= {f"{p.name}/" for p in package.iterdir() if p.is_dir() and p.name != "__pycache__"}
    lines = re.findall(r"^  (\S+)\s+(.+)$", block("text", "supermask/"), flags=re.MULTILINE)
    assert {name for name, _ in lines} == rooms
    assert all(len(purpose.split()) <= 8 for _, purpose in lines)
