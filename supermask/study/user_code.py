"""Functions of the user, named in a study file by import path: found and hashed without import, imported to train.

Planning and reading results need only the identity of the code: the hash of the source of its module and of every
module that it imports from outside installed packages. The source is parsed for that, never executed.
Not covered, because no source names them: files that the code reads or executes itself (`exec`, a loader of its own),
and compiled modules of installed packages. A module that is imported under a computed name, or from a folder that the
code itself adds to `sys.path`, is refused when it is loaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.installed_files import is_installed
from supermask.study.source_files import SourceFile, find_source, module_bindings, source_closure


@dataclass(frozen=True)
class UserFunction:
    """An imported function, with the name that a study gives it."""

    name: str
    function: Callable[..., Any]
    source_sha256: str | None = None
    """SHA-256 of the function's source text (UTF-8); None for a built-in function."""
    module_sha256: str | None = None
    """`code_sha256` of the function before its import: identifies its module's source and all that it imports."""
    sources: Mapping[str, SourceFile] = field(default_factory=dict, compare=False, repr=False)
    """Source files in `module_sha256`, by module."""


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
    return _hash_sources(source_closure(module_name), module_name)


def _hash_sources(sources: Mapping[str, SourceFile], module_name: str) -> str:
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
    if not is_installed(find_source(module_name).path):
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
    source = find_source(module_name)
    try:
        tree = ast.parse(source.content)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        message = f"{type(error).__name__}: {getattr(error, 'msg', error)}"
        raise UserError(f"the module {module_name!r} cannot be parsed: {source.path.name}{line}: {message}.") from None
    bindings = dict(module_bindings(tree.body))
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
    Raises UserError: no such module or function, failing import, not a function, wrong parameters, no source text,
    source that is not the one that this process imported before, and imports of modules that are not in its identity.
    """
    module_name, function_name = _split(name)
    sources = source_closure(module_name)
    imported_before = {module for module in sources if module in sys.modules}
    current_folder = str(Path.cwd())
    if current_folder not in sys.path:
        # Left in sys.path, because the function may import its neighbors when it is called.
        sys.path.insert(0, current_folder)
    with refuse_unhashed_modules(name, sources):
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
    identity = _hash_sources(sources, module_name)
    return UserFunction(name, function, hashlib.sha256(source.encode()).hexdigest(), identity, sources)


@contextmanager
def refuse_unhashed_modules(name: str, sources: Mapping[str, SourceFile]) -> Iterator[None]:
    """Raise UserError if code of the user's loads a module inside that is neither installed nor among `sources`.

    `name`: import path of the user's function. Folders that the code adds to `sys.path` are removed at the end, because
    workers and later look-ups of the sources must search where the plan did; those of installed packages stay.
    """
    folders_before, modules_before = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = [folder for folder in sys.path if folder in folders_before or is_installed(Path(folder))]
    loaded = _user_modules(set(sys.modules) - modules_before)
    known = {source.path.resolve() for source in sources.values()}
    for module_name, path in loaded.items():
        if path in known:
            continue
        for loaded_name in loaded:
            del sys.modules[loaded_name]  # So that the next import is refused too.
        package, _, neighbor = _split(name)[0].rpartition(".")
        place = f"import it by its full name, as in `from {package} import {path.stem}`" if package else ""
        raise UserError(
            f"{quote(name)} imports the module {module_name!r} from {path}, which cannot be found without running its "
            f"code, so it would not be in the id of the runs: {place or f'put it beside {neighbor}.py'}, or add its "
            "folder to the environment variable PYTHONPATH and import it by its name."
        )


def _user_modules(names: Iterable[str]) -> dict[str, Path]:
    """Return module -> file of those that are neither installed nor part of this package, sorted by name."""
    modules = {name: sys.modules.get(name) for name in sorted(names)}
    paths = {name: Path(file).resolve() for name, module in modules.items() if (file := _imported_file(module))}
    own = ("supermask", "__main__", "__mp_main__")
    return {n: path for n, path in paths.items() if n.partition(".")[0] not in own and not is_installed(path)}


def _imported_file(module: ModuleType | None) -> str | None:
    """Return the file that the import system read for a module; None if it read none.

    The import system gives absolute paths. A package that makes a module in memory may give it a relative one, as
    PyTorch does: `torch.classes.__file__` is "_classes.py", a file of no folder.
    """
    file = getattr(module, "__file__", None)
    is_made_in_memory = getattr(module, "__spec__", None) is None and file is not None and not Path(file).is_absolute()
    return None if is_made_in_memory else file


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


_imported_hashes: dict[str, str] = {}
"""Module -> SHA-256 of its source at its first import here: Python does not import a changed file again."""


def _check_imported_sources(sources: dict[str, SourceFile], imported_before: set[str]) -> None:
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
