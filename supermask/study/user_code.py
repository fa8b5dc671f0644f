"""Functions of the user, named in a study file by import path: found and hashed without import, imported to train.

Planning and reading results need only the identity of the code: the hash of the source of its module and of every
module that it imports from outside installed packages. The source is parsed for that, never executed.
Not covered, because no source names them: files read by the code, modules imported under a computed name, and compiled
modules of installed packages.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import inspect
import json
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from supermask.core.errors import UserError, did_you_mean, quote

MAX_SOURCE_BYTES = 10_000_000
"""Bytes of one source file."""


class UserModuleNotFound(UserError):
    """The module of a user's function is not in the search path; its identity may still be known from a store."""


@dataclass(frozen=True)
class UserFunction:
    """An imported function, with the name that a study gives it."""

    name: str
    function: Callable[..., Any]
    source_sha256: str | None = None
    """SHA-256 of the function's source text (UTF-8); None for a built-in function."""
    module_sha256: str | None = None
    """`code_sha256` of the function: identifies its module's source and all that it imports."""


def is_import_path(name: str) -> bool:
    """Return True for the form `module:function` or `module.function`; the module may have dots."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*", name, re.ASCII) is not None


def code_sha256(name: str) -> str:
    """Return the identity of the code of the function at an import path, without importing it.

    SHA-256 (hex) of the module's source file; if it imports modules from outside installed packages, of the sorted JSON
    map of module names to the SHA-256 of their files, the imports of imports included.

    Raises UserModuleNotFound, and UserError if the module has no source file.
    """
    module_name, _ = _split(name)
    sources = _source_closure(module_name)
    if len(sources) == 1:
        return sources[module_name].sha256
    hashes = {module: source.sha256 for module, source in sources.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def source_identity(name: str) -> str:
    """Return `code_sha256` of a function; for one of an installed package, hashed with the package's version.

    Of an installed package only the function's own module is read, and its version stands for the rest.
    Raises as `code_sha256` does.
    """
    identity = code_sha256(name)
    module_name, _ = _split(name)
    if not _is_installed(_find_source(module_name).path):
        return identity
    from importlib.metadata import packages_distributions, version

    distributions = sorted(set(packages_distributions().get(module_name.partition(".")[0], [])))
    versions = {distribution: version(distribution) for distribution in distributions}
    return hashlib.sha256(json.dumps([identity, versions], sort_keys=True).encode()).hexdigest()


def check_function(name: str, parameters: Sequence[str] | None = None, allow_class: bool = False) -> None:
    """Check the function at an import path as far as its source tells, without importing it.

    Raises UserModuleNotFound, and UserError: a module that cannot be a user's, no source file, invalid syntax, no such
    function, wrong parameters.
    """
    module_name, function_name = _split(name)
    source = _find_source(module_name)
    try:
        tree = ast.parse(source.content)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        message = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
        raise UserError(f"the module {module_name!r} cannot be parsed: {source.path.name}{line}: {message}.") from None
    bindings = dict(_module_bindings(tree.body))
    if function_name not in bindings:
        if "*" in bindings or "__getattr__" in bindings:
            return  # It may come from there; import will tell.
        kinds = (ast.FunctionDef, ast.ClassDef) if allow_class else (ast.FunctionDef,)
        functions = [n for n, node in bindings.items() if isinstance(node, kinds)]
        raise UserError(_no_function_message(name, module_name, function_name, functions))
    node = bindings[function_name]
    signature = f"({', '.join(parameters)})" if parameters is not None else ""
    if isinstance(node, ast.Constant) or (isinstance(node, ast.ClassDef) and not allow_class):
        kind = "type" if isinstance(node, ast.ClassDef) else type(node.value).__name__
        raise UserError(f"{name!r} is of type {kind}, not a function {function_name}{signature}.")
    if parameters is not None and isinstance(node, ast.FunctionDef) and not node.decorator_list:
        args = node.args
        has_others = args.vararg or args.kwarg or args.kwonlyargs
        if has_others or len(args.posonlyargs) + len(args.args) != len(parameters):
            raise UserError(f"{name!r} takes ({ast.unparse(args)}): it must take {signature}.")


def import_function(name: str, parameters: Sequence[str] | None = None, allow_class: bool = False) -> UserFunction:
    """Import the Python function at an import path; the current directory is searched first, as `python -m` does.

    With `parameters`, it must take exactly that many positional arguments; with `allow_class` it may be a class.
    Importing runs the module's code.
    Raises UserError: no such module or function, failing import, not a function, wrong parameters, no source text, and
    source that is not the one that this process imported before.
    """
    module_name, function_name = _split(name)
    sources = _source_closure(module_name)
    imported_before = {module for module in sources if module in sys.modules}
    module = _import_module(module_name)
    _check_imported_sources(sources, imported_before)
    if not hasattr(module, function_name):
        kinds = (FunctionType, type) if allow_class else (FunctionType,)
        functions = [n for n, value in vars(module).items() if isinstance(value, kinds)]
        raise UserError(_no_function_message(name, module_name, function_name, functions))
    function = getattr(module, function_name)
    signature = f"({', '.join(parameters)})" if parameters is not None else ""
    if not inspect.isfunction(function) and not (allow_class and inspect.isclass(function)):
        raise UserError(f"{name!r} is of type {type(function).__name__}, not a function {function_name}{signature}.")
    if parameters is not None:
        _check_parameters(name, function, parameters)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        raise UserError(f"{name!r} has no source text to tell its versions apart by: write it in a .py file.") from None
    return UserFunction(name, function, hashlib.sha256(source.encode()).hexdigest(), code_sha256(name))


def check_planned_source(kind: str, name: str, source: str | None, planned: str | None) -> None:
    """Raise UserError if the source of the user's code is not the one that a run was planned with."""
    if source != planned:
        raise UserError(
            f"{kind} {quote(name)}: its file was changed since the plan was made. Run the same command again: runs "
            "trained with the former source are kept, and the new source defines new runs."
        )


