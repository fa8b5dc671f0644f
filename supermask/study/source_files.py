"""Source files of a user's function: its module and all that it imports, found and read without importing them.

Modules are found as Python's import system finds them: by the folders of `sys.path`, then by the finders of editable
installs and zip files. Imports of installed packages and of the standard library are not followed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from supermask.core.errors import UserError
from supermask.core.installed_files import is_installed

MAX_SOURCE_BYTES = 10_000_000
"""Bytes of one source file."""


class UserModuleNotFound(UserError):
    """The module of a user's function is not in the search path; its identity may still be known from a store."""


@dataclass(frozen=True)
class SourceFile:
    """Source file of a module; for a namespace package there is none."""

    path: Path
    content: bytes
    is_package: bool

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file's bytes."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class _Location:
    """File of a module, and the folders of its submodules if it is a package."""

    path: Path | None
    """None for a namespace package."""
    folders: tuple[str, ...] = ()


def _search_path() -> list[str]:
    """Return the folders in which `import_function` searches."""
    current_folder = str(Path.cwd())
    folders = [folder or current_folder for folder in sys.path]
    return folders if current_folder in folders else [current_folder, *folders]


def _locate(module_name: str) -> _Location | None:
    """Return the location that the import system would find, without importing a parent package."""
    location = None
    folders = _search_path()
    for part in module_name.split("."):
        next_location = _locate_in(part, folders)
        if next_location is None and location is None:
            next_location = _locate_by_finders(part)
        if next_location is None:
            return None
        location, folders = next_location, list(next_location.folders)
    return location


def _locate_in(name: str, folders: Sequence[str]) -> _Location | None:
    suffixes = [*importlib.machinery.EXTENSION_SUFFIXES, *importlib.machinery.SOURCE_SUFFIXES]
    namespace: list[str] = []
    for folder in map(Path, folders):
        package = folder / name
        for suffix in suffixes:
            if (path := package / f"__init__{suffix}").is_file():
                return _Location(path, (str(package),))
        for suffix in suffixes:
            if (path := folder / f"{name}{suffix}").is_file():
                return _Location(path)
        if package.is_dir():
            namespace.append(str(package))
    return _Location(None, tuple(namespace)) if namespace else None


def _locate_by_finders(name: str) -> _Location | None:
    """Ask the finders of editable installs and zip files about a top-level module; they do not import it."""
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, None)
        except Exception:  # noqa: S112 - a finder of another package; without its answer the module is not found
            continue
        if spec is not None and spec.has_location and spec.origin is not None:
            return _Location(Path(spec.origin), tuple(spec.submodule_search_locations or ()))
    return None


def find_source(module_name: str) -> SourceFile:
    """Return the source of the module of a user's function. Raises UserModuleNotFound and UserError."""
    top = module_name.partition(".")[0]
    if top == "__main__":
        raise UserError(
            "'__main__' is the program that runs, which worker processes cannot import: put the function into a file "
            "of its own, such as criteria.py, and name it criteria:FUNCTION."
        )
    if top in sys.stdlib_module_names:
        raise UserError(
            f"{top!r} is a module of Python's standard library, not one of yours: put the function into a file of its "
            "own, such as criteria.py, and name it criteria:FUNCTION."
        )
    location = _locate(module_name)
    if location is None:
        raise UserModuleNotFound(
            f"there is no module {module_name!r}; looked in the current directory ({Path.cwd()}) and the installed "
            f"packages. Put {top}.py there, or install its package."
        )
    if location.path is None or location.path.suffix not in importlib.machinery.SOURCE_SUFFIXES:
        raise UserError(
            f"the module {module_name!r} has no source text to tell its versions apart by: write it in a .py file."
        )
    return _read_source(location, module_name)


def _read_source(location: _Location, module_name: str) -> SourceFile:
    assert location.path is not None
    try:
        with location.path.open("rb") as file:
            content = file.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise UserError(f"the module {module_name!r} cannot be read: {location.path}: {error.strerror}.") from None
    if len(content) > MAX_SOURCE_BYTES:
        raise UserError(f"the module {module_name!r}: {location.path} is larger than {MAX_SOURCE_BYTES:,} bytes.")
    return SourceFile(location.path, content, bool(location.folders))


def source_closure(module_name: str) -> dict[str, SourceFile]:
    """Return the sources of a module and of all that it imports from outside installed packages, by module name.

    The module itself is included even if it is installed. A package's `__init__` runs before its submodules, so it
    counts as imported by them.
    """
    closure = {module_name: find_source(module_name)}
    queue = [module_name]
    seen = {module_name}

    def add(name: str) -> None:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = ".".join(parts[:end])
            if module in seen:
                continue
            seen.add(module)
            location = None if parts[0] in (*sys.stdlib_module_names, "supermask") else _locate(module)
            if location is None or location.path is None or is_installed(location.path):
                continue
            closure[module] = _read_source(location, module)
            queue.append(module)

    if not is_installed(closure[module_name].path):
        add(module_name)  # Its parent packages.
    while queue:
        name = queue.pop()
        source = closure[name]
        if source.path.suffix in importlib.machinery.SOURCE_SUFFIXES:
            for imported in _imported_modules(source, name):
                add(imported)
    return closure


def _imported_modules(source: SourceFile, module_name: str) -> Iterator[str]:
    """Yield every module name that the source imports anywhere; some may be no module but a function of one."""
    try:
        tree = ast.parse(source.content)
    except (SyntaxError, ValueError, RecursionError):
        return  # Its bytes count; the import reports the error.
    package = module_name if source.is_package else module_name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
                if any(alias.name == "*" for alias in node.names):
                    yield from (f"{base}.{name}" for name in _exported_names(base))
        elif isinstance(node, ast.Call) and node.args:
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            argument = node.args[0]
            if function in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                value = argument.value
                if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value, re.ASCII):
                    yield value


def _exported_names(package: str) -> Iterator[str]:
    """Yield the strings of a package's `__all__`: `from package import *` imports the submodules among them."""
    location = None if package.partition(".")[0] in sys.stdlib_module_names else _locate(package)
    if location is None or location.path is None or location.path.suffix not in importlib.machinery.SOURCE_SUFFIXES:
        return
    try:
        tree = ast.parse(_read_source(location, package).content)
    except (UserError, SyntaxError, ValueError, RecursionError):
        return
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__all__" for target in node.targets):
            for item in ast.walk(node.value):
                if isinstance(item, ast.Constant) and isinstance(item.value, str) and item.value.isidentifier():
                    yield item.value


def module_bindings(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Yield (name, defining node) for every name that statements at module level bind; `*` for a star import."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name.partition(".")[0], node) for alias in node.names)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield from ((n.id, node.value) for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value
        else:
            for field in ("body", "orelse", "finalbody"):
                yield from module_bindings(getattr(node, field, []))
            for handler in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                yield from module_bindings(handler.body)
