"""Files of Python and of installed packages, as opposed to files of the user."""

from __future__ import annotations

import site
import sysconfig
from functools import cache
from pathlib import Path


def is_installed(path: Path) -> bool:
    """Return True for a file of the standard library or of an installed package."""
    resolved = path.resolve()
    # Folders of other interpreters, of Debian's packages and of `pip install --target` keep these names.
    if {"site-packages", "dist-packages"} & set(resolved.parts):
        return True
    return any(resolved.is_relative_to(folder) for folder in _installed_folders())


@cache
def _installed_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(Path(folder).resolve() for folder in folders if folder)