def guard_function(kind: str, user: UserFunction, planned: str | None) -> Callable[..., Any]:
    """Return the user's function with a UserError, which names the place, for each of its own exceptions.

    `kind`: what it is to the study, such as `loss`; `planned`: its `module_sha256` when the run was planned.
    Raises UserError if its source was changed since.
    """
    check_planned_source(kind, user.name, user.module_sha256, planned)

    def call(*arguments: Any) -> Any:
        try:
            return user.function(*arguments)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{kind} {quote(user.name)} failed {error_location(error)}: {type(error).__name__}: {error}"
            ) from error

    return call


def error_location(error: BaseException) -> str:
    """Return the place of an error in the user's code: its innermost frame outside installed packages."""
    # The first frame is the call of the user's function.
    frames = traceback.extract_tb(error.__traceback__)[1:]
    user_frames = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"at line {user_frames[-1].lineno} of {user_frames[-1].filename}" if user_frames else "when it was called"


def _split(name: str) -> tuple[str, str]:
    module_name, function_name = re.split(r"[.:](?=\w+$)", name, maxsplit=1)
    return module_name, function_name


def _no_function_message(name: str, module_name: str, function_name: str, functions: Sequence[str]) -> str:
    near = did_you_mean(function_name, functions) or "."
    return (
        f"{name!r}: the module {module_name!r} has no function {function_name!r}{near} "
        f"Its functions: {', '.join(functions) or 'none'}."
    )


# ------------------------------------------------------------------------------------------------- finding the source


@dataclass(frozen=True)
class _Source:
    """Source file of a module; for a namespace package there is none."""

    path: Path
    content: bytes
    is_package: bool

    @property
    def sha256(self) -> str:
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


def _find_source(module_name: str) -> _Source:
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


def _read_source(location: _Location, module_name: str) -> _Source:
    assert location.path is not None
    try:
        with location.path.open("rb") as file:
            content = file.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise UserError(f"the module {module_name!r} cannot be read: {location.path}: {error.strerror}.") from None
    if len(content) > MAX_SOURCE_BYTES:
        raise UserError(f"the module {module_name!r}: {location.path} is larger than {MAX_SOURCE_BYTES:,} bytes.")
    return _Source(location.path, content, bool(location.folders))


def _source_closure(module_name: str) -> dict[str, _Source]:
    """Return the sources of a module and of all that it imports from outside installed packages, by module name.

    The module itself is included even if it is installed. A package's `__init__` runs before its submodules, so it
    counts as imported by them.
    """
    closure = {module_name: _find_source(module_name)}
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
            if location is None or location.path is None or _is_installed(location.path):
                continue
            closure[module] = _read_source(location, module)
            queue.append(module)

    if not _is_installed(closure[module_name].path):
        add(module_name)  # Its parent packages.
    while queue:
        name = queue.pop()
        source = closure[name]
        if source.path.suffix in importlib.machinery.SOURCE_SUFFIXES:
            for imported in _imported_modules(source, name):
                add(imported)
    return closure


def _imported_modules(source: _Source, module_name: str) -> Iterator[str]:
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


def _module_bindings(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
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
                yield from _module_bindings(getattr(node, field, []))
            for handler in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                yield from _module_bindings(handler.body)


@cache
def _installed_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(Path(folder).resolve() for folder in folders if folder)


def _is_installed(path: Path) -> bool:
    resolved = path.resolve()
    # Folders of other interpreters, of Debian's packages and of `pip install --target` keep these names.
    if {"site-packages", "dist-packages"} & set(resolved.parts):
        return True
    return any(resolved.is_relative_to(folder) for folder in _installed_folders())


# ---------------------------------------------------------------------------------------------------------- importing

_imported_hashes: dict[str, str] = {}
"""Module -> SHA-256 of its source at its first import here: Python does not import a changed file again."""


def _check_imported_sources(sources: dict[str, _Source], imported_before: set[str]) -> None:
    """Raise UserError unless the imported modules are those of `sources`, the files that were hashed."""
    for name, source in sources.items():
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None:
            continue  # Imported later, when the function runs, or never.
        if Path(file).resolve() != source.path.resolve():
            raise UserError(
                f"the module {name!r} was imported from {quote(file)} before, but {quote(str(source.path))} comes "
                "first now: start Python again in the folder of the study."
            )
        if _imported_hashes.setdefault(name, source.sha256) != source.sha256 and name in imported_before:
            raise UserError(
                f"the module {name!r} was changed after this process imported it ({quote(file)}): start Python again."
            )


def _import_module(module_name: str) -> ModuleType:
    current_folder = str(Path.cwd())
    if current_folder not in sys.path:
        # Left in sys.path, because the function may import its neighbors when it is called.
        sys.path.insert(0, current_folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        is_missing = isinstance(error, ModuleNotFoundError)
        message = str(error) if is_missing else " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"importing the module {module_name!r} failed: {message}.") from error


def _check_parameters(name: str, function: Callable[..., Any], parameters: Sequence[str]) -> None:
    actual = inspect.signature(function).parameters.values()
    positional = [p for p in actual if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) != len(actual) or len(positional) != len(parameters):
        raise UserError(f"{name!r} takes {inspect.signature(function)}: it must take ({', '.join(parameters)}).")
