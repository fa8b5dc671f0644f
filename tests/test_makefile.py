"""Makefile: which build of torch is installed, with a pip that only writes down what it was told."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = """#!/bin/sh
echo "$@" >> pip.log
case "$*" in *--index-url*) exit $INDEX_STATUS;; esac
"""
FROM_CPU_INDEX = (
    "install --quiet --constraint constraints.txt --no-deps --retries 1 --timeout 10 "
    "--index-url https://download.pytorch.org/whl/cpu torch"
)
FROM_DEFAULT = "install --quiet --constraint constraints.txt torch"
PACKAGE = "install --quiet --constraint constraints.txt --editable ."


def install(folder: Path, *variables: str, index_status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `make .venv/installed` with the fake pip."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in (("pip", PIP), ("python", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("TORCH", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    environment["INDEX_STATUS"] = str(index_status)
    command = ["make", ".venv/installed", *variables]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def told(folder: Path) -> list[str]:
    return (folder / "pip.log").read_text().splitlines()


def test_the_cpu_build_comes_from_pytorchs_index(tmp_path: Path) -> None:
    assert install(tmp_path, "TORCH=cpu").returncode == 0
    assert told(tmp_path) == [FROM_CPU_INDEX, PACKAGE]
    assert (tmp_path / ".venv" / "installed").exists()


def test_without_that_index_pip_decides_and_make_says_so(tmp_path: Path) -> None:
    ended = install(tmp_path, "TORCH=cpu", index_status=1)
    assert ended.returncode == 0
    assert told(tmp_path) == [FROM_CPU_INDEX, FROM_DEFAULT, PACKAGE]
    assert "PyTorch's CPU index is not reachable" in ended.stdout


def test_the_default_build_is_what_pip_finds(tmp_path: Path) -> None:
    assert install(tmp_path, "TORCH=default").returncode == 0
    assert told(tmp_path) == [FROM_DEFAULT, PACKAGE]


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="elsewhere the default index has CPU builds")
def test_linux_takes_the_cpu_build_by_default(tmp_path: Path) -> None:
    assert install(tmp_path).returncode == 0
    assert told(tmp_path)[0] == FROM_CPU_INDEX


def test_an_unknown_build_is_refused(tmp_path: Path) -> None:
    ended = install(tmp_path, "TORCH=gpu")
    assert ended.returncode == 2
    assert "TORCH=gpu is not a build of torch: give TORCH=cpu or TORCH=default" in ended.stderr
    assert not (tmp_path / "pip.log").exists()


def test_another_index_can_be_named(tmp_path: Path) -> None:
    assert install(tmp_path, "TORCH=cpu", "TORCH_CPU_INDEX=https://mirror.example/cpu").returncode == 0
    assert "--index-url https://mirror.example/cpu torch" in told(tmp_path)[0]


def test_no_file_of_the_project_keeps_a_target_from_running() -> None:
    """A target such as `docs` has the name of a folder: make would call it up to date."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    phony = next(line for line in lines if line.startswith(".PHONY: ")).split()[1:]
    targets = re.findall(r"^([a-z-]+):", "\n".join(lines), re.MULTILINE)
    assert sorted(phony) == sorted(targets)
    assert "docs" in phony
