"""Functions of the user, named in a study file by their import path, and the hashes of their source."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from supermask.core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class UserFunction:
    """A function, with the name that a study gives it."""

    name: str
    function: Callable[..., Any]
    source_sha256: str | None = None
    """SHA-256 of the function's source text (UTF-8); None for a built-in function."""
    module_sha256: str | None = None
    """SHA-256 of the module's source file, so that a changed constant or helper beside the function counts too."""


def is_import_path(name: str) -> bool:
    """Return True for the form `module:function` or `module.function`; the module may have dots."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*", name, re.ASCII) is not None


def import_function(name: str, parameters: Sequence[str] | None = None) -> UserFunction:
    """Import the Python function at an import path; the current directory is searched first, as `python -m` does.

    With `parameters`, it must take exactly that many positional arguments. Importing runs the module's code.
    Raises UserError: no such module or function, failing import, not a function, wrong parameters, no source text.
    """
    module_name, function_name = re.split(r"[.:](?=\w+$)", name, maxsplit=1)
    module = _import_module(module_name)
    if not hasattr(module, function_name):
        functions = [n for n, value in vars(module).items() if isinstance(value, FunctionType)]
        raise UserError(
            f"{name!r}: the module {module_name!r} has no function {function_name!r}"
            f"{did_you_mean(function_name, functions) or '.'} Its functions: {', '.join(functions) or 'none'}."
        )
    function = getattr(module, function_name)
    signature = f"({', '.join(parameters)})" if parameters is not None else ""
    if not inspect.isfunction(function):
        raise UserError(f"{name!r} is of type {type(function).__name__}, not a function {function_name}{signature}.")
    if parameters is not None:
        _check_parameters(name, function, parameters)
    try:
        source = inspect.getsource(function)
        module_source = Path(str(inspect.getsourcefile(inspect.unwrap(function)))).read_bytes()
    except (OSError, TypeError):
        raise UserError(f"{name!r} has no source text to tell its versions apart by: write it in a .py file.") from None
    return UserFunction(
        name, function, hashlib.sha256(source.encode()).hexdigest(), hashlib.sha256(module_source).hexdigest()
    )


def _import_module(module_name: str) -> ModuleType:
    current_folder = str(Path.cwd())
    if current_folder not in sys.path:
        # Left in sys.path, because the function may import its neighbors when it is called.
        sys.path.insert(0, current_folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise UserError(f"importing the module {module_name!r} failed: {error}.") from error
        raise UserError(
            f"there is no module {error.name!r}; looked in the current directory ({current_folder}) and the installed "
            "packages."
        ) from None
    except (Exception, SystemExit) as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"importing the module {module_name!r} failed: {message}.") from error


def _check_parameters(name: str, function: Callable[..., Any], parameters: Sequence[str]) -> None:
    actual = inspect.signature(function).parameters.values()
    positional = [p for p in actual if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) != len(actual) or len(positional) != len(parameters):
        raise UserError(f"{name!r} takes {inspect.signature(function)}: it must take ({', '.join(parameters)}).")
