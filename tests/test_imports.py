"""The house's floors: imports only go down, and a command that needs no torch does not wait for it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import supermask

PACKAGE = Path(supermask.__file__).parent

FLOORS = """
analysis.distribution analysis.pixels analysis.plane analysis.specimen cache claims.findings cli.app datasets.facts engines engines.kernels engines.kernels.compiling engines.kernels.lanes environment errors execute figures.style figures.text recipe report.citation report.differences rng serve serve.guard stats.correction stats.moments stats.student store.notes types
analysis.overlap analysis.units datasets.images engines.kernels.bits engines.kernels.chance engines.kernels.line engines.kernels.loss engines.kernels.network engines.kernels.products engines.stacked.once initialisers masks report.assets serve.commands stats.comparing stats.median store.disk store.entry study.import_path study.yaml_tree tables
actions analysis.density analysis.signs claims.printing criteria datasets.digits datasets.source engines.kernels.pixels engines.kernels.planes engines.kernels.updates engines.kernels.winograd engines.stacked.repeating figures.save networks promises report.columns serve.files serve.lines stats.effect stats.exact stats.margins stats.planning store.folders study.checking study.overrides text_table tickets.container tickets.modules trackers.exported
analysis analysis.summary datasets.cache datasets.cifar10_binary datasets.idx datasets.parquet engines.costs engines.kernels.fc engines.kernels.filters engines.kernels.panels engines.kernels.units stats store.store study.values ticket tickets.encoding trackers.mlflow trackers.wandb
certificate datasets.cifar10 datasets.mnist engines.kernels.logits engines.kernels.winograd_gradients figures.points learned serve.pictures store study.claim tickets.document
claims.words datasets.load engines.choice engines.job figures.caption mask_certificate report.making runs study.supermask
datasets engines.loop engines.shares engines.stacked.precision engines.steps engines.trained engines.walks execute.data execute.simulation execute.tasks figures.lines figures.page records report.traces study.model
engines.layers engines.reference engines.stacked.moving execute.checkpoints execute.stored figures.accuracy figures.curves figures.density figures.distributions figures.overlap figures.panels figures.pixel_maps figures.planes report.plots serve.explorer study.labels study.matching tickets.model
engines.filter_layer engines.fully_connected engines.learning engines.stacked.convolutions engines.stacked.images figures.differences figures.overview figures.ranking figures.supermasks study.claim_loading tickets.checks tickets.evaluate tickets.files
engines.convolutional engines.layer_costs engines.masked_network engines.report engines.stacked.forward engines.stacked.masks figures.table_one report.mask_plots report.ranking_plot study.loading
engines.measuring engines.stacked.stack exit_status figures study
claims.asked claims.evidence engines.sparse engines.stacked.replica engines.stacked.size lineage plan report.tables trackers.tensorboard
claims.deciding engines.stacked.training execute.committing execute.preload_convolutions execute.preload_masks execute.preload_sparse execute.run_cost execute.schedule export rows serve.studies verify
claims.evaluate drawing engines.stacked execute.estimate execute.ongoing execute.pace report.studies serve.shelf status tickets.packing
claims execute.engine execute.journal execute.preload_stacked tickets
execute.worker remeasure report.content specimens
execute.away execute.local execute.preload report.words
execute.progress execute.ray execute.slurm report.page
execute.cluster report serve.news serve.run_page
carrying_out
commands
cli.studies looking notebook report_commands ticket_commands trackers.sending
cli.masks cli.reports cli.tickets conclusions serve.live_report trackers
cli.conclusions cli.running cli.trackers serve.state
serve.app
serve.server
cli.serving
cli
__main__
"""  # noqa: E501
"""From the ground up. A module imports from floors below its own, and from nowhere else.

The public face, `supermask` itself, stands apart: it names things of every floor and imports none until it is asked.
"""

FLOOR_OF = {name: floor for floor, line in enumerate(FLOORS.strip().splitlines()) for name in line.split()}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


@cache
def imported(name: str) -> frozenset[str]:
    """The package's own modules that a module imports: at its top, inside functions, and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("supermask.") for alias in node.names} & MODULES.keys()
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}: imports are absolute"
            if node.module.split(".")[0] == "supermask":
                package = node.module.removeprefix("supermask").removeprefix(".")
                inner = {f"{package}.{alias.name}".removeprefix(".") for alias in node.names}
                found |= inner & MODULES.keys() or {package} - {""}
    return frozenset(found)


def longest_chain(name: str) -> int:
    return max((longest_chain(below) + 1 for below in imported(name)), default=1)


def test_every_module_has_a_floor() -> None:
    assert sorted(FLOOR_OF) == sorted(MODULES)
    assert len(FLOORS.split()) == len(FLOOR_OF)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_only_go_down(name: str) -> None:
    up = [other for other in imported(name) if FLOOR_OF[other] >= FLOOR_OF[name]]
    assert not up, f"{name} (floor {FLOOR_OF[name]}) imports {up}"


def test_there_are_no_more_floors_than_needed() -> None:
    assert len(FLOORS.strip().splitlines()) == max(longest_chain(name) for name in MODULES)


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import(node)


IMPORT_TORCH = {
    "engines.reference",
    "engines.sparse",
    "execute.preload",
    "execute.preload_sparse",
    "execute.preload_convolutions",
    "execute.preload_masks",
    "execute.preload_stacked",
} | {
    f"engines.{part}"
    for part in (
        "convolutional",
        "filter_layer",
        "fully_connected",
        "layer_costs",
        "layers",
        "learning",
        "masked_network",
        "measuring",
        "report",
        "stacked",
        "stacked.convolutions",
        "stacked.forward",
        "stacked.images",
        "stacked.masks",
        "stacked.moving",
        "stacked.once",
        "stacked.precision",
        "stacked.repeating",
        "stacked.replica",
        "stacked.size",
        "stacked.stack",
        "stacked.training",
        "trained",
    )
}
"""The engines, and what the server of worker processes loads before it forks; they are named where they are needed."""


@pytest.mark.parametrize("name", sorted(set(MODULES) - IMPORT_TORCH))
def test_only_the_engines_import_torch_at_once(name: str) -> None:
    for node in at_import(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            assert node.module.split(".")[0] != "torch"
            assert not named & {f"supermask.{module}" for module in IMPORT_TORCH}


def loaded_by(code: str) -> set[str]:
    program = f"import sys; {code}; print(*sorted(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_public_face_imports_nothing_until_it_is_asked() -> None:
    assert {name for name in loaded_by("import supermask") if name.split(".")[0] == "supermask"} == {"supermask"}


def test_the_public_face_has_all_that_it_names() -> None:
    assert all(hasattr(supermask, name) for name in supermask.__all__)


HEAVY = {"torch", "numba", "matplotlib", "scipy", "duckdb", "sklearn", "PIL", "pandas"}


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    assert not loaded_by("import supermask.cli") & HEAVY


@pytest.mark.parametrize("module", ["plan", "runs", "ticket", "certificate", "networks", "store", "study", "lineage"])
def test_planning_needs_no_torch(module: str) -> None:
    assert not loaded_by(f"import supermask.{module}") & HEAVY


def test_figures_need_no_torch() -> None:
    assert "torch" not in loaded_by("import supermask.figures, supermask.stats, supermask.tables")
