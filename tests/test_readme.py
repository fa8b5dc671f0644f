"""README and docs: the study, criterion, commands and links that they show work."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest
from helpers.command_line import call
from helpers.tiny import six
from typer.main import get_command

from supermask import cli
from supermask.core.rng import random_stream

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FOLDERS = {"supermask", "tests", "docs", "benchmarks", "examples"}
PACKAGES = {path.parent.name for path in (ROOT / "supermask").glob("*/__init__.py")}
STORED_KEYS = {"supermask.ones", "supermask.run_id", "supermask.ticket", "supermask.source"}
"""Keys of records, ticket files, MLflow runs and page scripts that look like names of the package."""
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


def is_code_path(text: str) -> bool:
    """Return whether a backticked text names a file or folder of this repository, not of a store or of the reader."""
    if text.endswith(("/", ".yaml", ".json", ".md")):
        return text.split("/")[0] in {*FOLDERS, *PACKAGES} and "/" in text
    return text.endswith((".py", ".pyi")) and ("/" in text or text.startswith("test_"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_named_exists(page: Path) -> None:
    """Paths are relative to the repository or the package; a module or test may be named by the end of its path."""
    paths = {text for text in re.findall(r"`([\w./-]+)`", page.read_text()) if is_code_path(text)}
    modules = [
        f"/{file.relative_to(ROOT).as_posix()}"
        for name in ("supermask", "tests")
        for file in (ROOT / name).rglob("*.py")
    ]
    missing = {path for path in paths if not ((ROOT / path).exists() or (ROOT / "supermask" / path).exists())}
    assert not {path for path in missing if not any(module.endswith(f"/{path}") for module in modules)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_dotted_name_exists(page: Path) -> None:
    """Names such as `supermask.api.report` or, below the package, `analysis.summary.summarize`."""
    names = set(re.findall(r"`([a-z_]\w*(?:\.\w+)+)(?:\([^`]*\))?`", page.read_text())) - STORED_KEYS
    roots = {"supermask": "", **dict.fromkeys(PACKAGES, "supermask.")}
    code = {roots[name.split(".")[0]] + name for name in names if name.split(".")[0] in roots}
    for name in sorted(code - {name for name in code if name.endswith((".py", ".yaml", ".md", ".html"))}):
        resolve_name(name)  # Raises ImportError or AttributeError if there is no such module or attribute.


def test_missing_paths_and_names_are_found() -> None:
    assert is_code_path("core/no_such_file.py")
    assert is_code_path("supermask/no_such_folder/")
    assert not is_code_path("runs/ab/")
    with pytest.raises((ImportError, AttributeError)):
        resolve_name("supermask.core.no_such_name")


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 160


def test_architecture_lists_every_package() -> None:
    packages = {path.parent.name for path in (ROOT / "supermask").glob("*/__init__.py")} - {"integrations"}
    tree = (ROOT / "docs" / "architecture.md").read_text().split("```text\nsupermask/")[1].split("```")[0]
    assert set(re.findall(r"^  (\w+)/ ", tree, flags=re.MULTILINE)) == packages


def test_architecture_states_the_import_contract() -> None:
    """The table is that of pyproject.toml: what a package may not import is what its line leaves out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    text = (ROOT / "docs" / "architecture.md").read_text()
    lines = dict(re.findall(r"^(\w+) +-> ([\w ]+)", text, flags=re.MULTILINE))
    order = list(lines)
    for contract in contracts[2:]:
        package = contract["source_modules"][0].removeprefix("supermask.")
        if "." in package:
            continue
        forbidden = {module.removeprefix("supermask.") for module in contract["forbidden_modules"]}
        below = set(order[order.index(package) + 1 :])
        assert below - forbidden == set(lines[package].split()), package
