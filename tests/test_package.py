"""Wheel and source distribution: what is in them, and that each works where only it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.harness import IS_FULL

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Distributions by kind: `wheel`, and `sdist`."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t", "sdist", "-t", "wheel"]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def tracked_files() -> set[str]:
    """Return the files of the package in this folder."""
    files = (path for path in (ROOT / "supermask").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def test_the_wheel_has_every_file_of_the_package(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    assert names == tracked_files()
    for data in ("py.typed", "study/presets/mask-criteria.yaml", "reporting/html/templates/page.html"):
        assert f"supermask/{data}" in names
    assert any(name.endswith("default_costs.json") for name in names)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(f"Provides-Extra: {extra}" in metadata for extra in extras)


def test_the_source_distribution_has_what_builds_and_tests_it(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked_files() <= names
    assert {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "tests/test_package.py", "mkdocs.yml"} <= names


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_each_works_in_a_fresh_environment(built: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """The dependencies are those of this environment, by a .pth file; the package is the installed one alone."""
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SUPERMASK_STORE")}
    query = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(subprocess.run([python, "-c", query], env=environment, **run).stdout.strip())  # type: ignore[call-overload]
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    install = [sys.executable, "-m", "pip", "--python", python, "install", *options, built[kind]]
    subprocess.run(install, env=environment, **run)  # type: ignore[call-overload]
    program = tmp_path / "env" / "bin" / "supermask"
    where = "import supermask; print(supermask.__file__)"
    assert subprocess.run([python, "-c", where], env=environment, **run).stdout.startswith(str(packages))  # type: ignore[call-overload]
    settings = ["scale=digits", "seeds=1", "prune.levels=1", "train.epochs=0.2", "train.evaluate_every=2"]
    # The source distribution installs the same files, so one of the two trains; with the engine that compiles nothing.
    study = ["mask-criteria", *settings]
    train = ["run", *study, "--engine", "auto" if IS_FULL else "reference"]
    for words in (train, ["report", *study]) if kind == "wheel" else (["plan", *study],):
        subprocess.run([program, *words], env=environment, **run)  # type: ignore[call-overload]
    assert kind == "sdist" or "<html" in (tmp_path / "report.html").read_text()
