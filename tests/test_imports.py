"""Import contract of the packages, and commands that start without the heavy libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import supermask

PACKAGE = Path(supermask.__file__).parent
ROOT = Path(__file__).parents[1]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}

MODULES_THAT_IMPORT_TORCH = (
    *("engines.reference", "engines.augmentation", "engines.mask_evaluation", "engines.sparse", "engines.stacked"),
    *("networks.examination", "networks.gradient_passes", "networks.hidden_state", "networks.layers"),
    *("networks.module_output", "networks.residual", "networks.vgg"),
)
"""Modules that import torch at the top, with their submodules; all others import them inside functions only."""

TORCH_FREE_PARTS = ("engines.sparse.kernels", "engines.sparse.costs")


def imports_torch(name: str) -> bool:
    if name.startswith(TORCH_FREE_PARTS):
        return False
    return name.startswith((*MODULES_THAT_IMPORT_TORCH, "execution.preload"))


@pytest.mark.slow
def test_packages_import_only_what_the_contract_allows() -> None:
    """The contract is in pyproject.toml, section `tool.importlinter`."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_there_are_thirteen_packages() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"integrations"}
    expected = "cli serve api reporting execution analysis export store engines study networks datasets core"
    assert packages == set(expected.split())


def test_integrations_only_name_what_export_defines() -> None:
    """`supermask.integrations` is a public face, like `supermask/__init__.pyi`: it has imports and no code."""
    for path in (PACKAGE / "integrations").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            is_import = isinstance(node, ast.ImportFrom) and str(node.module).startswith(
                "supermask.export.integrations"
            )
            assert is_docstring or is_all or is_import, f"{path}: {ast.unparse(node)}"


def statements_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from statements_at_import(node)


@pytest.mark.parametrize("name", [name for name in MODULES if not imports_torch(name)])
def test_only_engines_import_torch_at_the_top(name: str) -> None:
    for node in statements_at_import(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            assert node.module.split(".")[0] != "torch"
            inside = {module.removeprefix("supermask.") for module in imported} & MODULES.keys()
            assert not [module for module in inside if imports_torch(module)]


def loaded_by(code: str) -> set[str]:
    """Return the names of the modules that a new interpreter has loaded after running `code`."""
    program = f"import sys; {code}; print(*sorted(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


HEAVY = {"torch", "numba", "matplotlib", "scipy", "duckdb", "sklearn", "PIL", "pandas"}


def test_importing_the_package_loads_no_submodule() -> None:
    loaded = loaded_by("import supermask")
    assert {name for name in loaded if name.split(".")[0] == "supermask"} == {"supermask"}
    assert not loaded & (HEAVY | {"numpy"})


def test_every_public_name_can_be_imported() -> None:
    assert all(hasattr(supermask, name) for name in supermask.__all__)


def test_command_line_starts_without_heavy_libraries() -> None:
    assert not loaded_by("import supermask.cli") & HEAVY


PLANNING = [
    *("core.pruning", "core.certificate", "networks.sequential", "study.plan", "study.run", "study.loading"),
    *("store.files.store", "store.replay"),
]


@pytest.mark.slow
@pytest.mark.parametrize("module", PLANNING)
def test_planning_needs_no_torch(module: str) -> None:
    assert not loaded_by(f"import supermask.{module}") & HEAVY


@pytest.mark.slow
def test_figures_need_no_torch() -> None:
    code = "import supermask.reporting.figures, supermask.analysis.stats, supermask.store.tables"
    assert "torch" not in loaded_by(code)
