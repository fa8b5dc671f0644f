"""Functions of a script or notebook cell as mask criteria: their source becomes a module that workers can import.

A worker never runs the user's script again, so a function of a cell reaches it as text: the source of the function, the
imports, constants and functions of the cell that it uses. The text is the module `cell_<hash>` in the cache folder. The
hash of a user's module is part of a run's id, so the source is, and equal source gives equal ids in every session.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import math
import sys
import textwrap
from pathlib import Path
from types import FunctionType, ModuleType

from supermask.core.environment import cache_folder
from supermask.core.errors import SystemFailure, UserError, quote
from supermask.core.files import write_atomic

MISSING = object()
MODULE_ATTRIBUTES = ("__doc__", "__loader__", "__name__", "__package__", "__spec__")
"""Names that Python sets in every module: the generated one has its own."""

ELSEWHERE = "Write it in a .py file and name it as module:function."


def import_path(function: object) -> str:
    """Return an import path `module:function` for a criterion that is given as a function.

    A function of a module that can be imported is named by it. The source of a function of a script or a cell is
    written to the cache folder first. Raises UserError for a function whose source does not determine what it does.
    """
    if not isinstance(function, FunctionType):
        raise UserError(f"{quote(function)} is not a plain function (def score(layer, rng)). {ELSEWHERE}")
    name = function.__name__
    if function.__module__ != "__main__" and getattr(sys.modules.get(function.__module__), name, None) is function:
        return f"{function.__module__}:{name}"
    text = _module_text(function)
    module = f"cell_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    folder = _cells_folder()
    if folder is None:
        raise UserError(f"the criterion {name!r} needs a cache folder: set SUPERMASK_CACHE to one. {ELSEWHERE}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{module}.py", text.encode(), replace=False)
    except OSError as error:
        raise SystemFailure(f"the criterion cannot be written to {folder}: {error.strerror or error}.") from error
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return f"{module}:{name}"


def _module_text(function: FunctionType) -> str:
    """Return the source of a module with the function and all that it uses. Raises UserError."""
    imports: dict[str, None] = {}
    constants: dict[str, None] = {}
    sources: dict[str, str] = {}
    waiting = [function]
    while waiting:
        current = waiting.pop()
        if current.__name__ in sources:
            continue
        source, names = _parse(current)
        sources[current.__name__] = source
        for name in names:
            value = current.__globals__.get(name, MISSING)
            if value is MISSING or _is_builtin(name, value):
                continue  # As it is in every module, or a NameError when it runs.
            if isinstance(value, FunctionType) and value.__module__ == current.__module__ and value.__name__ == name:
                waiting.append(value)
            elif statement := _import_statement(name, value):
                imports[statement] = None
            elif _is_constant(value):
                constants[f"{name} = {value!r}"] = None
            else:
                raise UserError(
                    f"the criterion {function.__name__!r} uses {name!r}, a {type(value).__name__} of this session, "
                    f"which is not in its source: use a number or a text, or make it in the function. {ELSEWHERE}"
                )
    # Sorted, so that the order of definition does not change the hash.
    functions = [sources[name] for name in sorted(sources)]
    return "\n\n".join(["\n".join([*sorted(imports), *sorted(constants)]), *functions]).strip() + "\n"


def _parse(function: FunctionType) -> tuple[str, list[str]]:
    """Return (source, names that it uses and does not define) of a function. Raises UserError."""
    name = function.__name__
    if not name.isidentifier():
        raise UserError(f"a criterion is a function with a name, not {name!r}: define it with def.")
    if function.__closure__:
        free = ", ".join(map(repr, function.__code__.co_freevars))
        raise UserError(
            f"the criterion {name!r} uses {free} of the function around it, which is not in its source. {ELSEWHERE}"
        )
    try:
        source = textwrap.dedent(inspect.getsource(function))
        body = ast.parse(source).body
    except (OSError, TypeError, SyntaxError) as error:
        raise UserError(f"the source of the criterion {name!r} cannot be read ({error}). {ELSEWHERE}") from None
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise UserError(f"the criterion {name!r} is not a function of its own: define it with def. {ELSEWHERE}")
    definition = body[0]
    if definition.decorator_list or definition.args.defaults or definition.args.kw_defaults:
        raise UserError(f"the criterion {name!r} has a decorator or default values: leave them out. {ELSEWHERE}")
    # Annotations name things that are not needed to run.
    for node in ast.walk(definition):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    used = [node.id for node in ast.walk(definition) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    excluded = {*function.__code__.co_varnames, *MODULE_ATTRIBUTES}
    return ast.unparse(definition), [used_name for used_name in dict.fromkeys(used) if used_name not in excluded]


def _import_statement(name: str, value: object) -> str:
    """Return the statement that imports a value of a session under its name; empty if there is none."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}" if value.__name__ != "__main__" else ""
    module, original = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(original, str) or module == "__main__":
        return ""
    if not original.isidentifier() or getattr(sys.modules.get(module), original, None) is not value:
        return ""
    return f"from {module} import {original} as {name}"


def _is_builtin(name: str, value: object) -> bool:
    """Return False for a builtin's name under which the session has a value of its own.

    IPython replaces `open`, `exit` and `quit` in every session; in a worker the builtins are meant.
    """
    if not hasattr(builtins, name):
        return False
    source = getattr(value, "__globals__", {}).get("__name__") or type(value).__module__
    return value is getattr(builtins, name) or str(source).startswith("IPython.")


def _is_constant(value: object) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return value is None or type(value) in (bool, int, float, str)


def is_cell(name: str) -> bool:
    """Return whether an import path names a function of a cell, which only workers on this machine can import."""
    module, folder = name.partition(":")[0], _cells_folder()
    return folder is not None and module.startswith("cell_") and (folder / f"{module}.py").is_file()


def _cells_folder() -> Path | None:
    cache = cache_folder()
    return None if cache is None else cache / "cells"
